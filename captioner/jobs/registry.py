"""The registered queues. Each app registers its own when it is ready, so apps do not need to know each other."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RegisteredQueue:
    """A queue.

    name: its workers consume from it.
    wake_task: the Celery task that wakes them.
    process: the dotted path, since importing it loads torch, of the function that makes a `WorkerProcess` of a name.
    """

    name: str
    wake_task: str
    process: str


QUEUES: dict[str, RegisteredQueue] = {}


def register(queue: RegisteredQueue) -> None:
    """Register a queue for the worker command, wake-up messages, the admin, and pausing and resuming."""
    QUEUES[queue.name] = queue
