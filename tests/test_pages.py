"""The pages as a browser without JavaScript gets them, and the fragments that htmx asks for."""

import csv
import io
import json
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from PIL import Image as Pillow

from captioner import services
from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import Failure
from captioner.models import (
    EVERYBODY,
    Caption,
    CaptionRequest,
    Correction,
    Image,
    MapperVersion,
    Promotion,
    Style,
    Viewer,
)

HTMX = {"HX-Request": "true"}
JSON = {"Accept": "application/json"}


@pytest.fixture(autouse=True)
def _no_throttle_counts() -> None:
    cache.clear()


@pytest.fixture
def styles(db: None, media: Path) -> dict[str, Style]:
    """Three styles in service as far as pages can tell: their mappers are never loaded here."""
    for slug in ("factual", "humorous", "romantic"):
        style = Style.objects.create(slug=slug, name=slug.capitalize(), is_default=slug == "factual")
        version = style.versions.create(number=1, sha256="0" * 64, origin=MapperVersion.Origin.SHIPPED)
        Promotion.objects.create(style=style, version=version)
    return {style.slug: style for style in Style.objects.all()}


@pytest.fixture
def signed_in(client: Client, viewer: Viewer) -> Client:
    client.force_login(viewer.user)
    return client


def jpeg(name: str = "photo.jpg", colour: str = "red") -> SimpleUploadedFile:
    out = io.BytesIO()
    Pillow.new("RGB", (64, 48), colour).save(out, "JPEG")
    return SimpleUploadedFile(name, out.getvalue(), "image/jpeg")


def asked(viewer: Viewer, *styles: str, colour: str = "red") -> list[Caption]:
    """Queued captions of a small picture, in the order of their styles' slugs."""
    photo = services.Upload(jpeg(colour=colour).read(), f"{colour}.jpg")
    request = services.request_captions(viewer=viewer, images=[photo], styles=styles)
    return sorted(services.get_request(viewer, request.pk).captions.all(), key=lambda c: c.style.slug)


def finish(caption: Caption, text: str = "a red wall", **changes: Any) -> None:
    """Let a caption be what a worker would have made of it."""
    Caption.objects.filter(pk=caption.pk).update(
        status="succeeded", finished_at=timezone.now(), text=text, **{"confidence": 0.82, **changes}
    )


def fail(caption: Caption) -> None:
    Caption.objects.filter(pk=caption.pk).update(
        status="failed", finished_at=timezone.now(), error_code="x", error_detail="the lamp was out"
    )


def body(response: Any) -> str:
    return b"".join(response.streaming_content).decode() if response.streaming else response.content.decode()


# Uploading


def test_the_home_page_offers_the_styles_with_the_default_one_picked(client: Client, styles: dict[str, Style]) -> None:
    page = body(client.get("/"))
    assert 'value="factual" checked' in page
    assert 'value="humorous" autocomplete' in page
    assert 'value="all"' in page


def test_the_home_page_shows_recent_captions_as_people_corrected_them(
    signed_in: Client, styles: dict[str, Style], viewer: Viewer
) -> None:
    caption = asked(viewer)[0]
    assert "A photo without a caption" in body(signed_in.get("/"))
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


# Captions that arrive


def test_progress_answers_with_what_has_changed(client: Client, styles: dict[str, Style]) -> None:
    client.post("/upload/", {"photos": jpeg(), "styles": ["factual", "romantic"]})
    one, other = Caption.objects.all()
    finish(one)
    waiting = [f"{one.pk}:queued", f"{other.pk}:queued"]
    answer = client.post("/progress/", {"waiting": waiting}, headers=HTMX)
    assert answer.status_code == 200
    assert f'id="caption-{one.pk}" hx-swap-oob="true"' in body(answer)
    assert f'id="caption-{other.pk}"' not in body(answer)
    assert "1 caption remaining" in body(answer)
    finish(other)
    assert "remaining" not in body(client.post("/progress/", {"waiting": waiting[1:]}, headers=HTMX))


