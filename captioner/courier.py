"""Delivers webhooks: claims what is due, posts it, and tries again with growing pauses."""

import logging
import threading
import time
from typing import Any

from captioner import webhooks
from captioner.jobs import clock
from captioner.models import CaptionRequest, WebhookDelivery
from captioner.serializers import RequestSerializer
from captioner.services import with_captions
from captioner.shift import insist

log = logging.getLogger(__name__)


def deliver_next() -> bool:
    """Try to deliver one webhook whose request is finished and whose time has come.

    Returns:
        Whether there was one.
    """
    for delivery in WebhookDelivery.objects.claim(threading.current_thread().name, 1):
        _deliver(delivery)
        return True
    return False


def _deliver(delivery: WebhookDelivery) -> None:
    payload = {
        "type": "captions.finished",
        "timestamp": clock("default").isoformat(),
        "data": RequestSerializer(with_captions(CaptionRequest.objects.filter(pk=delivery.request_id)).get()).data,
    }
    started = time.monotonic()
    entry: dict[str, Any] = {"at": payload["timestamp"], "status": None, "error": ""}
    try:
        entry["status"] = webhooks.deliver(delivery.url, delivery.secret, str(delivery.pk), payload)
    except webhooks.DeliveryError as error:
        entry["error"] = str(error)
    entry["ms"] = round((time.monotonic() - started) * 1000)
    insist(lambda: _file(delivery, entry))
    log.info("webhook", extra={"request": delivery.request_id, "delivery": delivery.pk, **entry})


def _file(delivery: WebhookDelivery, entry: dict[str, Any]) -> None:
    tries = [*delivery.log, entry]
    if not entry["error"]:
        delivery.succeed(log=tries)
    elif len(tries) <= len(webhooks.PAUSES):
        delivery.postpone(clock("default") + webhooks.PAUSES[len(tries) - 1], log=tries)
    else:
        delivery.fail("not_delivered", f"{len(tries)} tries failed; the last: {entry['error']}", log=tries)
