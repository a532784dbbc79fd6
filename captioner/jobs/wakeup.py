"""Wakes the workers: a separate thread sends the messages and merges bursts, so that nobody waits for the broker."""

import logging
import threading

from celery import current_app as app

from captioner.jobs.registry import QUEUES

log = logging.getLogger(__name__)

WAKE_UP = threading.Event()  # of this worker process: there may be work

_due: set[str] = set()
_rung = threading.Condition()
_carrier: threading.Thread | None = None


def wake_workers(queue: str = "captions") -> None:
    """Wake the workers of a registered queue, soon.

    A lost message, with the broker or at the end of this process, costs nothing but time: workers also look for
    rows by themselves.
    """
    global _carrier
    with _rung:
        _due.add(QUEUES[queue].wake_task)
        _rung.notify()
        if _carrier is None or not _carrier.is_alive():  # the first time, and in a process that was forked since
            _carrier = threading.Thread(target=_carry, name="wake-up messages", daemon=True)
            _carrier.start()


def _carry() -> None:
    while True:
        with _rung:
            _rung.wait_for(lambda: _due)
            tasks = sorted(_due)
            _due.clear()
        for task in tasks:
            try:
                app.send_task(task, retry=False, expires=60)
            except Exception as error:  # each transport raises its own kinds
                log.warning(
                    "the broker cannot be reached; workers will find the work by polling", extra={"error": error}
                )