def test_progress_takes_deleted_captions_off_the_page(client: Client, db: None) -> None:
    gone = uuid.uuid4()
    answer = client.post("/progress/", {"waiting": [f"{gone}:queued", "nonsense", "\0:x"]}, headers=HTMX)
    assert f'<div id="caption-{gone}" hx-swap-oob="delete">' in body(answer)


# One photo


def test_the_photo_page_shows_the_newest_caption_of_each_style_and_offers_the_others(
    signed_in: Client, styles: dict[str, Style], viewer: Viewer
) -> None:
    old, new, romantic = asked(viewer)[0], asked(viewer)[0], asked(viewer, "romantic")[0]
    finish(old, "the old one")
    finish(new, "the new one")
    finish(romantic, "a wall in love")
    page = body(signed_in.get(f"/images/{new.image_id}/"))
    assert page.index("the new one") < page.index("a wall in love") < page.index("the old one")
    assert "Earlier captions (1)" in page
    assert "Caption in the other styles" in page
    assert '<input type="hidden" name="styles" value="humorous">' in page
    assert "82 % sure" in page


def test_a_photo_is_captioned_in_the_other_styles_at_the_press_of_a_button(
    signed_in: Client, styles: dict[str, Style], viewer: Viewer
) -> None:
    caption = asked(viewer)[0]
    url = f"/images/{caption.image_id}/captions/"
    response = signed_in.post(url, {"styles": ["humorous", "romantic"]}, follow=True)
    assert response.status_code == 200
    assert set(Caption.objects.values_list("style__slug", flat=True)) == set(styles)
    assert "Caption in the other styles" not in body(response)


def test_pictures_are_served_to_those_who_may_see_them(
    client: Client, styles: dict[str, Style], viewer: Viewer
) -> None:
    image = asked(viewer)[0].image_id
    assert client.get(f"/images/{image}/file").status_code == 404
    client.force_login(viewer.user)
    for kind in ("file", "thumbnail"):
        response = client.get(f"/images/{image}/{kind}")
        assert b"".join(response.streaming_content).startswith(b"\xff\xd8")  # type: ignore[attr-defined]
        assert response["Content-Type"] == "image/jpeg"
        assert response["X-Content-Type-Options"] == "nosniff"
        assert "private" in response["Cache-Control"]


def test_a_picture_whose_file_is_gone_is_not_found(
    signed_in: Client, styles: dict[str, Style], viewer: Viewer, media: Path
) -> None:
    image = asked(viewer)[0].image
    (media / str(image.file)).unlink()
    assert signed_in.get(f"/images/{image.pk}/file").status_code == 404


def test_credit_stands_beside_an_example(client: Client, styles: dict[str, Style]) -> None:
    caption = asked(Viewer(visitor=EVERYBODY))[0]
    finish(caption)
    Image.objects.update(credit="A. Photographer <CC BY>", credit_url="https://example.org/photo")
    for url in (f"/images/{caption.image_id}/", f"/requests/{caption.request_id}/", "/gallery/"):
        page = body(client.get(url))
        assert "A. Photographer &lt;CC BY&gt;" in page
        assert 'href="https://example.org/photo"' in page


# Changing a caption


def test_a_correction_is_shown_beside_what_the_machine_wrote(
    signed_in: Client, styles: dict[str, Style], viewer: Viewer
) -> None:
    caption = asked(viewer)[0]
    finish(caption)
    fragment = body(signed_in.post(f"/captions/{caption.pk}/correct/", {"text": "a brick wall"}, headers=HTMX))
    assert "a brick wall" in fragment
    assert "Corrected by ada" in fragment
    assert "a red wall" in fragment
    assert Correction.objects.get().author == viewer.user


def test_an_empty_correction_is_refused_with_a_sentence(
    signed_in: Client, styles: dict[str, Style], viewer: Viewer
) -> None:
    caption = asked(viewer)[0]
    finish(caption)
    answer = signed_in.post(f"/captions/{caption.pk}/correct/", {"text": " "}, headers=HTMX)
    assert answer.status_code == 422
    assert "1 to 500" in answer.json()["detail"]
    page = signed_in.post(f"/captions/{caption.pk}/correct/", {"text": " "})
    assert page.status_code == 422
    assert "1 to 500" in body(page)


