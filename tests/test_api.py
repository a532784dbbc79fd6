"""The HTTP API as a program uses it: real photos, the embedded models, a real database."""

import base64
import io
import json
import socket
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from PIL import Image as Pillow

from accounts.services import make_token
from captioner import services
from captioner.api.serializers import RequestSerializer
from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import Failure
from captioner.models import SILENCE, Caption, CaptionRequest, Image, Style, Viewer, WebhookDelivery, Worker
from clipcap import strict_json
from clipcap.options import UNSURE_BELOW

pytestmark = pytest.mark.django_db
URL = "/api/captions/"


def upload(photo: bytes, name: str = "photo.jpg") -> io.BytesIO:
    file = io.BytesIO(photo)
    file.name = name
    return file


def another(photo: bytes) -> bytes:
    """A different photo: the same one turned upside down."""
    out = io.BytesIO()
    Pillow.open(io.BytesIO(photo)).rotate(180).save(out, "JPEG")
    return out.getvalue()


def solid(colour: str) -> bytes:
    out = io.BytesIO()
    Pillow.new("RGB", (64, 48), colour).save(out, "PNG")
    return out.getvalue()


def ask(client: Client, photo: bytes, **fields: Any) -> dict[str, Any]:
    answer = client.post(URL, {"image": upload(photo), **fields})
    assert answer.status_code == 202, answer.content
    body: dict[str, Any] = answer.json()
    return body


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, answer["Content-Type"]) == (status, "application/problem+json"), answer.content
    body: dict[str, Any] = answer.json()
    assert (body["status"], body["code"], body["type"]) == (status, code, "about:blank")
    assert body["title"]
    assert body["detail"]
    return body


@pytest.fixture
def as_ada(client: Client, viewer: Viewer) -> Client:
    client.force_login(viewer.user)
    return client


@pytest.fixture
def token(viewer: Viewer) -> dict[str, str]:
    """Headers of a program that ada gave a token."""
    return {"Authorization": f"Token {make_token(viewer.user, name='tests')[1]}"}


# From upload to caption


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

    def told(captions: list[dict[str, Any]]) -> list[tuple[int, str, str]]:
        return [(caption["index"], caption["name"], caption["style"]) for caption in captions]

    assert told(made["captions"]) == told(as_ada.get(made["url"]).json()["captions"]) == asked
    assert made["captions"][4]["image"] == made["captions"][12]["image"]  # sent twice, captioned twice
    for ordering in ("created_at", "-created_at"):
        seen: list[dict[str, Any]] = []
        url = f"{URL}?request={made['id']}&page_size=4&ordering={ordering}"
        while url:
            page = as_ada.get(url).json()
            seen += page["results"]
            url = page["next"]
        assert told(seen) == asked
    while engine.work():
        pass
    payload = RequestSerializer(services.get_request(viewer, made["id"])).data  # a webhook's
    assert told(payload["captions"]) == asked


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


# Who may what


def test_a_token_signs_in(client: Client, token: dict[str, str], styles: dict[str, Style], photo: bytes) -> None:
    made = client.post(URL, {"image": upload(photo)}, headers=token).json()

    assert CaptionRequest.objects.get().owner is not None
    assert client.get(made["url"], headers=token).status_code == 200
    problem(client.get(made["url"]), 404, "not_found")


def test_a_bad_token_is_refused(client: Client) -> None:
    answer = client.get(URL, headers={"Authorization": "Token nonsense"})

    problem(answer, 401, "authentication_failed")
    assert answer["WWW-Authenticate"] == "Token"


def test_anonymous_use_is_a_setting(client: Client, styles: dict[str, Style], photo: bytes, settings: Any) -> None:
    settings.ANONYMOUS = False

    for answer in (client.get(URL), client.post(URL, {"image": upload(photo)}), client.get("/api/styles/")):
        problem(answer, 401, "not_authenticated")
    assert client.get("/api/health/live").status_code == 200


def test_owners_see_only_their_own(
    as_ada: Client, django_user_model: Any, styles: dict[str, Style], photo: bytes
) -> None:
    made = ask(as_ada, photo)
    other, nobody = Client(), Client()
    other.force_login(django_user_model.objects.create_user("bob"))

    for client, seen in ((as_ada, 1), (other, 0), (nobody, 0)):
        for path in ("captions", "requests", "images"):
            assert len(client.get(f"/api/{path}/").json()["results"]) == seen
    for client in (other, nobody):
        caption = made["captions"][0]
        for path in (made["url"], caption["url"], caption["image_url"], f"{caption['image_url']}file/"):
            problem(client.get(path), 404, "not_found")
        problem(client.post(f"{caption['url']}cancel/"), 404, "not_found")
        problem(client.delete(caption["url"]), 404, "not_found")
        body = {"image_id": caption["image"]}
        problem(client.post(URL, body, "application/json"), 422, "unknown_image")


