"""What Celery carries: a bell. It says that there may be work, never which; the database knows that.

A lost, doubled or late bell loses nothing: whoever hears one looks, and a worker looks every few seconds anyway.
The models of a worker process live in a thread of their own (captioner/worker.py), so its consumer is always free to
hear bells, answer `celery inspect` and stop when it is told to.
"""

import threading
from typing import Any

from celery import shared_task
from celery.signals import celeryd_after_setup, setup_logging, worker_shutdown, worker_shutting_down

BELL = threading.Event()


@shared_task(name="captioner.ring")
def ring() -> None:
    """Wake this process's engine."""
    BELL.set()


@setup_logging.connect
def keep_our_logging(**_: Any) -> None:
    """Django's LOGGING holds in workers too; a receiver is all that Celery asks for to leave it alone."""


@celeryd_after_setup.connect
def open_engine(sender: str, instance: Any, **_: Any) -> None:
    """Load the models before the worker reports ready, if it serves the captions queue."""
    if "captions" in instance.app.amqp.queues.consume_from:
        from captioner import worker  # loads torch

        worker.start(sender)
        worker_shutting_down.connect(worker.stop, weak=False)  # SIGTERM: finish what is claimed, claim no more
        worker_shutdown.connect(worker.join, weak=False)
