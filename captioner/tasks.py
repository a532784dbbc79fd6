"""What Celery carries: a wake-up message. It says that there may be work, never which; the database knows that.

A lost, duplicate or late message does no harm: workers look for work when they get one, and every few seconds anyway.
The models of a worker process live in a thread of their own (captioner/inference/engine.py), so its consumer is always
free to receive messages, answer `celery inspect` and stop when it is told to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import shared_task
from celery.signals import celeryd_after_setup, setup_logging, worker_shutdown, worker_shutting_down

from captioner.jobs.wakeup import WAKE_UP

if TYPE_CHECKING:
    from captioner.jobs.worker_process import WorkerProcess  # which loads torch

log = logging.getLogger(__name__)


@shared_task(name="captioner.wake")
def wake() -> None:
    """Wake this process's engine."""
    WAKE_UP.set()


@setup_logging.connect
def keep_our_logging(**_: Any) -> None:
    """Django's LOGGING holds in workers too; a receiver is all that Celery asks for to leave it alone."""


def run_beside_celery(instance: Any, start: Callable[[str], WorkerProcess]) -> None:
    """Start the process of a Celery worker, and see to it that it ends in order.

    Raises:
        SystemExit: it cannot start. Celery would log any other error and go on, as a worker that gets messages and does
            nothing.
    """
    # Celery handles signals from somewhat later on. Until then, SIGTERM would kill this process with work in its hands.
    instance.install_platform_tweaks(instance)
    try:
        process = start(instance.hostname)
    except Exception as error:
        log.exception("the worker cannot start")
        raise SystemExit(f"error: the worker cannot start: {type(error).__name__}: {error}") from error
    worker_shutting_down.connect(process.stop, weak=False)
    worker_shutdown.connect(process.join, weak=False)


@celeryd_after_setup.connect
def open_engine(sender: str, instance: Any, **_: Any) -> None:
    """Load the models before the worker reports ready, if it serves the captions queue."""
    if "captions" in instance.app.amqp.queues.consume_from:
        from captioner.inference.start import start  # loads torch

        run_beside_celery(instance, start)
