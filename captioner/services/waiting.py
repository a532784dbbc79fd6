"""Waiting for captions without taking every thread of the server, and rescuing stale ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from django.conf import settings
from django.core.cache import cache
from django.utils import timezone

from captioner.jobs.wakeup import wake_workers
from captioner.models import Caption, CaptionRequest

# Whoever waits for a worker holds a thread of the server: at most half of them may be held so.
_waiting = threading.BoundedSemaphore(max(1, settings.WEB_THREADS // 2))


def wait(request: CaptionRequest, seconds: float) -> bool:
    """Wait until nothing of a request is left to do.

    Returns:
        Whether that was so before the time was up.
    """
    return wait_while(lambda: Caption.objects.filter(request=request).unfinished().exists(), seconds)


@contextmanager
def place_to_wait() -> Iterator[bool]:
    """Whether this thread of the server may wait for a worker, until the block ends: at most half of them may."""
    place = _waiting.acquire(blocking=False)
    try:
        yield place
    finally:
        if place:
            _waiting.release()


def wait_while(unfinished: Callable[[], bool], seconds: float) -> bool:
    """Wait for up to so many seconds.

    Returns:
        Whether it has finished.
    """
    ends, pause = time.monotonic() + seconds, 0.02
    while unfinished():
        if time.monotonic() >= ends:
            return False
        time.sleep(min(pause, max(0.0, ends - time.monotonic())))
        pause = min(0.25, pause * 1.5)
    return True


def rescue_stale(captions: Iterable[Caption]) -> None:
    """Rescue the rows of a lost worker among captions that someone is looking at, and send another wake-up message
    where one may have been lost."""
    waiting = [c for c in captions if not c.finished and timezone.now() - c.created_at > timedelta(seconds=3)]
    if waiting and cache.add("stale-rescued", True, timeout=3):
        Caption.objects.reap()
        wake_workers()
