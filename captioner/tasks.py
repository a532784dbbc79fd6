"""What Celery carries: a bell. It says that there may be work, never which; the database knows that.

A lost, doubled or late bell loses nothing: whoever hears one looks, and a worker looks every few seconds anyway.
The models of a worker process live in a thread of their own (captioner/worker.py), so its consumer is always free to
hear bells, answer `celery inspect` and stop when it is told to.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from celery import shared_task
from celery.signals import celeryd_after_setup, setup_logging, worker_shutdown, worker_shutting_down

log = logging.getLogger(__name__)

BELL = threading.Event()

S = TypeVar("S")


@shared_task(name="captioner.ring")
def ring() -> None:
    """Wake this process's engine."""
    BELL.set()


@setup_logging.connect
def keep_our_logging(**_: Any) -> None:
    """Django's LOGGING holds in workers too; a receiver is all that Celery asks for to leave it alone."""


def start_or_end(start: Callable[[str], S], name: str) -> S:
    """Call `start`; where it fails, end the process. Celery would log the failure and go on, as a worker that hears
    bells and does nothing.

    Raises:
        SystemExit: it failed.
    """
    try:
        return start(name)
    except Exception as error:
        log.exception("the worker cannot start")
        raise SystemExit(f"error: the worker cannot start: {type(error).__name__}: {error}") from error


@celeryd_after_setup.connect
def open_engine(sender: str, instance: Any, **_: Any) -> None:
    """Load the models before the worker reports ready, if it serves the captions queue."""
    if "captions" in instance.app.amqp.queues.consume_from:
        from captioner import worker  # loads torch

        shift = start_or_end(worker.start, sender)
        worker_shutting_down.connect(shift.stop, weak=False)  # SIGTERM: finish what is claimed, claim no more
        worker_shutdown.connect(shift.join, weak=False)
