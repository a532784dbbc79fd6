"""On SQLite, the threads of a process take turns to write.

SQLite itself lets one writer in at a time, and whoever waits sleeps for up to a tenth of a second and tries again, in
no order: with twelve clients some waited twenty times as long as most. Nor has a lock of Python's an order.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection

_change = threading.Lock()
_waiting: deque[threading.Event] = deque()  # the first of them writes


@contextmanager
def turn_to_write() -> Iterator[None]:
    """This thread's turn, until the block ends. To be taken around a transaction, never inside of one."""
    if connection.vendor != "sqlite":
        yield
        return
    mine = threading.Event()
    with _change:
        _waiting.append(mine)
        _waiting[0].set()
    try:
        mine.wait()
        yield
    finally:
        with _change:
            _waiting.remove(mine)
            if _waiting:
                _waiting[0].set()
