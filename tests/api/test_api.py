"""The HTTP API as a program uses it: real photos, the embedded models, a real database."""

import base64
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from captioner import services
from captioner.api.serializers import RequestSerializer
from captioner.inference.engine import CaptionEngine
from captioner.models import SILENCE, Caption, CaptionRequest, Image, Style, Viewer, WebhookDelivery, Worker
from clipcap.options import UNSURE_BELOW
from tests.api.asking import URL, all_pages, another, ask, problem, solid, upload

pytestmark = [pytest.mark.django_db, pytest.mark.small_models]


# From upload to caption


@pytest.mark.embedded_models
def test_an_uploaded_photo_is_captioned_in_every_style(
    client: Client, styles: dict[str, Style], engine: CaptionEngine, photo: bytes
) -> None:
    answer = client.post(URL, {"image": upload(photo, "bench.jpg"), "style": "all", "captions": "3"})

    assert answer.status_code == 202
    made = answer.json()
    assert answer["Location"] == made["url"] == f"http://testserver/api/requests/{made['id']}/"
    assert answer["Retry-After"] == "1"
    assert made["status"] == "queued"
    assert {caption["style"] for caption in made["captions"]} == set(styles)
    first = client.get(made["captions"][0]["url"])
    assert (first.json()["status"], first["Retry-After"]) == ("queued", "1")

    while engine.work():
        pass

    done = client.get(made["url"])
    assert "Retry-After" not in done
    assert done.json()["status"] == "succeeded"
    for caption in done.json()["captions"]:
        assert caption == client.get(caption["url"]).json()
        assert len(caption["text"].split()) > 3
        assert caption["log_probability"] < 0
        assert len(caption["alternatives"]) == 2
        assert 0 < caption["confidence"] < 1
        assert (caption["unsure"], caption["withheld"]) == (caption["confidence"] < UNSURE_BELOW, None)
        assert (caption["version"], caption["name"], caption["error"]) == (1, "bench.jpg", None)
        assert caption["timings"]["total_ms"] >= caption["timings"]["queued_ms"] >= 0
        assert caption["timings"]["decode_ms"] > 0
        assert caption["options"]["captions"] == 3


@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "a"}])
def test_a_new_request_is_answered_as_it_is_read_later_and_takes_few_queries(
    as_ada: Client, styles: dict[str, Style], photo: bytes, key: dict[str, str]
) -> None:
    form = {"style": "all", "webhook_url": "https://example.com/hook", "min_confidence": "0.4", "bulk": "true"}
    with CaptureQueriesContext(connection) as queries:
        answer = as_ada.post(URL, {"image": [upload(photo), upload(another(photo))], **form}, headers=key)
    assert answer.status_code == 202
    made = answer.json()
    assert made.pop("webhook")["url"] == form["webhook_url"]
    assert made == as_ada.get(made["url"]).json()
    assert len(made["captions"]) == 6
    asked = [query["sql"] for query in queries if "SAVEPOINT" not in query["sql"]]
    assert len(asked) <= (21 if key else 17), asked


def test_images_come_as_files_ids_and_base64_in_one_request(
    as_ada: Client, styles: dict[str, Style], photo: bytes
) -> None:
    first = ask(as_ada, photo)["captions"][0]["image"]
    encoded = base64.b64encode(another(photo)).decode()

    made = ask(as_ada, photo, image_id=first, image_base64=f"data:image/jpeg;base64,{encoded}")

    assert len(made["captions"]) == 3
    assert Image.objects.count() == 2  # the file and the id are one picture


