"""The registered queues. Each app registers its own when it is ready, so apps do not need to know each other."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RegisteredQueue:
    """A queue's name, which its workers consume from, and the Celery task that wakes them."""

    name: str
    wake_task: str


QUEUES: dict[str, RegisteredQueue] = {}


def register(name: str, wake_task: str) -> None:
    """Make a queue known: to the command that starts workers, to the admin, to whoever pauses and resumes it."""
    QUEUES[name] = RegisteredQueue(name, wake_task)
