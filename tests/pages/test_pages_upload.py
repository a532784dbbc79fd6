"""Uploading photos on the pages, with and without JavaScript."""

import io
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from captioner import services
from captioner.http import viewer as viewers
from captioner.inference.engine import CaptionEngine
from captioner.models import (
    Caption,
    CaptionRequest,
    Style,
    Viewer,
)
from tests.pages.captions import JSON, asked, body, finish, jpeg


def test_the_home_page_offers_the_styles_with_the_default_one_picked(client: Client, styles: dict[str, Style]) -> None:
    page = body(client.get("/"))
    assert 'value="factual" checked' in page
    assert 'value="humorous" autocomplete' in page
    assert 'value="all"' in page


def test_the_home_page_shows_recent_captions_as_people_corrected_them(
    signed_in: Client, viewer: Viewer, caption: Caption
) -> None:
    assert "Queued" in body(signed_in.get("/"))
    finish(caption)
    caption.refresh_from_db()
    assert caption.text in body(signed_in.get("/"))
    services.correct_caption(viewer, caption.pk, "a door, painted red")
    assert "a door, painted red" in body(signed_in.get("/"))


def test_the_home_page_says_so_where_no_style_is_in_service(client: Client, db: None) -> None:
    assert "No style is in service yet" in body(client.get("/"))


def test_photos_posted_by_a_plain_form_become_one_request(client: Client, styles: dict[str, Style]) -> None:
    files = [jpeg("a.jpg"), jpeg("b.jpg", "blue")]
    response = client.post("/upload/", {"photos": files, "styles": ["factual", "romantic"]})
    request = CaptionRequest.objects.get()
    assert response.status_code == 302
    assert response["Location"] == reverse("request", args=[request.pk])
    assert request.captions.count() == 4
    page = body(client.get(response["Location"]))
    assert "a.jpg" in page
    assert "b.jpg" in page
    assert '<noscript><meta http-equiv="refresh"' in page


def test_what_is_added_to_a_request_keeps_its_place(styles: dict[str, Style], viewer: Viewer) -> None:
    into = uuid.uuid4()
    for colour, style in (("red", "romantic"), ("blue", "romantic"), ("red", "factual"), ("green", "humorous")):
        photo = services.Upload(jpeg(colour=colour).read(), colour)
        services.request_captions(viewer=viewer, images=[photo], styles=[style], into=into)
    found = services.get_request(viewer, into).captions.all()
    assert [(c.index, c.name, c.style.slug) for c in found] == [
        (0, "red", "romantic"),
        (0, "red", "factual"),
        (1, "blue", "romantic"),
        (2, "green", "humorous"),
    ]


def test_the_embedded_models_caption_what_the_form_posted(
    client: Client, db: None, media: Path, engine: CaptionEngine, photo: bytes
) -> None:
    call_command("install_styles", stdout=io.StringIO())
    file = SimpleUploadedFile("table.jpg", photo)
    response = client.post("/upload/", {"photos": file, "styles": "all"})
    assert engine.work() == 3
    page = body(client.get(response["Location"]))
    for caption in Caption.objects.all():
        assert caption.text
        assert caption.text in page
        assert caption.alternatives[0]["text"] in page
    assert "http-equiv" not in page


def test_a_bad_file_among_good_ones_is_named_and_loses_none_of_them(client: Client, styles: dict[str, Style]) -> None:
    bad = SimpleUploadedFile("bad <b>.jpg", b"not a picture")
    worse = SimpleUploadedFile("worse.jpg", b"")
    response = client.post("/upload/", {"photos": [jpeg("a.jpg"), bad, worse, jpeg("b.jpg", "blue")]}, follow=True)
    page = body(response)
    assert "bad &lt;b&gt;.jpg: this is not a picture" in page
    assert "worse.jpg: " in page
    assert Caption.objects.count() == 2


def test_only_bad_files_lead_back_to_the_form(client: Client, styles: dict[str, Style]) -> None:
    response = client.post("/upload/", {"photos": SimpleUploadedFile("bad.jpg", b"no")}, follow=True)
    assert response.redirect_chain == [("/", 302)]
    assert "bad.jpg: this is not a picture" in body(response)


