"""Sends webhook deliveries again."""

from __future__ import annotations

import uuid

from django.db.models import QuerySet

from captioner.errors import Refused
from captioner.jobs.job import clock
from captioner.models import CaptionRequest, DeliveryQuerySet, Viewer, WebhookDelivery
from captioner.services.visibility import not_found
from captioner.webhooks import client as webhooks


def redeliver(viewer: Viewer, pk: uuid.UUID, *, secret: str = "", previous_secret: str = "") -> WebhookDelivery:
    """Send a request's webhook again, now and with all tries before it, whether it arrived, was given up or waits.

    Args:
        secret: signs it from now on; the one it had, if empty.
        previous_secret: signs it too; of no meaning without `secret`.

    Raises:
        Refused: no such request, it has no webhook or one that is being sent at this moment, or a bad secret.
    """
    delivery = WebhookDelivery.objects.filter(request__in=CaptionRequest.objects.filter(viewer.changeable()))
    delivery = delivery.filter(request=pk)
    if not delivery.exists():
        raise not_found("webhook of a request", pk)
    changes = {}
    if secret:
        changes["secret"] = webhooks.check_secret(secret)
        changes["previous_secret"] = webhooks.check_secret(previous_secret) if previous_secret else ""
    if not redeliver_all(delivery, **changes):
        raise Refused("being_sent", "the webhook is being sent right now; see its attempts", status=409)
    return delivery.get()


def redeliver_all(deliveries: QuerySet[WebhookDelivery], **changes: str) -> int:
    """Send webhooks again, as `redeliver` does, but for those that are being sent at this moment.

    Returns:
        How many that are.
    """
    now = clock("default")
    return (
        DeliveryQuerySet(WebhookDelivery)
        .filter(pk__in=deliveries.order_by().values("pk"))
        .send_again(now, now + webhooks.PATIENCE, **changes)
    )