def test_answers_tell_which_image_they_are_about_and_come_as_asked(
    as_ada: Client, viewer: Viewer, styles: dict[str, Style], engine: CaptionEngine, photo: bytes
) -> None:
    first = ask(as_ada, photo)["captions"][0]["image"]
    pictures = [solid(colour) for colour in ("red", "green", "blue", "black", "white")]
    named = [{"data": base64.b64encode(data).decode(), "name": f"{n}.png"} for n, data in enumerate(pictures)]
    body = {"image_id": first, "image_base64": [*named, named[1]["data"]], "style": ["romantic", "factual"]}
    made = as_ada.post(URL, body, "application/json").json()
    names = ["", "0.png", "1.png", "2.png", "3.png", "4.png", ""]
    asked = [(index, name, style) for index, name in enumerate(names) for style in ("romantic", "factual")]

    def summary(captions: list[dict[str, Any]]) -> list[tuple[int, str, str]]:
        return [(caption["index"], caption["name"], caption["style"]) for caption in captions]

    assert summary(made["captions"]) == summary(as_ada.get(made["url"]).json()["captions"]) == asked
    assert made["captions"][4]["image"] == made["captions"][12]["image"]  # sent twice, captioned twice
    for ordering in ("created_at", "-created_at"):
        listed = all_pages(as_ada, f"{URL}?request={made['id']}&page_size=4&ordering={ordering}")
        assert summary(listed) == asked
    while engine.work():
        pass
    payload = RequestSerializer(services.get_request(viewer, made["id"])).data  # a webhook's
    assert summary(payload["captions"]) == asked


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value]], ids=["alone", "in a list"])
def test_json_brings_images_as_base64_or_id(
    client: Client, styles: dict[str, Style], photo: bytes, wrap: Callable[[str], Any]
) -> None:
    body = {"image_base64": wrap(base64.b64encode(photo).decode()), "style": wrap("humorous"), "bulk": True}
    made = client.post(URL, body, content_type="application/json").json()

    again = client.post(
        URL, {"image_id": wrap(made["captions"][0]["image"]), "seed": 1, "method": "nucleus"}, "application/json"
    ).json()

    assert [caption["style"] for caption in made["captions"]] == ["humorous"]
    assert [caption["style"] for caption in again["captions"]] == ["factual"]  # the default one
    assert again["captions"][0]["image"] == made["captions"][0]["image"]
    assert again["captions"][0]["options"]["seed"] == 1


def test_a_deadline_is_kept(client: Client, styles: dict[str, Style], photo: bytes) -> None:
    ask(client, photo, deadline_seconds="60")

    caption = Caption.objects.get()
    assert (caption.deadline_at - caption.created_at).total_seconds() == pytest.approx(60)


def test_ten_lines_of_python_are_enough(
    live_server: Any, transactional_db: None, styles: dict[str, Style], engine: CaptionEngine, photo: bytes
) -> None:
    import requests

    answer = requests.post(
        f"{live_server.url}/api/captions/", files={"image": photo}, data={"style": "all"}, timeout=120
    )
    answer.raise_for_status()
    while engine.work():
        pass
    made = requests.get(answer.headers["Location"], timeout=120).json()

    assert [caption["status"] for caption in made["captions"]] == ["succeeded"] * 3


# Waiting


@pytest.mark.django_db(transaction=True)
def test_who_waits_gets_the_finished_captions(
    client: Client, styles: dict[str, Style], engine: CaptionEngine, photo: bytes
) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            engine.work() or stop.wait(0.05)
        connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        answer = client.post(URL, {"image": upload(photo)}, headers={"Prefer": "respond-async, wait=60"})
    finally:
        stop.set()
        thread.join()

    assert answer.status_code == 200
    assert answer["Preference-Applied"] == "wait=60"
    assert answer.json()["status"] == "succeeded"
    assert answer.json()["captions"][0]["text"]


def test_who_waits_in_vain_is_told_to_poll(client: Client, styles: dict[str, Style], photo: bytes) -> None:
    answer = client.post(URL, {"image": upload(photo)}, headers={"Prefer": "wait=0"})

    assert (answer.status_code, answer["Preference-Applied"], answer["Retry-After"]) == (202, "wait=0", "1")


def test_at_most_half_the_threads_wait(client: Client, styles: dict[str, Style], photo: bytes) -> None:
    held = 0
    while services.waiting._waiting.acquire(blocking=False):
        held += 1
    try:
        answer = client.post(URL, {"image": upload(photo)}, headers={"Prefer": "wait=60"})
    finally:
        for _ in range(held):
            services.waiting._waiting.release()

    assert held == django_settings.WEB_THREADS // 2
    assert answer.status_code == 202
    assert "Preference-Applied" not in answer


# Once


def test_a_repetition_gets_the_first_answer(client: Client, styles: dict[str, Style], photo: bytes) -> None:
    headers = {"Idempotency-Key": "my-first"}
    first = client.post(URL, {"image": upload(photo), "captions": "1"}, headers=headers)
    second = client.post(URL, {"captions": "1", "image": upload(photo, "renamed.jpg")}, headers=headers)

    assert (second.status_code, second.json()) == (first.status_code, first.json())
    assert second["Location"] == first["Location"]
    assert CaptionRequest.objects.count() == 1