def test_a_failed_caption_tells_why_and_can_be_tried_again(
    signed_in: Client, styles: dict[str, Style], viewer: Viewer
) -> None:
    caption = asked(viewer)[0]
    fail(caption)
    page = body(signed_in.get(f"/requests/{caption.request_id}/"))
    assert "The lamp was out" in page
    assert "Try again" in page
    fragment = body(signed_in.post(f"/captions/{caption.pk}/retry/", headers=HTMX))
    assert "Queued" in fragment
    assert "1 caption remaining" in fragment


def test_a_queued_caption_can_be_canceled(signed_in: Client, styles: dict[str, Style], viewer: Viewer) -> None:
    caption = asked(viewer)[0]
    response = signed_in.post(f"/captions/{caption.pk}/cancel/")
    assert response["Location"] == f"/requests/{caption.request_id}/#caption-{caption.pk}"
    caption.refresh_from_db()
    assert caption.status == "canceled"


def test_deleting_asks_first(signed_in: Client, styles: dict[str, Style], viewer: Viewer) -> None:
    caption = asked(viewer)[0]
    url = f"/captions/{caption.pk}/delete/"
    assert "Delete this caption?" in body(signed_in.post(url))
    assert Caption.objects.exists()
    assert signed_in.post(url, {"confirmed": "yes"})["Location"] == "/gallery/"
    assert not Caption.objects.exists()
    assert not Image.objects.exists()


def test_what_a_viewer_may_not_change_has_no_buttons_for_it(client: Client, styles: dict[str, Style]) -> None:
    caption = asked(Viewer(visitor=EVERYBODY))[0]
    finish(caption)
    page = body(client.get(f"/images/{caption.image_id}/"))
    assert "Delete" not in page
    assert "Correct it" not in page
    for action in ("delete", "correct", "retry", "cancel"):
        assert client.post(f"/captions/{caption.pk}/{action}/", {"confirmed": "1", "text": "x"}).status_code == 404


# The gallery


def test_the_gallery_searches_captions_and_corrections(
    signed_in: Client, styles: dict[str, Style], viewer: Viewer
) -> None:
    red, blue = asked(viewer)[0], asked(viewer, colour="blue")[0]
    finish(red, "a red wall")
    finish(blue, "a dog")
    services.correct_caption(viewer, blue.pk, "the deep blue sea")

    def found(query: str) -> set[str]:
        page = body(signed_in.get(f"/gallery/?{query}"))
        return {name for name, c in {"red": red, "blue": blue}.items() if f"/images/{c.image_id}/thumbnail" in page}

    assert found("") == {"red", "blue"}
    assert found("q=wall+RED") == {"red"}
    assert found("q=deep+sea") == {"blue"}
    assert found("q=nothing%00") == set()
    assert found("style=romantic") == set()
    assert found("status=succeeded") == {"red", "blue"}
    assert found("status=nonsense") == set()


def test_mine_leaves_the_examples_out(client: Client, styles: dict[str, Style]) -> None:
    example = asked(Viewer(visitor=EVERYBODY), colour="green")[0]
    client.post("/upload/", {"photos": jpeg()})
    mine = Caption.objects.exclude(pk=example.pk).get()
    assert f"/images/{example.image_id}/" in body(client.get("/gallery/"))
    page = body(client.get("/gallery/?mine=on"))
    assert f"/images/{example.image_id}/" not in page
    assert f"/images/{mine.image_id}/" in page


