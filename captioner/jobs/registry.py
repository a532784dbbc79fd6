"""The registered queues. Each app registers its own when it is ready, so apps do not need to know each other."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RegisteredQueue:
    """A queue's name, which its workers consume from, and the Celery task that wakes them."""

    name: str
    wake_task: str


QUEUES: dict[str, RegisteredQueue] = {}


def register(name: str, wake_task: str) -> None:
    """Register a queue for the worker command, the admin, and pausing and resuming."""
    QUEUES[name] = RegisteredQueue(name, wake_task)
