"""Delivers webhooks: claims due deliveries, sends them, and retries with increasing delays.

Of each host one delivery is under way at a time. A host that gives no answer, `BREAKS_AFTER` times in a row, is left
alone for a while (a circuit breaker): all its deliveries wait, one of them finds out whether it is back. So however
many are due to a dead address, they keep no others waiting.
"""

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import F, Q

from captioner.api.serializers import RequestSerializer
from captioner.jobs.job import Claim, Status, clock
from captioner.models import CaptionRequest, DeliveryAttempt, WebhookDelivery, WebhookHost
from captioner.services import with_captions
from captioner.webhooks import client as webhooks
from captioner.workers.worker_process import retry_on_lost_database

log = logging.getLogger(__name__)

BREAKS_AFTER = 3  # tries without an answer
LEFT_ALONE = (timedelta(seconds=30), timedelta(hours=1))  # first, doubled with each further failure, and at most
LONGEST = timedelta(minutes=2)  # for a delivery, with what is read and written about it; one that takes longer hangs

_in_hand: dict[uuid.UUID, Claim] = {}  # by token


def deliver_next(*, steady: bool = False) -> bool:
    """Try to deliver one webhook whose request is finished and whose time has come.

    Args:
        steady: only to hosts that have answered recently, so that those that may not keep them from nobody.

    Returns:
        Whether there was one.
    """
    deliveries = WebhookDelivery.objects.all()
    if steady:
        deliveries = deliveries.to_steady_hosts()
    for delivery in deliveries.claim(threading.current_thread().name, 1):
        with _held(delivery):
            _deliver(delivery)
        return True
    return False


def renew() -> None:
    """Extend the leases on what this process's webhook deliveries have in hand."""
    for claim in list(_in_hand.values()):
        claim.renew()


@contextmanager
def _held(delivery: WebhookDelivery) -> Iterator[None]:
    token = delivery.lease_token
    assert token is not None
    _in_hand[token] = Claim(WebhookDelivery.objects.all(), token, LONGEST)
    try:
        yield
    finally:
        del _in_hand[token]


def _deliver(delivery: WebhookDelivery) -> None:
    now = clock("default")
    host = webhooks.host_of(delivery.url)
    if outage := WebhookHost.objects.filter(host=host, open_until__gt=now).first():
        delivery.postpone(outage.open_until, host=host)
        return
    payload = {
        "type": "captions.finished",
        "timestamp": now.isoformat(),
        "data": RequestSerializer(with_captions(CaptionRequest.objects.filter(pk=delivery.request_id)).get()).data,
    }
    attempt = DeliveryAttempt.objects.create(delivery=delivery, at=now)
    started = time.monotonic()
    found: dict[str, Any] = {"status": None, "error": ""}
    answered = True
    try:
        found["status"] = webhooks.deliver(
            delivery.url, delivery.secret, str(delivery.pk), payload, delivery.previous_secret
        )
    except webhooks.DeliveryError as error:
        found["error"], answered = str(error), error.answered
    found["ms"] = round((time.monotonic() - started) * 1000)
    retry_on_lost_database(lambda: _file(delivery, attempt, found, host, answered=answered))
    log.info("webhook", extra={"request": delivery.request_id, "delivery": delivery.pk, **found})


def _file(
    delivery: WebhookDelivery, attempt: DeliveryAttempt, found: dict[str, Any], host: str, *, answered: bool
) -> None:
    now = clock("default")
    with transaction.atomic():
        # All that is changed below, in one order: others may change the deliveries of a host at the same time.
        others = Q(host=host, status=Status.QUEUED)
        WebhookDelivery.objects.filter(Q(pk=delivery.pk) if answered else Q(pk=delivery.pk) | others).lock()
        DeliveryAttempt.objects.filter(pk=attempt.pk).update(**found)
        failed = delivery.failed_tries + 1
        if not found["error"]:
            delivery.succeed(host=host)
        elif failed <= len(webhooks.PAUSES):
            pause = webhooks.jittered(webhooks.PAUSES[failed - 1])
            delivery.postpone(now + pause, failed_tries=failed, host=host)
        else:
            detail = f"{failed} attempts failed; last error: {found['error']}"
            delivery.fail("not_delivered", detail, failed_tries=failed, host=host)
        if answered:
            WebhookHost.objects.filter(host=host).delete()
        else:
            _leave_alone(host, now, found["error"])


def _leave_alone(host: str, now: datetime, error: str) -> None:
    """Count a failure of a host; after some, let all that is due to it wait."""
    outage, _ = WebhookHost.objects.get_or_create(host=host, defaults={"open_until": now})
    WebhookHost.objects.filter(pk=outage.pk).update(failures=F("failures") + 1, error=error)
    more = outage.failures + 1 - BREAKS_AFTER
    if more >= 0:
        first, most = LEFT_ALONE
        until = now + webhooks.jittered(min(most, first * 2 ** min(more, 20)))
        WebhookHost.objects.filter(pk=outage.pk).update(open_until=until)
        waiting = WebhookDelivery.objects.filter(host=host, status=Status.QUEUED, not_before__lt=until)
        waiting.update(not_before=until)
