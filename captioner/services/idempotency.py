"""Idempotency keys: a repeated call returns the first call's request."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from captioner.errors import Refused
from captioner.jobs.job import clock
from captioner.models import CaptionRequest

IDEMPOTENCY = timedelta(hours=24)


@dataclass(frozen=True)
class IdempotencyKey:
    """What makes a repeated call known: the client's key, whose it is, and the digest of all that was sent."""

    scope: str
    key: str
    body_sha256: str


def earlier_request(once: IdempotencyKey) -> CaptionRequest | None:
    """The request that was made with this key in the last 24 hours.

    Raises:
        Refused: it had another body.
    """
    same = CaptionRequest.objects.filter(idempotency_scope=once.scope, idempotency_key=once.key)
    same.filter(created_at__lt=clock("default") - IDEMPOTENCY).update(idempotency_key=None, answer={})
    earlier = same.first()
    if earlier and earlier.body_sha256 != once.body_sha256:
        raise Refused(
            "idempotency_key_reused",
            "this Idempotency-Key was used for another request in the last 24 hours; use a different key for each "
            "request",
            status=422,
        )
    return earlier
