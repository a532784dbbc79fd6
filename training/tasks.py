"""The training worker's wake-up message; see captioner/tasks.py."""

from typing import Any

from celery import shared_task
from celery.signals import celeryd_after_setup

from captioner.jobs.wakeup import WAKE_UP
from captioner.tasks import run_beside_celery


@shared_task(name="training.wake")
def wake() -> None:
    """Wake this process's engine."""
    WAKE_UP.set()


@celeryd_after_setup.connect
def open_engine(sender: str, instance: Any, **_: Any) -> None:
    """Load the models before the worker reports ready, if it serves the training queue."""
    if "training" in instance.app.amqp.queues.consume_from:
        from training import worker  # loads torch

        run_beside_celery(instance, worker.start)
