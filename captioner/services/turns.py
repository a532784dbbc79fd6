"""Fair queueing: queued captions take turns between their owners.

Start-time fair queueing (Goyal, Vin and Cheng, 1996). Each queued caption has the number of its **turn**, given once,
when it is queued, and workers claim by the lowest. Whoever has nothing queued is given the turn after the one that is
being worked at; whoever has, the turn after their own last. So the captions of two people alternate, however many one
of them has queued before the other came, and the claim reads one index from its beginning.

Captions of one **flow** follow each other: those of a user, or of an anonymous address.
"""

from typing import Any

from django.conf import settings
from django.db import connection
from django.db.models import Count, Max, QuerySet

from captioner.errors import Refused
from captioner.jobs.job import Status, clock
from captioner.models import Caption

BULK_COST = 16  # turns that a bulk caption takes: so many captions of others and of its own flow pass each
ROOM_AFTER = 30  # seconds after which there may be room in a full queue; a batch of captions takes less


def take(flow: str, count: int, *, bulk: bool) -> range:
    """The turns of so many captions that are about to be queued. Call it in the transaction that queues them: until
    its end nobody else takes turns of this flow.

    Raises:
        Refused: more of this flow would be queued then than the setting allows.
    """
    _lock(flow)
    own = {row["bulk"]: row for row in _queued(flow)}
    most = settings.MAX_QUEUED
    waiting = sum(row["count"] for row in own.values())
    if count and waiting + count > most:
        raise Refused(
            "too_many_queued",
            f"{waiting:,} of your captions are queued, and the limit is {most:,}; try again when some are finished, "
            "or cancel "
            "some",
            status=429,
            wait=ROOM_AFTER,
        )
    cost = _cost(bulk)
    # Bulk stands behind all that its flow has queued, everything else behind what is not bulk.
    start = max([current(), *(own[kind]["last"] for kind in own.keys() & {False, bulk})])
    return range(start + cost, start + cost * count + 1, cost)


def current() -> int:
    """The turn that is being worked at; while nothing is, the one before the next."""
    running = _highest(Caption.objects.filter(status=Status.RUNNING))
    if running:
        return running
    following = Caption.objects.ready(clock("default")).only("turn", "bulk").first()
    return max(0, following.turn - _cost(following.bulk)) if following else 0


def _queued(flow: str) -> QuerySet[Any, Any]:
    """How many captions of a flow are queued, bulk and others, and their last turns."""
    queued = Caption.objects.filter(status=Status.QUEUED, flow=flow).order_by()
    return queued.values("bulk").annotate(count=Count("*"), last=Max("turn"))


def _cost(bulk: bool) -> int:
    return BULK_COST if bulk else 1


def _highest(captions: QuerySet[Caption]) -> int:
    turn = captions.order_by("-turn").values_list("turn", flat=True).first()
    return turn or 0


def _lock(flow: str) -> None:
    """Let nobody else take turns of a flow until the transaction ends: both would get the same. On SQLite, there is one
    writer at a time."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"turns of {flow}"])
