"""Webhook deliveries: a dead address keeps no other waiting, each try is recorded, any message can be resent."""

from __future__ import annotations

import base64
import hashlib
import hmac
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.urls import reverse
from django.utils import timezone

from captioner import services
from captioner.errors import Refused
from captioner.models import (
    Caption,
    CaptionRequest,
    DeliveryAttempt,
    Image,
    Style,
    Viewer,
    WebhookDelivery,
    WebhookHost,
)
from captioner.webhooks import client as webhooks
from captioner.workers import webhook_delivery
from tests.people import client_of, program_of

pytestmark = pytest.mark.usefixtures("both_databases")

OLD, NEW = (f"whsec_{base64.b64encode(bytes([letter]) * 24).decode()}" for letter in b"on")
Due = Callable[..., WebhookDelivery]
Sent = list[str]


@pytest.fixture
def due(db: None) -> Due:
    """A delivery whose time has come."""
    image = Image.objects.create(sha256="0" * 64, file="images/a.jpg", thumbnail="a.jpg", width=1, height=1, size=1)
    style = Style.objects.create(slug="factual", name="Factual")

    def due(url: str, owner: Any = None) -> WebhookDelivery:
        now = timezone.now()
        request = CaptionRequest.objects.create(owner=owner)
        Caption.objects.create(
            request=request,
            image=image,
            style=style,
            owner=owner,
            status="succeeded",
            finished_at=now,
            deadline_at=now + timedelta(days=1),
        )
        return WebhookDelivery.objects.create(
            request=request,
            url=url,
            host=webhooks.host_of(url),
            secret=OLD,
            not_before=now,
            deadline_at=now + webhooks.PATIENCE,
        )

    return due


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Whom the webhook deliveries called. Hosts called dead give no answer, those called broken a bad one."""
    called: Sent = []

    def post(parts: Any, body: bytes, headers: dict[str, str]) -> int:
        called.append(parts.hostname)
        if "dead" in parts.hostname:
            raise TimeoutError
        return 500 if "broken" in parts.hostname else 204

    monkeypatch.setattr(webhooks, "_post", post)
    return called


def work() -> None:
    while webhook_delivery.deliver_next():
        pass


def everything_is_due() -> None:
    WebhookDelivery.objects.filter(status="queued").update(not_before=timezone.now())


def test_one_delivery_of_a_host_is_under_way_at_a_time(due: Due, sent: Sent) -> None:
    for _ in range(3):
        due("https://slow.example.org/hook")
    other = due("https://other.example.org/")
    WebhookDelivery.objects.all().claim("another webhook delivery, which is busy with it", 1)
    work()
    assert sent == ["other.example.org"]
    other.refresh_from_db()
    assert other.status == "succeeded"


def test_a_host_without_an_answer_is_left_alone_with_all_that_is_due_to_it(due: Due, sent: Sent) -> None:
    for _ in range(20):
        due("https://dead.example.org/")
    work()
    assert sent == ["dead.example.org"] * webhook_delivery.BREAKS_AFTER
    outage = WebhookHost.objects.get()
    assert (outage.host, outage.failures) == ("dead.example.org", webhook_delivery.BREAKS_AFTER)
    first, most = webhook_delivery.LEFT_ALONE
    assert outage.open_until > timezone.now() + first / 2
    assert not WebhookDelivery.objects.filter(not_before__lt=timezone.now()).exists(), "they wait"
    everything_is_due()
    due("https://dead.example.org/another")
    work()
    assert len(sent) == webhook_delivery.BREAKS_AFTER, "nobody tries before its time"
    assert DeliveryAttempt.objects.count() == webhook_delivery.BREAKS_AFTER, "and waiting is no try"
    for _ in range(10):
        WebhookHost.objects.update(open_until=timezone.now())
        everything_is_due()
        work()
    assert len(sent) == webhook_delivery.BREAKS_AFTER + 10, "one of them finds out whether it is back"
    assert WebhookHost.objects.get().open_until <= timezone.now() + most * (1 + webhooks.JITTER)


def test_a_host_that_is_back_gets_all_that_has_waited(due: Due, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(6):
        due("https://dead.example.org/")
    work()
    monkeypatch.setattr(webhooks, "_post", lambda *_: 204)
    WebhookHost.objects.update(open_until=timezone.now())
    everything_is_due()
    work()
    assert not WebhookHost.objects.exists()
    assert set(WebhookDelivery.objects.values_list("status", flat=True)) == {"succeeded"}


def test_a_host_that_answers_whatever_it_says_is_not_left_alone(due: Due, sent: Sent) -> None:
    """Its other addresses may be good."""
    for _ in range(5):
        due("https://broken.example.org/")
    work()
    assert len(sent) == 5
    assert not WebhookHost.objects.exists()


def test_one_delivery_calls_only_those_that_have_answered_recently(due: Due, sent: Sent) -> None:
    for number in range(10):
        due(f"https://dead-{number}.example.org/")
    work()
    everything_is_due()
    due("https://good.example.org/")
    sent.clear()
    while webhook_delivery.deliver_next(steady=True):
        pass
    assert sent == ["good.example.org"]


def test_a_name_that_is_long_looked_up_is_given_up_in_time(due: Due, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: done.wait(60) and [])
    monkeypatch.setattr(webhooks, "TIMEOUT", 0.1)
    delivery = due("https://example.org/")
    work()
    done.set()
    assert "could not be resolved within" in delivery.every_try[0]["error"]


def test_the_lease_of_what_a_delivery_has_in_hand_is_renewed(due: Due, monkeypatch: pytest.MonkeyPatch) -> None:
    leases: list[Any] = []

    def post(*_: object) -> int:
        for _number in range(2):
            leases.append(WebhookDelivery.objects.get().lease_expires_at)
            webhook_delivery.renew()
        return 204

    monkeypatch.setattr(webhooks, "_post", post)
    due("https://example.org/")
    work()
    before, after = leases
    assert after > before
    webhook_delivery.renew()  # of what it no longer has, nothing
    assert WebhookDelivery.objects.get().status == "succeeded"


def test_a_try_is_written_down_before_it_is_made(due: Due, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def post(*_: Any) -> int:
        raise Killed

    monkeypatch.setattr(webhooks, "_post", post)
    delivery = due("https://example.org/")
    with pytest.raises(Killed):
        webhook_delivery.deliver_next()
    (entry,) = delivery.every_try
    assert entry["ms"] is None
    assert "its worker was lost" in entry["error"]


def test_tries_of_an_earlier_release_are_listed_before_the_others(due: Due, sent: Sent, viewer: Viewer) -> None:
    delivery = due("https://example.org/", viewer.user)
    WebhookDelivery.objects.update(log=[{"at": "2030-01-01T00:00:00+00:00", "status": 503, "error": "it", "ms": 5}])
    work()
    client = program_of(viewer.user)
    (told,) = client.get(f"/api/requests/{delivery.request_id}/deliveries/").json()
    assert [entry["status"] for entry in told["log"]] == [503, 204]
    assert told["status"] == "succeeded"


@pytest.mark.parametrize("host", ["example.org", "broken.example.org"])
def test_a_webhook_is_sent_again_whether_it_arrived_or_not(due: Due, sent: Sent, viewer: Viewer, host: str) -> None:
    delivery = due(f"https://{host}/", viewer.user)
    work()
    client = program_of(viewer.user)
    answer = client.post(f"/api/requests/{delivery.request_id}/deliveries/")
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    work()
    assert sent == [host] * 2
    assert len(delivery.every_try) == 2


def test_what_is_being_sent_is_not_sent_again_and_nobody_sends_anothers(due: Due, viewer: Viewer) -> None:
    delivery = due("https://example.org/", viewer.user)
    with pytest.raises(Refused) as refused:
        services.redeliver(Viewer(), delivery.request_id)
    assert refused.value.status == 404
    WebhookDelivery.objects.all().claim("webhook delivery", 1)
    with pytest.raises(Refused) as refused:
        services.redeliver(viewer, delivery.request_id)
    assert refused.value.code == "being_sent"


def test_administrators_send_again_and_see_every_try(due: Due, sent: Sent) -> None:
    delivery = due("https://broken.example.org/")
    work()
    client = client_of(get_user_model().objects.create_superuser("root"))
    listed = reverse("admin:captioner_webhookdelivery_changelist")
    answer = client.post(listed, {"action": "send_again", "_selected_action": [delivery.pk]}, follow=True)
    assert "1 webhooks were queued to be sent again" in answer.content.decode()
    work()
    page = client.get(reverse("admin:captioner_webhookdelivery_change", args=[delivery.pk])).content.decode()
    assert page.count("the response was 500") >= 2
    assert OLD not in page
    due("https://dead.example.org/")
    work()
    assert "dead.example.org" in client.get(reverse("admin:captioner_webhookhost_changelist")).content.decode()


def test_while_secrets_are_changed_both_sign(due: Due, viewer: Viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[tuple[bytes, dict[str, str]]] = []

    def post(parts: Any, body: bytes, headers: dict[str, str]) -> int:
        received.append((body, headers))
        return 204

    monkeypatch.setattr(webhooks, "_post", post)
    delivery = due("https://example.org/", viewer.user)
    client = program_of(viewer.user)
    address = f"/api/requests/{delivery.request_id}/deliveries/"
    assert client.post(address, {"secret": "whsec_short"}).status_code == 422
    assert client.post(address, {"secret": NEW, "previous_secret": OLD}).status_code == 202
    work()
    ((body, headers),) = received
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = []
    for secret in (NEW, OLD):
        key = base64.b64decode(secret.removeprefix("whsec_"))
        expected.append("v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode())
    assert headers["webhook-signature"] == " ".join(expected)


def test_a_request_names_both_secrets(styles: dict[str, Style], photo: bytes) -> None:
    ask: dict[str, Any] = {
        "viewer": Viewer(),
        "images": [services.Upload(photo)],
        "webhook_url": "https://example.org/",
    }
    with pytest.raises(Refused, match="webhook_secret must be"):
        services.request_captions(**ask, webhook_secret=NEW, webhook_previous_secret="whsec_short")
    services.request_captions(**ask, webhook_secret=NEW, webhook_previous_secret=OLD)
    delivery = WebhookDelivery.objects.get()
    assert (delivery.secret, delivery.previous_secret, delivery.host) == (NEW, OLD, "example.org")
