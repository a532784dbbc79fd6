"""Errors that are shown to the user."""

import errno
import os
from pathlib import PurePath
from typing import Any


class Refused(Exception):
    """A request that cannot be met: a stable code, a sentence that names cause and remedy, and an HTTP status.

    `extra` are further members of the API's problem document, such as the field that is wrong; `wait`, in seconds, is
    sent as Retry-After too.
    """

    def __init__(self, code: str, detail: str, *, status: int = 400, **extra: Any) -> None:
        super().__init__(detail)
        self.code, self.detail, self.status, self.extra = code, detail, status, extra


def is_full(error: OSError) -> bool:
    """Whether it says that a disk takes no more."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def cause_of(error: Exception) -> str:
    """The part of an error that may be shown: of a file only its name, never its path on this server."""
    if not isinstance(error, OSError):
        return str(error)
    cause = os.strerror(error.errno) if error.errno else type(error).__name__
    named = isinstance(error.filename, str | bytes)
    return f"{cause}: {PurePath(os.fsdecode(error.filename)).name}" if named else cause
