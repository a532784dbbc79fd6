"""Queues: pause and resume them."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db import transaction

from captioner import audit
from captioner.jobs.job import clock
from captioner.jobs.wakeup import wake_workers
from captioner.models import Queue


def pause_queue(*, name: str, person: Any = None, reason: str = "") -> None:
    """Pause a queue: workers claim nothing more and finish what they hold."""
    values = {"paused": True, "reason": reason.strip()[:200], "person": person, "at": clock("default")}
    with transaction.atomic():
        Queue.objects.update_or_create(name=name, defaults=values)
        audit.record(audit.Action.SERVICE, f"queue {name}", f"paused: {reason.strip()}", person)


def resume_queue(*, name: str, person: Any = None) -> None:
    """Resume a queue, and wake its workers on commit."""
    values = {"paused": False, "reason": "", "person": person, "at": clock("default")}
    with transaction.atomic():
        Queue.objects.update_or_create(name=name, defaults=values)
        audit.record(audit.Action.SERVICE, f"queue {name}", "resumed", person)
    transaction.on_commit(partial(wake_workers, name))
