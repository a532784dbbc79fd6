"""Wakes the workers: a separate thread sends the messages and merges bursts, so that nobody waits for the broker."""

import logging
import threading

from celery import current_app as app

from captioner.jobs.registry import QUEUES

log = logging.getLogger(__name__)

WAKE_UP = threading.Event()  # of this worker process: there may be work

_due: set[str] = set()  # names of queues
_condition = threading.Condition()
_sender: threading.Thread | None = None


def wake_workers(queue: str = "captions") -> None:
    """Wake the workers of a registered queue, soon.

    A lost message, with the broker or at the end of this process, costs nothing but time: workers also look for
    rows by themselves.
    """
    global _sender
    with _condition:
        _due.add(queue)
        _condition.notify()
        if _sender is None or not _sender.is_alive():  # the first time, and in a process that was forked since
            _sender = threading.Thread(target=_send, name="wake-up messages", daemon=True)
            _sender.start()


def _send() -> None:
    while True:
        with _condition:
            _condition.wait_for(lambda: _due)
            queues = sorted(_due)
            _due.clear()
        for queue in queues:
            try:
                app.send_task(QUEUES[queue].wake_task, queue=queue, retry=False, expires=60)
            except Exception as error:  # each transport raises its own kinds
                log.warning(
                    "the broker cannot be reached; workers will find the work by polling", extra={"error": error}
                )