def test_a_program_without_an_account_reaches_its_captions_by_id(
    client: Client, styles: dict[str, Style], photo: bytes
) -> None:
    caption = ask(client, photo)["captions"][0]

    assert client.get(URL).json()["results"] == []
    assert client.post(f"{caption['url']}cancel/").json()["status"] == "canceled"


@pytest.mark.parametrize("known", ["signed in", "visitor"])
def test_a_browser_session_writes_only_with_its_csrf_token(
    viewer: Viewer, styles: dict[str, Style], photo: bytes, known: str
) -> None:
    browser = Client(enforce_csrf_checks=True)
    if known == "signed in":
        browser.force_login(viewer.user)
    else:
        session = browser.session
        session["visitor"] = "v" * 20
        session.save()

    problem(browser.post(URL, {"image": upload(photo)}), 403, "csrf_failed")
    browser.cookies["csrftoken"] = "a" * 32
    answer = browser.post(URL, {"image": upload(photo)}, headers={"X-CSRFToken": "a" * 32})

    assert answer.status_code == 202
    assert len(browser.get(URL).json()["results"]) == 1


def test_too_many_requests_are_told_when_to_come_again(
    client: Client, token: dict[str, str], styles: dict[str, Style], photo: bytes, settings: Any
) -> None:
    rates = {"anonymous": "2/minute", "user": "3/minute"}
    settings.REST_FRAMEWORK = {**settings.REST_FRAMEWORK, "DEFAULT_THROTTLE_RATES": rates}
    made = ask(client, photo)
    client.post(f"{made['captions'][0]['url']}cancel/")

    for answer in (client.post(URL, {"image": upload(photo)}), client.delete(made["captions"][0]["url"])):
        problem(answer, 429, "throttled")
        assert 0 < int(answer["Retry-After"]) <= 61
    assert client.get(URL).status_code == 200
    forged = client.post(URL, {"image": upload(photo)}, headers={"X-Forwarded-For": "192.0.2.1"})
    problem(forged, 429, "throttled")
    statuses = [client.post(URL, {"image": upload(photo)}, headers=token).status_code for _ in range(4)]
    assert statuses == [202, 202, 202, 429]


# What can be done with a caption


def test_a_caption_can_be_canceled_and_tried_again(
    client: Client, styles: dict[str, Style], engine: CaptionEngine, photo: bytes
) -> None:
    url = ask(client, photo)["captions"][0]["url"]
    problem(client.post(f"{url}retry/"), 409, "not_failed")

    assert client.post(f"{url}cancel/").json()["status"] == "canceled"
    problem(client.post(f"{url}cancel/"), 409, "already_finished")
    again = client.post(f"{url}retry/")
    assert (again.status_code, again["Retry-After"], again.json()["status"]) == (202, "1", "queued")
    engine.work()

    assert client.get(url).json()["status"] == "succeeded"


def test_a_failed_caption_says_why(
    client: Client, styles: dict[str, Style], engine: CaptionEngine, photo: bytes
) -> None:
    url = ask(client, photo)["captions"][0]["url"]
    Path(Image.objects.get().file.path).write_bytes(b"no picture at all")
    engine.work()

    caption = client.get(url).json()
    assert caption["status"] == "failed"
    assert caption["error"]["code"] == "image_not_an_image"
    assert "this is not a picture" in caption["error"]["detail"]


def test_a_correction_stands_beside_the_machines_text(
    as_ada: Client, styles: dict[str, Style], engine: CaptionEngine, photo: bytes
) -> None:
    url = ask(as_ada, photo)["captions"][0]["url"]
    problem(as_ada.post(f"{url}corrections/", {"text": "too soon"}, "application/json"), 409, "not_finished")
    engine.work()
    text = as_ada.get(url).json()["text"]

    for words in ("A bench.", "Two people on a bench."):
        answer = as_ada.post(f"{url}corrections/", {"text": words}, "application/json")
        assert answer.status_code == 201
        assert answer.json()["author"] == "ada"

    caption = as_ada.get(url).json()
    assert (caption["text"], caption["correction"]["text"]) == (text, "Two people on a bench.")
    assert [c["id"] for c in as_ada.get(URL, {"search": "two bench"}).json()["results"]] == [caption["id"]]


# How sure the models are


