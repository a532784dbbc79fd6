"""On SQLite, the threads of a process take turns to write.

SQLite itself lets one writer in at a time, and whoever waits sleeps for up to a tenth of a second and tries again, in
no order: with twelve clients some waited twenty times as long as most.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection

_turn = threading.Lock()


@contextmanager
def turn_to_write() -> Iterator[None]:
    """This thread's turn, until the block ends. To be taken around a transaction, never inside of one."""
    if connection.vendor != "sqlite":
        yield
        return
    with _turn:
        yield
