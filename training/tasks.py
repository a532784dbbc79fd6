"""The training worker's bell; see captioner/tasks.py."""

from typing import Any

from celery import shared_task
from celery.signals import celeryd_after_setup, worker_shutdown, worker_shutting_down

from captioner.tasks import BELL, start_or_end


@shared_task(name="training.ring")
def ring() -> None:
    """Wake this process's engine."""
    BELL.set()


@celeryd_after_setup.connect
def open_engine(sender: str, instance: Any, **_: Any) -> None:
    """Load the models before the worker reports ready, if it serves the training queue."""
    if "training" in instance.app.amqp.queues.consume_from:
        from training import worker  # loads torch

        shift = start_or_end(worker.start, sender)
        worker_shutting_down.connect(shift.stop, weak=False)
        worker_shutdown.connect(shift.join, weak=False)
