"""What the API does with captions, and lists of them."""

import io
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from PIL import Image as Pillow

from captioner import services
from captioner.api.serializers import RequestSerializer
from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import Failure
from captioner.models import Caption, Image, Style, Viewer
from clipcap import strict_json
from tests.api.asking import URL, all_pages, ask, ids, problem

pytestmark = [pytest.mark.django_db, pytest.mark.small_models]


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

    def summary() -> list[tuple[float | None, bool]]:
        found = {caption["id"]: caption for caption in as_ada.get(URL).json()["results"]}
        return [(found[pk]["confidence"], found[pk]["unsure"]) for pk in (sure, doubtful, corrected, six[3]["id"])]

    assert summary() == [(0.5, False), (0.49, True), (None, False), (None, False)]
    assert ids(as_ada, unsure="true") == {doubtful}
    assert ids(as_ada, unsure="false") == {caption["id"] for caption in six} - {doubtful}
    settings.UNSURE_BELOW = 0.6
    assert summary() == [(0.5, True), (0.49, True), (None, False), (None, False)]
    assert ids(as_ada, unsure="true") == {sure, doubtful}


@pytest.mark.embedded_models
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
    seen = all_pages(as_ada, f"{URL}?page_size=2&ordering={ordering}")
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
