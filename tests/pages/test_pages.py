"""The pages as a browser without JavaScript gets them, and the fragments that htmx asks for."""

import csv
import io
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.utils import timezone

from captioner import services
from captioner.models import (
    EVERYBODY,
    Caption,
    Image,
    Style,
    Viewer,
)
from tests.pages.captions import HTMX, JSON, asked, body, finish, jpeg

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


def test_what_is_not_there_is_answered_with_a_sentence(client: Client, db: None, settings: Any) -> None:
    for url in (f"/requests/{uuid.uuid4()}/", f"/images/{uuid.uuid4()}/", "/nowhere/"):
        response = client.get(url)
        assert response.status_code == 404
        assert "Not found" in body(response)
        assert "Traceback" not in body(response)


def test_an_old_form_is_reported_without_a_stack_trace(db: None) -> None:
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