def test_a_key_is_good_for_one_body(client: Client, styles: dict[str, Style], photo: bytes) -> None:
    headers = {"Idempotency-Key": "my-first"}
    client.post(URL, {"image": upload(photo)}, headers=headers)

    for changed in ({"image": upload(another(photo))}, {"style": "humorous"}, {"min_confidence": "0.5"}):
        other = {"image": upload(photo)} | changed
        problem(client.post(URL, other, headers=headers), 422, "idempotency_key_reused")
    assert CaptionRequest.objects.count() == 1


def test_keys_of_different_people_do_not_meet(
    client: Client, token: dict[str, str], styles: dict[str, Style], photo: bytes
) -> None:
    ids = {
        client.post(URL, {"image": upload(photo)}, headers={"Idempotency-Key": "1", **who}).json()["id"]
        for who in ({}, token)
    }
    elsewhere = client.post(
        URL, {"image": upload(photo)}, headers={"Idempotency-Key": "1"}, REMOTE_ADDR="192.0.2.7"
    ).json()["id"]

    assert len(ids | {elsewhere}) == 3


# Webhooks


def test_a_webhook_is_shown_with_its_secret_once(
    client: Client, styles: dict[str, Style], photo: bytes, settings: Any
) -> None:
    made = ask(client, photo, webhook_url="https://example.com/hook")

    assert made["webhook"]["url"] == "https://example.com/hook"
    assert made["webhook"]["secret"].startswith("whsec_")
    assert "secret" not in client.get(made["url"]).content.decode()
    log = client.get(f"{made['url']}deliveries/")
    assert [delivery["status"] for delivery in log.json()] == ["queued"]
    assert "whsec_" not in log.content.decode()
    assert WebhookDelivery.objects.get().secret == made["webhook"]["secret"]


def test_a_webhook_into_a_private_network_is_refused(client: Client, styles: dict[str, Style], photo: bytes) -> None:
    answer = client.post(URL, {"image": upload(photo), "webhook_url": "http://169.254.169.254/latest"})

    problem(answer, 422, "invalid_webhook_url")
    assert not CaptionRequest.objects.exists()


# Health


@pytest.mark.django_db(transaction=True)  # the checks have connections of their own
def test_it_is_ready_with_a_worker_and_not_without(client: Client) -> None:
    assert client.get("/api/health/live").json() == {"status": "alive"}
    body = problem(client.get("/api/health/ready"), 503, "not_ready")
    assert {name for name, outcome in body["checks"].items() if outcome == "ok"} == {
        "database",
        "broker",
        "cache",
        "storage",
    }

    Worker.objects.create(name="w", queue="captions", models_loaded="an encoder, a language model")
    answer = client.get("/api/health/ready")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    assert set(answer.json()["checks"].values()) == {"ok"}

    Worker.objects.update(seen_at=timezone.now() - 2 * SILENCE)
    assert client.get("/api/health/ready").status_code == 503


@pytest.mark.parametrize("broker", ["filesystem", "redis"])
def test_it_is_not_ready_without_its_broker(client: Client, settings: Any, tmp_path: Path, broker: str) -> None:
    if broker == "filesystem":
        (tmp_path / "file").touch()
        settings.CELERY_BROKER_TRANSPORT_OPTIONS = {"data_folder_out": str(tmp_path / "file" / "broker")}
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        settings.CELERY_BROKER_URL = f"redis://127.0.0.1:{port}"

    body = problem(client.get("/api/health/ready"), 503, "not_ready")

    assert body["checks"]["broker"] != "ok"
    assert "127.0.0.1" not in body["detail"]


def test_metrics_count_what_waits(client: Client, six: list[dict[str, Any]]) -> None:
    Worker.objects.create(name="w", queue="captions", memory_mb=700)
    lines = set(client.get("/api/metrics").content.decode().splitlines())

    assert {
        'clipcap_captions{status="queued"} 3.0',
        'clipcap_captions{status="running"} 0.0',
        'clipcap_captions_of_last_hour{status="succeeded"} 3.0',
        'clipcap_workers{queue="captions"} 1.0',
        'clipcap_worker_memory_megabytes{worker="w"} 700.0',
        'clipcap_webhook_deliveries{status="queued"} 0.0',
    } <= lines
