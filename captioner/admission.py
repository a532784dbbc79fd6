"""Limits how many large pictures are decoded at a time: memory is this process's scarcest resource, not threads."""

import ctypes
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings

from captioner.errors import Refused

PATIENCE = 20.0  # seconds
BIG = 4_000_000  # pixels; what fewer of them have taken is used again before long

_changed = threading.Condition()
_waiting: deque[object] = deque()
_in_flight = 0  # pixels

# glibc keeps what was freed: after six pictures of 49 megapixels, some 200 MB (benchmarks/README.md).
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


@contextmanager
def admitted(pixels: int) -> Iterator[None]:
    """Wait until so many pixels may be decoded, in the order of asking, and give the memory back afterwards.

    A picture that is larger than all that may be in flight is decoded alone.

    Raises:
        Refused: it took too long, or too many wait already.
    """
    global _in_flight
    size, ticket, ends = min(pixels, settings.DECODING_PIXELS), object(), time.monotonic() + PATIENCE

    def next_one() -> bool:
        return _waiting[0] is ticket and _in_flight + size <= settings.DECODING_PIXELS

    with _changed:
        if len(_waiting) >= max(1, settings.WEB_THREADS // 2):  # the other threads are for the rest of the site
            raise _busy()
        _waiting.append(ticket)
        try:
            if not _changed.wait_for(next_one, ends - time.monotonic()):
                raise _busy()
            _in_flight += size
        finally:
            _waiting.remove(ticket)
            _changed.notify_all()
    try:
        yield
    finally:
        if pixels >= BIG and _trim:
            _trim(0)
        with _changed:
            _in_flight -= size
            _changed.notify_all()


def _busy() -> Refused:
    detail = "too many large pictures are being decoded; nothing was changed; try again in a few seconds"
    return Refused("busy", detail, status=503, wait=5)