def test_a_file_over_the_limit_is_refused(client: Client, styles: dict[str, Style], settings: Any) -> None:
    settings.MAX_UPLOAD_BYTES = 100
    response = client.post("/upload/", {"photos": jpeg()}, headers=JSON)
    assert response.status_code == 413
    assert "make the picture smaller" in response.json()["detail"]


def test_a_form_without_photos_says_what_is_missing(client: Client, styles: dict[str, Style]) -> None:
    response = client.post("/upload/", {"styles": "factual"})
    assert response.status_code == 422
    assert "Choose at least one photo." in body(response)


def test_the_script_gets_the_photo_as_a_fragment(client: Client, styles: dict[str, Style]) -> None:
    key = uuid.uuid4()
    answer = client.post("/upload/", {"photos": jpeg("a.jpg"), "request": str(key)}, headers=JSON)
    assert answer.status_code == 201
    caption = Caption.objects.get()
    assert answer.json()["url"] == f"/requests/{key}/"
    assert answer.json()["id"] == f"photo-{caption.image_id}"
    assert f'value="{caption.pk}:queued"' in answer.json()["html"]
    assert "1 caption remaining" in answer.json()["html"]


def test_an_upload_repeated_after_its_answer_was_lost_is_queued_once(client: Client, styles: dict[str, Style]) -> None:
    key = str(uuid.uuid4())
    for _ in range(2):
        assert client.post("/upload/", {"photos": jpeg(), "request": key}, headers=JSON).status_code == 201
    client.post("/upload/", {"photos": jpeg(), "request": key, "styles": "all"}, headers=JSON)
    assert Caption.objects.count() == 3
    assert CaptionRequest.objects.count() == 1


def test_a_first_upload_whose_answer_was_lost_and_the_session_with_it_is_repeated_by_the_same_visitor(
    client: Client, styles: dict[str, Style], monkeypatch: pytest.MonkeyPatch
) -> None:
    form = client.get("/").context
    sent = {"request": str(form["request_id"]), "visitor": form["visitor"]}

    def send(**changes: str) -> int:
        client.cookies.pop("sessionid", None)
        return client.post("/upload/", sent | {"photos": jpeg()} | changes, headers=JSON).status_code

    assert [send(), send()] == [201, 201]
    assert Caption.objects.count() == 1
    assert client.get("/").context["visitor"] == "", "who has a name is offered none"
    assert send(visitor="x" + sent["visitor"]) == 404
    monkeypatch.setattr(viewers, "OPEN", timedelta(0))
    assert send() == 404


def test_nobody_adds_to_the_request_of_another(client: Client, styles: dict[str, Style], viewer: Viewer) -> None:
    theirs = asked(viewer)[0].request_id
    response = client.post("/upload/", {"photos": jpeg(), "request": str(theirs)}, headers=JSON)
    assert response.status_code == 404
    assert Caption.objects.count() == 1


def test_a_request_takes_no_more_captions_than_it_can_hold(
    client: Client, styles: dict[str, Style], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.captions, "MAX_CAPTIONS_PER_REQUEST", 3)
    key = str(uuid.uuid4())
    assert client.post("/upload/", {"photos": jpeg(), "request": key, "styles": "all"}, headers=JSON).status_code == 201
    more = client.post("/upload/", {"photos": jpeg(colour="blue"), "request": key}, headers=JSON)
    assert more.status_code == 422
    assert "create another" in more.json()["detail"]


def test_pages_count_photos_by_the_rate_of_the_api(client: Client, styles: dict[str, Style], settings: Any) -> None:
    rates = {"anonymous": "1/hour", "user": "1/hour"}
    settings.REST_FRAMEWORK = settings.REST_FRAMEWORK | {"DEFAULT_THROTTLE_RATES": rates}
    assert client.post("/upload/", {"photos": jpeg()}, headers=JSON).status_code == 201
    refused = client.post("/upload/", {"photos": jpeg(colour="blue")}, headers=JSON)
    assert refused.status_code == 429
    assert int(refused["Retry-After"]) > 0
