"""The training worker's bell; see captioner/tasks.py."""

from typing import Any

from celery import shared_task
from celery.signals import celeryd_after_setup

from captioner.tasks import BELL, open_shift


@shared_task(name="training.ring")
def ring() -> None:
    """Wake this process's engine."""
    BELL.set()


@celeryd_after_setup.connect
def open_engine(sender: str, instance: Any, **_: Any) -> None:
    """Load the models before the worker reports ready, if it serves the training queue."""
    if "training" in instance.app.amqp.queues.consume_from:
        from training import worker  # loads torch

        open_shift(instance, worker.start)
