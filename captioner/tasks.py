"""What Celery carries: a wake-up message. It says that there may be work, never which; the database knows that.

A lost, duplicate or late message does no harm: workers look for work when they get one, and every few seconds anyway.
The models of a worker process live in a thread of their own (captioner/inference/engine.py), so its consumer is always
free to receive messages, answer `celery inspect` and stop when it is asked to.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import shared_task
from celery.signals import celeryd_after_setup, setup_logging, worker_shutdown, worker_shutting_down
from django.utils.module_loading import import_string

from captioner.jobs.registry import QUEUES, RegisteredQueue
from captioner.jobs.wakeup import WAKE_UP

if TYPE_CHECKING:
    from captioner.workers.worker_process import WorkerProcess  # which loads torch

log = logging.getLogger(__name__)


def wake() -> None:
    """Wake this process's engine."""
    WAKE_UP.set()


for _queue in QUEUES.values():
    shared_task(name=_queue.wake_task)(wake)


@setup_logging.connect
def keep_our_logging(**_: Any) -> None:
    """Django's LOGGING holds in workers too; a receiver is all that Celery asks for to leave it alone."""


@celeryd_after_setup.connect
def open_engine(sender: str, instance: Any, **_: Any) -> None:
    """Load the models before the worker reports ready, and see to it that its process ends in order.

    Raises:
        SystemExit: it cannot start. Celery would log any other error and go on, as a worker that gets messages and does
            nothing.
    """
    for queue in QUEUES.values():
        if queue.name in instance.app.amqp.queues.consume_from:
            _open(queue, instance)


def _open(queue: RegisteredQueue, instance: Any) -> None:
    # Celery handles signals from somewhat later on. Until then, SIGTERM would kill this process with work in its hands.
    instance.install_platform_tweaks(instance)
    try:
        process: WorkerProcess = import_string(queue.process)(instance.hostname)
        process.start()
    except ValueError as error:  # a model cannot be loaded; the message names the cause and the remedy
        raise SystemExit(f"error: {error}") from error
    except Exception as error:
        log.exception("the worker cannot start")
        raise SystemExit(f"error: the worker cannot start: {type(error).__name__}: {error}") from error
    worker_shutting_down.connect(process.stop, weak=False)
    worker_shutdown.connect(process.join, weak=False)