def test_what_the_models_are_not_sure_about_is_marked_and_found(
    as_ada: Client, six: list[dict[str, Any]], settings: Any
) -> None:
    sure, doubtful, corrected = (caption["id"] for caption in six[:3])
    Caption.objects.filter(pk=sure).update(confidence=0.5)
    Caption.objects.filter(pk__in=[doubtful, corrected]).update(confidence=0.49)
    services.correct_caption(Viewer(User.objects.get()), corrected, "What a person wrote.")

    def told() -> list[tuple[float | None, bool]]:
        found = {caption["id"]: caption for caption in as_ada.get(URL).json()["results"]}
        return [(found[pk]["confidence"], found[pk]["unsure"]) for pk in (sure, doubtful, corrected, six[3]["id"])]

    assert told() == [(0.5, False), (0.49, True), (None, False), (None, False)]
    assert ids(as_ada, unsure="true") == {doubtful}
    assert ids(as_ada, unsure="false") == {caption["id"] for caption in six} - {doubtful}
    settings.UNSURE_BELOW = 0.6
    assert told() == [(0.5, True), (0.49, True), (None, False), (None, False)]
    assert ids(as_ada, unsure="true") == {sure, doubtful}


def test_a_caption_less_sure_than_asked_is_withheld_and_says_why(
    client: Client, styles: dict[str, Style], engine: CaptionEngine, photo: bytes
) -> None:
    made = ask(client, photo, min_confidence="1", captions="3")
    engine.work()

    (caption,) = client.get(made["url"]).json()["captions"]
    assert (caption["status"], caption["text"], caption["alternatives"]) == ("succeeded", "", [])
    assert (caption["min_confidence"], caption["withheld"]["code"]) == (1, "low_confidence")
    Caption.objects.update(confidence=None)
    assert client.get(caption["url"]).json()["withheld"]["code"] == "unknown_confidence"


@pytest.mark.parametrize(
    ("least", "confidence", "kept"),
    [(0.6, 0.6, True), (0.6, 0.599, False), (0.6, None, False), (0.0, 0.0, True), (0.0, None, True), (None, 0.1, True)],
)
def test_words_are_kept_from_the_confidence_on_that_was_asked_for(
    least: float | None, confidence: float | None, kept: bool
) -> None:
    caption = Caption(status="succeeded", min_confidence=least, confidence=confidence)
    written = {"text": "a guess", "confidence": confidence, "alternatives": [{"text": "another"}]}

    assert caption.kept(written) == (written if kept else {**written, "text": "", "alternatives": []})
    assert (caption.withheld is None) == kept


def test_whatever_number_is_stored_every_answer_is_json(as_ada: Client, six: list[dict[str, Any]]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE captioner_caption SET confidence = 9e999, log_probability = -9e999, decode_ms = 9e999,"
            """ alternatives = '[{"text": "a", "confidence": 9e999, "log_probability": -9e999}]'"""
        )
    url = six[0]["request_url"]

    def refuse(name: str) -> None:
        pytest.fail(f"{name} is not JSON")

    listed = json.loads(as_ada.get(URL).content, parse_constant=refuse)["results"][-1]
    for answer in (as_ada.get(url), as_ada.get("/gallery/captions.json")):
        json.loads(answer.getvalue(), parse_constant=refuse)
    assert (listed["confidence"], listed["log_probability"], listed["timings"]["decode_ms"]) == (None, None, None)
    assert listed["alternatives"] == [{"text": "a", "confidence": None, "log_probability": None}]
    assert as_ada.get(f"/requests/{six[0]['request']}/").status_code == 200
    payload = RequestSerializer(services.get_request(Viewer(User.objects.get()), six[0]["request"])).data
    json.loads(strict_json.dumps(payload, cls=DjangoJSONEncoder), parse_constant=refuse)


def test_a_deleted_caption_takes_its_image_along(
    client: Client, styles: dict[str, Style], photo: bytes, media: Any, django_capture_on_commit_callbacks: Any
) -> None:
    made = ask(client, photo)
    with django_capture_on_commit_callbacks(execute=True):
        assert client.delete(made["captions"][0]["url"]).status_code == 204

    for url in (made["url"], made["captions"][0]["url"], made["captions"][0]["image_url"]):
        problem(client.get(url), 404, "not_found")
    assert not list(media.glob("images/*"))


# Lists


@pytest.fixture
def six(as_ada: Client, styles: dict[str, Style], engine: CaptionEngine, photo: bytes) -> list[dict[str, Any]]:
    """Two photos in three styles, of which one photo's are finished."""
    captions: list[dict[str, Any]] = ask(as_ada, photo, style="all")["captions"]
    engine.work()
    return [*captions, *ask(as_ada, another(photo), style="all")["captions"]]


def ids(client: Client, **query: Any) -> set[str]:
    answer = client.get(URL, query)
    assert answer.status_code == 200, answer.content
    return {caption["id"] for caption in answer.json()["results"]}


