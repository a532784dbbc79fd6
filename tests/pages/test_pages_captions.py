"""A photo's page: its captions as they arrive, how sure the models are, and what people change."""

import json
import uuid
from datetime import timedelta
from pathlib import Path

from django.test import Client
from django.urls import reverse
from django.utils import timezone

from captioner import services
from captioner.jobs.job import Failure
from captioner.models import (
    EVERYBODY,
    Caption,
    Correction,
    Image,
    Style,
    Viewer,
)
from tests.pages.captions import HTMX, asked, body, fail, finish, jpeg

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
    signed_in: Client, styles: dict[str, Style], caption: Caption
) -> None:
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


def test_a_correction_is_shown_beside_the_original_caption(signed_in: Client, viewer: Viewer, caption: Caption) -> None:
    finish(caption)
    fragment = body(signed_in.post(f"/captions/{caption.pk}/correct/", {"text": "a brick wall"}, headers=HTMX))
    assert "a brick wall" in fragment
    assert "Corrected by ada" in fragment
    assert "a red wall" in fragment
    assert Correction.objects.get().author == viewer.user


def test_an_empty_correction_is_refused_with_a_sentence(signed_in: Client, caption: Caption) -> None:
    finish(caption)
    answer = signed_in.post(f"/captions/{caption.pk}/correct/", {"text": " "}, headers=HTMX)
    assert answer.status_code == 422
    assert "1 to 500" in answer.json()["detail"]
    page = signed_in.post(f"/captions/{caption.pk}/correct/", {"text": " "})
    assert page.status_code == 422
    assert "1 to 500" in body(page)


def test_a_failed_caption_tells_why_and_can_be_tried_again(signed_in: Client, caption: Caption) -> None:
    fail(caption)
    page = body(signed_in.get(f"/requests/{caption.request_id}/"))
    assert "The lamp was out" in page
    assert "Try again" in page
    fragment = body(signed_in.post(f"/captions/{caption.pk}/retry/", headers=HTMX))
    assert "Queued" in fragment
    assert "1 caption remaining" in fragment


def test_a_queued_caption_can_be_canceled(signed_in: Client, caption: Caption) -> None:
    response = signed_in.post(f"/captions/{caption.pk}/cancel/")
    assert response["Location"] == f"/requests/{caption.request_id}/#caption-{caption.pk}"
    caption.refresh_from_db()
    assert caption.status == "canceled"


def test_deleting_asks_first(signed_in: Client, caption: Caption) -> None:
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
    assert "<summary>Edit" not in page
    for action in ("delete", "correct", "retry", "cancel"):
        assert client.post(f"/captions/{caption.pk}/{action}/", {"confirmed": "1", "text": "x"}).status_code == 404


# How sure the models are


OTHERS = [{"text": "a red door", "confidence": 0.2, "log_probability": -0.7}]


def test_a_caption_says_how_sure_it_is_and_folds_its_alternatives_away(signed_in: Client, caption: Caption) -> None:
    finish(caption, alternatives=OTHERS)
    page = body(signed_in.get(f"/requests/{caption.request_id}/"))
    assert "82 % sure" in page
    assert "Not sure about this one" not in page
    assert page.index("<summary>More") < page.index("a red door")


def test_an_unsure_caption_says_so_beside_what_else_it_might_be(signed_in: Client, caption: Caption) -> None:
    finish(caption, confidence=0.31, alternatives=OTHERS)
    page = body(signed_in.get(f"/requests/{caption.request_id}/"))
    assert "31 % sure" in page
    assert page.index("Not sure about this one: it might also be") < page.index("a red door")
    assert page.count("a red door") == 1
    assert page.index("a red door") < page.index("<summary>More")
    assert "not sure" in body(signed_in.get("/gallery/"))
    answer = signed_in.post("/progress/", {"waiting": f"{caption.pk}:queued"}, headers=HTMX)
    assert "Factual, not sure: a red wall." in body(answer)


def test_what_a_person_wrote_is_shown_without_the_machines_doubt(
    signed_in: Client, viewer: Viewer, caption: Caption
) -> None:
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


def test_waiting_captions_whose_worker_was_lost_are_rescued(signed_in: Client, caption: Caption) -> None:
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