def test_the_gallery_goes_on_where_a_page_ends(
    signed_in: Client, styles: dict[str, Style], viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captioner.web.pages.PHOTOS", 2)
    images = [asked(viewer, colour=colour)[0].image_id for colour in ("red", "green", "blue")]
    Image.objects.update(created_at=timezone.now())  # all at once: the order is by id then
    seen: list[uuid.UUID] = []
    url = "/gallery/?q="
    while url:
        page = body(signed_in.get(url))
        seen += [i for i in images if f"/images/{i}/thumbnail" in page]
        _, more, rest = page.partition('id="more" class="next"><a class="button" href="')
        url = "/gallery/" + rest.partition('"')[0].replace("&amp;", "&") if more else ""
    assert len(seen) == 3
    assert set(seen) == set(images)


@pytest.mark.parametrize("cursor", ["nonsense", "2026-01-01~x", "2026-01-01~00000000-0000-0000-0000-000000000000", "~"])
def test_a_broken_cursor_begins_at_the_start(client: Client, styles: dict[str, Style], cursor: str) -> None:
    assert client.get("/gallery/", {"after": cursor}).status_code == 200


def test_the_list_is_downloaded_as_json(signed_in: Client, styles: dict[str, Style], viewer: Viewer) -> None:
    for caption, text in zip(asked(viewer, "all"), ("one", "two", "three"), strict=True):
        finish(caption, text)
    services.correct_caption(viewer, Caption.objects.get(text="two").pk, "zwei")
    response = signed_in.get("/gallery/captions.json?style=humorous")
    assert "attachment" in response["Content-Disposition"]
    (row,) = json.loads(body(response))
    assert (row["text"], row["correction"], row["corrected_by"]) == ("two", "zwei", "ada")
    assert (row["index"], row["confidence"], row["unsure"]) == (0, None, False)
    assert json.loads(body(signed_in.get("/gallery/captions.json?q=nowhere"))) == []


def test_no_cell_of_the_csv_begins_a_formula(signed_in: Client, styles: dict[str, Style], viewer: Viewer) -> None:
    texts = ["=1+1", "+1", "-1", "@x", "\tx", 'says "hi", then\nleaves']
    for number, text in enumerate(texts):
        finish(asked(viewer, colour=f"#0000{number:02}")[0], text)
    rows = list(csv.DictReader(io.StringIO(body(signed_in.get("/gallery/captions.csv")), newline="")))
    assert {row["text"] for row in rows} == {f"'{text}" for text in texts[:5]} | {texts[5]}
    assert (rows[0]["confidence"], rows[0]["unsure"], rows[0]["withheld"]) == ("0.82", "False", "")
    assert list(csv.DictReader(io.StringIO(body(signed_in.get("/gallery/captions.csv?q=nowhere"))))) == []


def test_lists_cost_no_more_queries_for_more_photos(
    signed_in: Client, styles: dict[str, Style], viewer: Viewer, django_assert_max_num_queries: Any
) -> None:
    for number in range(6):
        for caption in asked(viewer, "all", colour=f"#0000{number:02}"):
            finish(caption)
            services.correct_caption(viewer, caption.pk, "better")
    with django_assert_max_num_queries(16):
        signed_in.get("/gallery/")
    with django_assert_max_num_queries(10):
        body(signed_in.get("/gallery/captions.json"))


# How sure the models are

OTHERS = [{"text": "a red door", "confidence": 0.2, "log_probability": -0.7}]


def test_a_caption_says_how_sure_it_is_and_keeps_its_alternatives_to_the_details(
    signed_in: Client, styles: dict[str, Style], viewer: Viewer
) -> None:
    caption = asked(viewer)[0]
    finish(caption, alternatives=OTHERS)
    page = body(signed_in.get(f"/requests/{caption.request_id}/"))
    assert "82 % sure" in page
    assert "Not sure about this one" not in page
    assert page.index("<summary>Details") < page.index("a red door")


def test_an_unsure_caption_says_so_beside_what_else_it_might_be(
    signed_in: Client, styles: dict[str, Style], viewer: Viewer
) -> None:
    caption = asked(viewer)[0]
    finish(caption, confidence=0.31, alternatives=OTHERS)
    page = body(signed_in.get(f"/requests/{caption.request_id}/"))
    assert "31 % sure" in page
    assert page.index("Not sure about this one: it might also be") < page.index("a red door")
    assert page.count("a red door") == 1
    assert page.index("a red door") < page.index("<summary>Details")
    assert "not sure" in body(signed_in.get("/gallery/"))
    told = signed_in.post("/progress/", {"waiting": f"{caption.pk}:queued"}, headers=HTMX)
    assert "Factual, not sure: a red wall." in body(told)


def test_what_a_person_wrote_is_shown_without_the_machines_doubt(
    signed_in: Client, styles: dict[str, Style], viewer: Viewer
) -> None:
    caption = asked(viewer)[0]
    finish(caption, confidence=0.31, alternatives=OTHERS)
    services.correct_caption(viewer, caption.pk, "A wall.")
    for url in (f"/requests/{caption.request_id}/", "/gallery/"):
        page = body(signed_in.get(url))
        assert "A wall." in page
        assert "31 %" not in page
        assert "ot sure about" not in page


def test_a_withheld_caption_is_never_a_guess(signed_in: Client, styles: dict[str, Style], viewer: Viewer) -> None:
    photo = services.Upload(jpeg().read(), "red.jpg")
    request = services.request_captions(viewer=viewer, images=[photo], min_confidence=0.6)
    caption = request.captions.get()
    Caption.objects.filter(pk=caption.pk).update(status="succeeded", finished_at=timezone.now(), confidence=0.3)
    page = body(signed_in.get(f"/requests/{request.pk}/"))
    assert "Withheld: its confidence is below the requested minimum." in page
    assert "Not sure about this one" not in page
    assert "withheld" in body(signed_in.get("/gallery/"))
    (row,) = json.loads(body(signed_in.get("/gallery/captions.json")))
    assert (row["text"], row["withheld"]) == ("", "its confidence is below the requested minimum")


def test_the_gallery_finds_what_the_models_are_not_sure_about(
    signed_in: Client, styles: dict[str, Style], viewer: Viewer
) -> None:
    for colour, confidence in (("red", 0.9), ("blue", 0.2)):
        finish(asked(viewer, colour=colour)[0], f"something {colour}", confidence=confidence)
    for url in ("/gallery/?unsure=true", "/gallery/captions.json?unsure=true"):
        page = body(signed_in.get(url))
        assert "something blue" in page
        assert "something red" not in page


# Which models write


def test_a_page_says_which_models_write_and_how_good_they_are(client: Client, db: None) -> None:
    page = body(client.get("/"))
    assert "Captions are generated by ClipCap base." in page
    assert "named something that is not there" in page


@pytest.mark.parametrize(
    "card",
    [None, b"", b"\xff", b"[]", b"null", b'{"name": "A"}', b'{"name": "A", "summary": ""}', b"[" * 100_000],
    ids=range(8),
)
def test_a_folder_of_models_without_a_card_that_says_it_is_not_spoken_of(
    client: Client, db: None, settings: Any, tmp_path: Path, card: bytes | None
) -> None:
    settings.MODELS = tmp_path
    settings.ENCODER, settings.LANGUAGE_MODEL = (f"local-dir:{tmp_path / name}" for name in ("encoder", "lm"))
    if card is not None:
        (tmp_path / "card.json").write_bytes(card)
    assert "Captions are generated by" not in body(client.get("/"))


def test_a_card_is_not_shown_for_other_models_than_its_own(client: Client, db: None, settings: Any) -> None:
    settings.ENCODER = "ViT-B-32/openai"
    assert "Captions are generated by" not in body(client.get("/"))


# People


def test_a_site_without_anonymous_use_asks_to_sign_in(
    client: Client, styles: dict[str, Style], viewer: Viewer, settings: Any
) -> None:
    settings.ANONYMOUS = False
    caption = asked(viewer)[0]
    for url in ("/", "/gallery/", f"/images/{caption.image_id}/file", f"/requests/{caption.request_id}/"):
        assert client.get(url)["Location"].startswith("/sign-in/?next=")
    polled = client.post("/progress/", headers=HTMX)
    assert (polled.status_code, polled["HX-Redirect"]) == (401, "/sign-in/")
    assert client.post("/upload/", {"photos": jpeg()}, headers=JSON).status_code == 401
    client.post("/sign-in/", {"username": "ada", "password": "lovelace"})
    assert client.get(f"/requests/{caption.request_id}/").status_code == 200


def test_signing_in_and_out(client: Client, viewer: Viewer) -> None:
    wrong = body(client.post("/sign-in/", {"username": "ada", "password": "wrong"}))
    assert "correct username and password" in wrong
    page = body(client.post("/sign-in/", {"username": "ada", "password": "lovelace"}, follow=True))
    assert "Sign out" in page
    assert "Admin" not in page
    assert "Sign in" in body(client.post("/sign-out/", follow=True))


def test_staff_are_shown_the_way_to_the_admin(client: Client, db: None) -> None:
    client.force_login(get_user_model().objects.create_superuser("root"))
    assert 'href="/admin/"' in body(client.get("/"))


def test_visitors_do_not_see_what_others_asked_for(client: Client, styles: dict[str, Style]) -> None:
    client.post("/upload/", {"photos": jpeg()})
    image = Caption.objects.get().image_id
    assert f"/images/{image}/" in body(client.get("/gallery/"))
    assert f"/images/{image}/" not in body(Client().get("/gallery/"))


# When things go wrong


def test_what_is_not_there_is_told_in_a_sentence(client: Client, db: None, settings: Any) -> None:
    for url in (f"/requests/{uuid.uuid4()}/", f"/images/{uuid.uuid4()}/", "/nowhere/"):
        response = client.get(url)
        assert response.status_code == 404
        assert "Not found" in body(response)
        assert "Traceback" not in body(response)


def test_an_old_form_is_told_of_without_a_stack_trace(db: None) -> None:
    response = Client(enforce_csrf_checks=True).post("/upload/")
    assert response.status_code == 403
    assert "This form has expired" in body(response)


def test_an_error_of_ours_shows_no_stack_trace(client: Client, monkeypatch: pytest.MonkeyPatch, db: None) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(services, "visible_images", broken)
    client.raise_request_exception = False
    response = client.get("/")
    assert response.status_code == 500
    assert "Something went wrong" in body(response)
    assert "secret detail" not in body(response)


def test_pages_allow_no_inline_scripts_or_styles(client: Client, styles: dict[str, Style]) -> None:
    caption = asked(Viewer(visitor=EVERYBODY))[0]
    for url in ("/", "/gallery/", "/sign-in/", f"/images/{caption.image_id}/", f"/requests/{caption.request_id}/"):
        response = client.get(url)
        assert "default-src 'self'" in response["Content-Security-Policy"]
        page = body(response)
        assert "<style" not in page
        assert " style=" not in page
        assert "<script>" not in page
        assert "hx-on" not in page
        assert "//cdn" not in page


def test_waiting_captions_whose_worker_was_lost_are_looked_after(
    signed_in: Client, styles: dict[str, Style], viewer: Viewer
) -> None:
    caption = asked(viewer)[0]
    past = timezone.now() - timedelta(minutes=5)
    Caption.objects.filter(pk=caption.pk).update(created_at=past, deadline_at=past)
    signed_in.get(f"/requests/{caption.request_id}/")
    caption.refresh_from_db()
    assert caption.status == "failed"


def test_a_caption_that_is_tried_again_says_why_and_to_staff_by_whom(
    signed_in: Client, styles: dict[str, Style], viewer: Viewer
) -> None:
    asked(viewer, "factual")
    (row,) = Caption.objects.claim("w1@host", 1)
    row.hand_back(Failure("image_missing", "the stored image cannot be read; upload it again"))
    address = reverse("image", args=[row.image_id])
    page = body(signed_in.get(address))
    said = (
        "The last attempt failed: the stored image cannot be read; upload it again. It will be retried automatically."
    )
    assert said in page
    assert "w1@host" not in page
    viewer.user.is_staff = True
    viewer.user.save()
    assert "w1@host" in body(signed_in.get(address))