def test_lists_are_narrowed_down(as_ada: Client, six: list[dict[str, Any]]) -> None:
    done, waiting = {c["id"] for c in six[:3]}, {c["id"] for c in six[3:]}

    assert ids(as_ada) == done | waiting
    assert ids(as_ada, status="succeeded") == done
    assert ids(as_ada, status=["queued", "succeeded"]) == done | waiting
    assert ids(as_ada, style="humorous") == {c["id"] for c in six if c["style"] == "humorous"}
    assert ids(as_ada, image=six[3]["image"]) == ids(as_ada, request=six[3]["request"]) == waiting
    assert ids(as_ada, created_after=six[3]["created_at"]) == waiting
    assert ids(as_ada, created_before=six[3]["created_at"]) == done
    assert ids(as_ada, search="no such words") == set()


@pytest.mark.parametrize("ordering", ["created_at", "-created_at"])
def test_pages_show_everything_once(as_ada: Client, six: list[dict[str, Any]], ordering: str) -> None:
    seen: list[dict[str, Any]] = []
    url = f"{URL}?page_size=2&ordering={ordering}"
    while url:
        page = as_ada.get(url).json()
        seen += page["results"]
        url = page["next"]

    assert len(seen) == 6
    assert {caption["id"] for caption in seen} == {caption["id"] for caption in six}
    times = [caption["created_at"] for caption in seen]
    assert times == sorted(times, reverse=ordering.startswith("-"))


def test_a_longer_list_costs_no_more_queries(as_ada: Client, six: list[dict[str, Any]]) -> None:
    for url in (URL, "/api/requests/", "/api/images/"):
        counts = []
        for size in (1, 25):
            with CaptureQueriesContext(
                connection,
            ) as queries:
                as_ada.get(url, {"page_size": size})
            counts.append(len(queries))
        assert counts[0] == counts[1] < 10, url


def test_styles_are_listed_with_the_default_first(client: Client, styles: dict[str, Style]) -> None:
    Style.objects.create(slug="unready", name="Without a version")
    found = client.get("/api/styles/").json()

    assert [style["slug"] for style in found] == ["factual", "humorous", "romantic"]
    assert (found[0]["is_default"], found[0]["version"]) == (True, 1)
    assert client.get(found[1]["url"]).json() == found[1]
    problem(client.get("/api/styles/unready/"), 404, "not_found")


def test_an_image_is_shown_with_its_captions(as_ada: Client, six: list[dict[str, Any]]) -> None:
    image = as_ada.get(six[0]["image_url"]).json()

    assert {c["id"] for c in as_ada.get(image["captions_url"]).json()["results"]} == {c["id"] for c in six[:3]}
    for kind, side in (("file", max(image["width"], image["height"])), ("thumbnail", 400)):
        answer = as_ada.get(image[f"{kind}_url"], headers={"Accept": "image/jpeg"})
        assert answer["Content-Type"] == "image/jpeg"
        assert answer["X-Content-Type-Options"] == "nosniff"
        assert "private" in answer["Cache-Control"]
        assert max(Pillow.open(io.BytesIO(answer.getvalue())).size) == side


def test_a_picture_whose_file_is_gone_is_a_problem(as_ada: Client, six: list[dict[str, Any]]) -> None:
    Image.objects.get(pk=six[0]["image"]).file.delete(save=False)

    problem(as_ada.get(f"{six[0]['image_url']}file/"), 404, "file_missing")


# Webhooks


def test_a_webhook_is_told_with_its_secret_once(
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


# Documents


def test_swagger_ui_comes_from_this_site_and_runs_no_inline_script(client: Client, db: None) -> None:
    page = client.get("/api/docs/")
    html = page.content.decode()

    assert page.status_code == 200
    assert "://" not in html.replace("http://testserver", "")
    assert html.count("<script") == html.count("<script src=")
    assert "script-src" not in page["Content-Security-Policy"]
    assert "default-src 'self'" in page["Content-Security-Policy"]
    assert client.get("/api/docs/?script=")["Content-Type"].startswith("application/javascript")


def test_a_caption_that_is_tried_again_tells_what_failed_and_when_it_goes_on(
    client: Client, styles: dict[str, Style], photo: bytes
) -> None:
    ask(client, photo)
    (row,) = Caption.objects.claim("worker@secret.host", 1)
    row.hand_back(Failure("image_missing", "the stored image cannot be read; upload it again"))
    answer = client.get(f"{URL}{row.pk}/").json()
    row.refresh_from_db()
    assert row.ready_at
    assert (answer["status"], answer["error"]) == ("queued", None)
    assert datetime.fromisoformat(answer["next_try_at"]) == row.ready_at
    (failure,) = answer["failures"]
    assert (failure["code"], failure["detail"]) == (
        "image_missing",
        "the stored image cannot be read; upload it again",
    )
    assert "secret" not in json.dumps(answer)
    Caption.objects.filter(pk=row.pk).update(status="succeeded", finished_at=row.ready_at)
    assert client.get(f"{URL}{row.pk}/").json()["next_try_at"] is None
