"""Waking the training workers, and rescuing stale rows."""

from __future__ import annotations

from datetime import timedelta

from django.core.cache import cache

from captioner.jobs import wakeup
from training.models import Import, TrainingRun

RUN_DEADLINE = timedelta(days=7)  # to be begun


def wake_workers() -> None:
    """Wake the training workers."""
    wakeup.wake_workers("training")


def rescue_stale() -> None:
    """Whoever looks at unfinished runs or imports calls this: it ends or queues again what lost workers left behind,
    whether or not a training worker lives that would."""
    if cache.add("training-looked-after", True, timeout=3) and TrainingRun.objects.reap() + Import.objects.reap():
        wake_workers()
