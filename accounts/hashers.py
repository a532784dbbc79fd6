"""Hashing passwords, which takes a core for half a second on purpose, without starving the pages."""

from __future__ import annotations

import os
import threading

from django.conf import settings
from django.contrib.auth.hashers import PBKDF2PasswordHasher

from captioner.errors import Refused

AGAIN = 2  # seconds

_line = threading.BoundedSemaphore(max(1, settings.WEB_THREADS // 4))  # threads that hash or wait to
_hashing = threading.BoundedSemaphore(max(1, (os.cpu_count() or 1) // 2))


class BoundedPBKDF2(PBKDF2PasswordHasher):
    """Django's own; at most a quarter of a process's threads are at it, and compute on half of the cores."""

    def encode(self, password: str, salt: str, iterations: int | None = None) -> str:
        """As Django's.

        Raises:
            Refused: too many threads are at it.
        """
        if not _line.acquire(blocking=False):
            raise Refused(
                "busy",
                "too many people are signing in right now; try again in a few seconds",
                status=503,
                wait=AGAIN,
            )
        try:
            with _hashing:
                return super().encode(password, salt, iterations)
        finally:
            _line.release()
