"""Waking the training workers, and rescuing stale rows."""

from __future__ import annotations

from datetime import timedelta

from django.core.cache import cache

from captioner.errors import Refused
from captioner.jobs import wakeup
from captioner.jobs.job import OrderedJob, clock
from training.models import Import, TrainingRun

RUN_DEADLINE = timedelta(days=7)  # to be begun


def wake_workers() -> None:
    """Wake the training workers."""
    wakeup.wake_workers("training")


def rescue_stale() -> None:
    """Whoever looks at unfinished runs or imports calls this: it ends or queues again what lost workers left behind,
    whether or not a training worker lives that would."""
    if cache.add("training-rescued", True, timeout=3) and TrainingRun.objects.reap() + Import.objects.reap():
        wake_workers()


def queue_again(job: OrderedJob, plural: str) -> None:
    """Put a stopped run or import back into the queue.

    Args:
        plural: what such jobs are called.

    Raises:
        Refused: it has neither failed nor been canceled.
    """
    if not job.retry(clock("default") + RUN_DEADLINE):
        raise Refused(
            "not_stopped",
            f"only failed or canceled {plural} can be resumed; the status of this one is {job.status}",
            status=409,
        )
