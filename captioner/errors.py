"""What a user is told when something cannot be done."""

from typing import Any


class Refused(Exception):
    """A request that cannot be met: a stable code, a sentence that names cause and remedy, and an HTTP status.

    `extra` are further members of the API's problem document, such as the field that is wrong; `wait`, in seconds, is
    sent as Retry-After too.
    """

    def __init__(self, code: str, detail: str, *, status: int = 400, **extra: Any) -> None:
        super().__init__(detail)
        self.code, self.detail, self.status, self.extra = code, detail, status, extra
