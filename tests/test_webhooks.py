"""Webhooks: signed as Standard Webhooks says, sent when all is finished, tried again, and never to our own network."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from captioner import services
from captioner.errors import Refused
from captioner.models import Caption, CaptionRequest, Style, Viewer, WebhookDelivery
from captioner.webhooks import client as webhooks
from captioner.workers import webhook_delivery
from tests.servers import free_port

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


@dataclass
class Receiver:
    """A client's server: what it has received, and how it answers."""

    port: int
    answer: Callable[[BaseHTTPRequestHandler], None]
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?client=7"


def with_status(status: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def receiver(server: ThreadingHTTPServer, settings: Any) -> Receiver:
    """A receiver on this machine, which the setting allows."""
    settings.WEBHOOKS_TO_PRIVATE_NETWORKS = True
    receiver = Receiver(server.server_port, with_status(204))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.received.append(({k.lower(): v for k, v in self.headers.items()} | {"path": self.path}, body))
            receiver.answer(self)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server.RequestHandlerClass = Handler
    return receiver


@pytest.fixture
def ask(styles: dict[str, Style], photo: bytes) -> Callable[..., CaptionRequest]:
    """Ask for captions of one photo in all styles, with a webhook."""

    def ask(url: str, **more: Any) -> CaptionRequest:
        images = [services.Upload(photo)]
        return services.request_captions(viewer=Viewer(), images=images, styles=["all"], webhook_url=url, **more)

    return ask


def finish(request: CaptionRequest, text: str = "a caption") -> None:
    for row in Caption.objects.claim("w", 8):
        assert row.succeed(text=text)


def test_a_delivery_is_signed_as_standard_webhooks_says(receiver: Receiver, ask: Callable[..., CaptionRequest]) -> None:
    key = bytes(range(24))
    request = ask(receiver.url, webhook_secret="whsec_" + base64.b64encode(key).decode())
    finish(request, "Grüße — a caption")
    assert webhook_delivery.deliver_next()
    ((headers, body),) = receiver.received
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 300
    assert headers["webhook-id"] == str(request.webhook.pk)
    assert headers["content-type"] == "application/json"
    assert headers["host"] == f"127.0.0.1:{receiver.port}"
    assert headers["path"] == "/hook?client=7"


def test_a_delivery_says_what_became_of_each_caption(receiver: Receiver, ask: Callable[..., CaptionRequest]) -> None:
    request = ask(receiver.url)
    finish(request)
    assert webhook_delivery.deliver_next()
    message = json.loads(receiver.received[0][1])
    assert message["type"] == "captions.finished"
    assert datetime.fromisoformat(message["timestamp"])
    assert message["data"]["id"] == str(request.pk)
    assert {caption["id"] for caption in message["data"]["captions"]} == {str(c.pk) for c in request.captions.all()}
    assert {caption["text"] for caption in message["data"]["captions"]} == {"a caption"}
    delivery = WebhookDelivery.objects.get()
    assert delivery.status == "succeeded"
    assert [entry["status"] for entry in delivery.every_try] == [204]


def test_it_is_delivered_after_the_last_caption_has_ended_and_once(
    receiver: Receiver, ask: Callable[..., CaptionRequest]
) -> None:
    ask(receiver.url)
    assert not webhook_delivery.deliver_next()
    rows = Caption.objects.claim("w", 8)
    rows[0].succeed(text="a caption")
    rows[1].fail("bad", "It is bad.")
    assert not webhook_delivery.deliver_next(), "one is still in work"
    services.cancel_caption(Viewer(), rows[2].pk)
    assert webhook_delivery.deliver_next()
    assert not webhook_delivery.deliver_next()
    statuses = [caption["status"] for caption in json.loads(receiver.received[0][1])["data"]["captions"]]
    assert sorted(statuses) == ["canceled", "failed", "succeeded"]


def test_a_delivery_is_tried_again_with_growing_pauses_and_then_given_up(
    receiver: Receiver, ask: Callable[..., CaptionRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.answer = with_status(503)
    finish(ask(receiver.url))
    monkeypatch.setattr(webhook_delivery, "clock", lambda using: NOON)
    pauses = []
    while webhook_delivery.deliver_next():
        delivery = WebhookDelivery.objects.get()
        if not delivery.finished:
            assert not webhook_delivery.deliver_next(), "not before its time"
            pauses.append(delivery.not_before - NOON)
            assert (delivery.status, delivery.attempts) == ("queued", 0)
            WebhookDelivery.objects.update(not_before=delivery.created_at)
    for pause, wanted in zip(pauses, webhooks.PAUSES, strict=True):
        assert wanted <= pause <= wanted * (1 + webhooks.JITTER)
    assert tuple(pauses) != webhooks.PAUSES, "what failed together is not tried again together"
    assert sum(webhooks.PAUSES, timedelta()) > timedelta(days=2)
    assert (delivery.status, delivery.error_code) == ("failed", "not_delivered")
    assert len(delivery.every_try) == len(receiver.received) == len(webhooks.PAUSES) + 1
    assert {headers["webhook-id"] for headers, _ in receiver.received} == {str(delivery.pk)}, "a repetition says so"
    assert "503" in delivery.error_detail


def test_a_delivery_that_succeeds_at_last_stays_so(receiver: Receiver, ask: Callable[..., CaptionRequest]) -> None:
    receiver.answer = with_status(500)
    finish(ask(receiver.url))
    assert webhook_delivery.deliver_next()
    receiver.answer = with_status(200)
    WebhookDelivery.objects.update(not_before=NOON.replace(year=2020))
    assert webhook_delivery.deliver_next()
    delivery = WebhookDelivery.objects.get()
    assert delivery.status == "succeeded"
    assert [(entry["status"], bool(entry["error"])) for entry in delivery.every_try] == [(None, True), (200, False)]


def test_a_delivery_that_is_lost_leaves_its_delivery_to_another(
    receiver: Receiver, ask: Callable[..., CaptionRequest]
) -> None:
    finish(ask(receiver.url))
    (lost,) = WebhookDelivery.objects.claim("webhook delivery", 1)
    assert not webhook_delivery.deliver_next()
    WebhookDelivery.objects.update(lease_expires_at=NOON.replace(year=2020))
    WebhookDelivery.objects.reap()
    assert webhook_delivery.deliver_next()
    assert not lost.succeed()


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.answer = with_status(302, location=f"http://127.0.0.1:{receiver.port}/elsewhere")
    with pytest.raises(webhooks.DeliveryError, match="redirects are not followed"):
        webhooks.deliver(receiver.url, webhooks.check_secret(""), "id", {})
    assert len(receiver.received) == 1


def drip(handler: BaseHTTPRequestHandler) -> None:
    """Answer for ever, each byte well before any timeout."""
    try:
        while True:
            handler.wfile.write(b"H")
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        handler.close_connection = True


def say_nothing(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.recv(1)  # until the other side has had enough


@pytest.mark.parametrize("answer", [drip, say_nothing])
def test_a_server_that_is_too_slow_is_given_up(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, answer: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT", 0.3)
    receiver.answer = answer
    with pytest.raises(webhooks.DeliveryError, match="no response within"):
        webhooks.deliver(receiver.url, webhooks.check_secret(""), "id", {})


def test_an_answer_without_end_is_not_read(receiver: Receiver) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        drip(handler)

    receiver.answer = endless
    assert webhooks.deliver(receiver.url, webhooks.check_secret(""), "id", {}) == 200


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 99999 no\r\n", b"x" * 5000])
def test_an_answer_that_is_not_http_is_a_failed_delivery(receiver: Receiver, answer: bytes) -> None:

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(answer)

    receiver.answer = reply
    with pytest.raises(webhooks.DeliveryError, match="not HTTP"):
        webhooks.deliver(receiver.url, webhooks.check_secret(""), "id", {})


def test_nobody_listening_is_a_failed_delivery(settings: Any) -> None:
    settings.WEBHOOKS_TO_PRIVATE_NETWORKS = True
    with pytest.raises(webhooks.DeliveryError, match="refused"):
        webhooks.deliver(f"http://127.0.0.1:{free_port()}/", webhooks.check_secret(""), "id", {})


def test_over_tls_the_certificate_must_be_good_for_the_name(
    receiver: Receiver, server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl; apt-get install openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate)]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)

    def deliver(name: str) -> int:
        return webhooks.deliver(f"https://{name}:{receiver.port}/", webhooks.check_secret(""), "id", {})

    with pytest.raises(webhooks.DeliveryError, match="self-signed"):
        deliver("localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with pytest.raises(webhooks.DeliveryError, match="IP address mismatch"):
        deliver("127.0.0.1")
    assert receiver.received == []
    assert deliver("localhost") == 204


PRIVATE = (
    "127.0.0.1",
    "192.0.0.192",
    "192.31.196.1",
    "192.88.99.1",
    "::ffff:93.184.216.34",
    "64:ff9b::5db8:d822",
    "2002:5db8:d822::1",
    "3fff::1",
    "5f00::1",
    "100:0:0:1::1",
    "2001:4:112::1",
    "10.1.2.3",
    "192.168.0.1",
    "172.16.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "fec0::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:a9fe:a9fe",
    "::127.0.0.1",
    "2002:7f00:1::",
    "2002:c0a8:1::1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "2001:0:0:0:0:0:80ff:fffe",
)


@pytest.mark.parametrize(
    "host",
    [
        *(f"[{address}]" if ":" in address else address for address in PRIVATE),
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "0",
        "localhost",
        "LOCALHOST.",
        "api.localhost",
        "printer.local",
        "metadata.google.internal",
    ],
)
def test_an_address_that_is_plainly_private_is_refused_when_it_is_named(host: str) -> None:
    for url in (f"http://{host}/", f"https://{host}:8443/hook"):
        with pytest.raises(Refused, match="private network"):
            webhooks.check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/",
        "file:///etc/passwd",
        "example.org/hook",
        "http://",
        "http://user@example.org/",
        "http://user:password@example.org/",
        "http://example.org:0/",
        "http://example.org:99999/",
        "http://[::1",
        "http://example.org/a b",
        "http://example.org/\r\nx: y",
        "http://exämple.org/",
        "http://example.org/" + "a" * 2000,
    ],
)
def test_what_is_no_address_of_a_webhook_is_refused(url: str) -> None:
    with pytest.raises(Refused, match="webhook_url cannot be used") as refused:
        webhooks.check_url(url)
    assert refused.value.status == 422


@pytest.mark.parametrize(
    "url",
    ["http://example.org", "https://example.org:8443/hook?a=%20b", "http://93.184.216.34/", "http://[2606:4700::1]/"],
)
def test_public_addresses_are_accepted(url: str) -> None:
    webhooks.check_url(url)


@pytest.mark.parametrize("private", PRIVATE)
def test_a_name_that_leads_into_a_private_network_is_not_connected_to(
    private: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One private address among public ones is enough, so that no choice between them can be exploited."""

    def resolve(host: str, port: int, **_: object) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port)),
            (socket.AF_INET6 if ":" in private else socket.AF_INET, socket.SOCK_STREAM, 6, "", (private, port)),
        ]

    def connect(*_: object, **__: object) -> None:
        pytest.fail("it was connected to")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    webhooks.check_url("http://innocent.example.org/")
    with pytest.raises(webhooks.DeliveryError, match="private network"):
        webhooks.deliver("http://innocent.example.org/", webhooks.check_secret(""), "id", {})


def test_the_connection_goes_to_the_very_address_that_was_checked(
    receiver: Receiver, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is resolved a second time may lead elsewhere by then."""
    answers = iter([("127.0.0.1", receiver.port), ("203.0.113.1", receiver.port)])

    def resolve(host: str, port: int, *_: object, **__: object) -> list[Any]:
        if host != "changing.example.org":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", next(answers))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = f"http://changing.example.org:{receiver.port}/"
    assert webhooks.deliver(url, webhooks.check_secret(""), "id", {}) == 204
    assert receiver.received[0][0]["host"] == f"changing.example.org:{receiver.port}"
    assert next(answers)[0] == "203.0.113.1", "it was resolved once"


def test_a_name_that_does_not_exist_is_a_failed_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(webhooks.DeliveryError, match="cannot be resolved"):
        webhooks.deliver("http://nowhere.example.org/", webhooks.check_secret(""), "id", {})


@pytest.mark.parametrize("secret", ["abc", "whsec_", "whsec_!!!!", "whsec_" + base64.b64encode(b"short").decode()])
def test_a_weak_or_malformed_secret_is_refused(secret: str) -> None:
    with pytest.raises(Refused, match="whsec_"):
        webhooks.check_secret(secret)


def test_a_secret_is_made_up_where_none_is_given() -> None:
    assert webhooks.check_secret("") != webhooks.check_secret("")
    assert webhooks.check_secret(secret := webhooks.check_secret("")) == secret
