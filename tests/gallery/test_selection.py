"""What is done with the photos selected in the gallery: deleted, captioned, downloaded, and how they are listed."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from PIL import Image as Pillow

from captioner import services
from captioner.models import EVERYBODY, AuditEntry, Caption, Image, Style, Viewer
from tests.gallery.photos import keys, photo_of
from training.models import Example


def body(response: Any) -> bytes:
    return b"".join(response.streaming_content)


def test_selected_photos_are_deleted_after_asking(ada: Client, images: list[Image]) -> None:
    chosen = {"photo": keys(images[:2])}
    asked = ada.post(reverse("selected-delete"), chosen).content.decode()
    assert "Delete 2 photos?" in asked
    assert 'name="reason"' not in asked
    assert Image.objects.count() == 3
    done = ada.post(reverse("selected-delete"), {**chosen, "confirmed": "yes"}, follow=True).content.decode()
    assert "2 photos were deleted." in done
    assert list(Image.objects.all()) == [images[2]]


def test_what_cannot_be_deleted_is_named_and_keeps_none_of_the_others(ada: Client, images: list[Image]) -> None:
    example = photo_of(Viewer(visitor=EVERYBODY), "white")
    Example.objects.create(
        style=Style.objects.get(slug="factual"), image=images[0], text="a wall", source="stored", held_out=False
    )
    chosen = {"photo": keys([example, *images])}
    asked = ada.post(reverse("selected-delete"), chosen).content.decode()
    assert "Delete 3 photos?" in asked
    assert "1 of the selected photos is not yours and stays." in asked
    done = ada.post(reverse("selected-delete"), {**chosen, "confirmed": "yes"}, follow=True).content.decode()
    assert "2 photos were deleted." in done
    assert "1 photo was not deleted: a style learns from this photo" in done
    assert "1 photo was not deleted: only the person who sent this photo can delete it." in done
    assert set(Image.objects.all()) == {example, images[0]}
    assert "Nothing to delete" in ada.post(reverse("selected-delete"), {"photo": keys([example])}).content.decode()


def test_staff_give_a_reason_for_what_is_not_theirs(client: Client, images: list[Image]) -> None:
    client.force_login(User.objects.create_superuser("boss"))
    chosen = {"photo": keys(images[:2])}
    assert 'name="reason"' in client.post(reverse("selected-delete"), chosen).content.decode()
    done = client.post(reverse("selected-delete"), {**chosen, "confirmed": "yes"}, follow=True).content.decode()
    assert "2 photos were not deleted: to delete this photo, give a reason" in done
    client.post(reverse("selected-delete"), {**chosen, "confirmed": "yes", "reason": "asked to"})
    assert AuditEntry.objects.filter(action="deleted", detail__startswith="asked to").count() == 2


def test_selected_photos_are_captioned_again_in_one_style(ada: Client, images: list[Image], settings: Any) -> None:
    answer = ada.post(reverse("selected-caption"), {"photo": keys(images[:2]), "styles": "romantic"})
    made = Caption.objects.filter(status="queued")
    assert {(caption.image, caption.style.slug) for caption in made} == {(image, "romantic") for image in images[:2]}
    assert answer["Location"] == reverse("request", args=[made[0].request_id])
    settings.MAX_IMAGES_PER_REQUEST = 2
    done = ada.post(reverse("selected-caption"), {"photo": keys(images), "styles": "factual"}, follow=True)
    assert "New captions of 3 photos were queued." in done.content.decode()
    assert Caption.objects.filter(status="queued", style__slug="factual").count() == 3


def test_selected_photos_are_downloaded_with_their_captions(ada: Client, images: list[Image]) -> None:
    chosen = {"photo": keys(images[:2])}
    rows = json.loads(body(ada.post(reverse("selected-json"), chosen)))
    assert {(row["image"], row["style"]) for row in rows} == {
        (str(image.pk), style) for image in images[:2] for style in ("factual", "romantic")
    }
    table = list(csv.DictReader(io.StringIO(body(ada.post(reverse("selected-csv"), chosen)).decode())))
    assert sorted(row["text"] for row in table) == sorted(row["text"] for row in rows)


def test_a_zip_has_each_photo_with_its_newest_captions_beside_it(
    ada: Client, viewer: Viewer, images: list[Image]
) -> None:
    again = services.request_captions(viewer=viewer, images=[images[0]], styles=["factual"]).captions.get()
    Caption.objects.filter(pk=again.pk).update(status="succeeded", finished_at=timezone.now(), text="a newer text")
    services.correct_caption(viewer, images[1].captions.get(style__slug="factual").pk, "grass,\nclosely seen")
    same, hostile = photo_of(viewer, "white", "RED.png"), photo_of(viewer, "black", "..\\..\\a:b?.jpg", ("factual",))
    images[2].file.delete(save=False)
    answer = ada.post(reverse("selected-zip"), {"photo": keys([*images, same, hostile])})
    assert answer["Content-Disposition"] == 'attachment; filename="captions.zip"'
    with zipfile.ZipFile(io.BytesIO(body(answer))) as archive:
        assert archive.testzip() is None
        texts = {name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".txt")}
        pictures = {name for name in archive.namelist() if name.endswith(".jpg")}
        assert Pillow.open(io.BytesIO(archive.read("green.jpg"))).size == (64, 48)
    assert pictures == {name.replace(".txt", ".jpg") for name in texts}
    assert texts == {
        "a_b_.txt": "a black wall, factual\n",
        "RED.txt": "a white wall, factual\na white wall, romantic\n",
        "red-2.txt": "a newer text\na red wall, romantic\n",
        "green.txt": "grass, closely seen\na green wall, romantic\n",
    }


def test_nobody_downloads_or_deletes_what_they_may_not_see(client: Client, images: list[Image]) -> None:
    client.force_login(User.objects.create_user("bob"))
    for name in ("delete", "caption", "json", "csv", "zip"):
        answer = client.post(reverse(f"selected-{name}"), {"photo": keys(images), "confirmed": "yes"})
        assert answer.status_code == 422
        assert "elect at least one photo first" in answer.content.decode()
    assert Image.objects.count() == 3


def test_too_many_at_once_are_refused(ada: Client, images: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.web.selection.MOST_SELECTED", 2)
    answer = ada.post(reverse("selected-zip"), {"photo": keys(images)})
    assert answer.status_code == 422
    assert "elect at most 2 photos at a time" in answer.content.decode()


def test_exports_of_those_who_see_all_are_recorded(client: Client, images: list[Image]) -> None:
    client.force_login(User.objects.create_superuser("boss"))
    client.post(reverse("selected-zip"), {"photo": keys(images)})
    entry = AuditEntry.objects.first()
    assert entry
    assert (entry.action, entry.subject) == ("exported", "3 photos as zip")


def shown(page: str) -> list[str]:
    return re.findall(r'name="photo" value="([^"]+)"', page)


def test_the_gallery_is_sorted_and_goes_on_in_that_order(
    ada: Client, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, image in enumerate(images):
        Image.objects.filter(pk=image.pk).update(created_at=timezone.now() - timedelta(days=9 - age))
    monkeypatch.setattr("captioner.web.pages.PHOTOS", 2)
    for sort, expected in (("oldest", keys(images)), ("", keys(images)[::-1]), ("nonsense", keys(images)[::-1])):
        first = ada.get("/gallery/", {"sort": sort}).content.decode()
        more = re.search(r'class="next"><a class="button" href="([^"]+)"', first)
        assert more
        rest = ada.get("/gallery/" + more[1].replace("&amp;", "&")).content.decode()
        assert shown(first) + shown(rest) == expected


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("name=RED", 1),
        ("name=.jpg", 3),
        ("name=nothing", 0),
        ("since=2026-03-02", 2),
        ("until=2026-03-02", 2),
        ("since=2026-03-02&until=2026-03-02&name=green", 1),
        ("q=wall&name=red&until=2026-03-01", 1),
        ("since=yesterday&until=9999-12-31", 3),
    ],
)
def test_photos_are_found_by_file_name_and_date(ada: Client, images: list[Image], query: str, found: int) -> None:
    for day, image in enumerate(images, start=1):
        noon = timezone.make_aware(datetime(2026, 3, day, 12))
        Caption.objects.filter(image=image).update(created_at=noon)
    page = ada.get(f"/gallery/?{query}").content.decode()
    assert page.count('class="tile') == found
    rows = json.loads(body(ada.get(f"/gallery/captions.json?{query}")))
    assert len({row["image"] for row in rows}) == found


def test_the_gallery_counts_what_it_found(ada: Client, images: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    assert '<data value="3">3</data> photos' in ada.get("/gallery/").content.decode()
    assert '<data value="1">1</data> photo found' in ada.get("/gallery/?q=red").content.decode()
    monkeypatch.setattr("captioner.web.pages.COUNTED", 2)
    assert 'more than <data value="2">2</data> photos' in ada.get("/gallery/").content.decode()


def test_a_photo_leads_to_its_neighbours_in_the_list_it_was_opened_from(ada: Client, images: list[Image]) -> None:
    Caption.objects.filter(image=images[1], style__slug="romantic").delete()

    def neighbours(image: Image, query: str) -> list[str | None]:
        page = ada.get(f"/images/{image.pk}/?{query}").content.decode()
        found = [re.search(rf'rel="{rel}" href="/images/([^/]+)/(?:\?{query})?"', page) for rel in ("prev", "next")]
        return [match[1] if match else None for match in found]

    first, second, third = keys(images)
    assert neighbours(images[1], "") == [third, first]
    assert neighbours(images[2], "") == [None, second]
    assert neighbours(images[1], "sort=oldest") == [first, third]
    assert neighbours(images[2], "style=romantic") == [None, first]
    assert neighbours(images[0], "q=wall")[1] is None
    assert neighbours(images[2], "q=red") == [None, None]
    page = ada.get("/gallery/?style=romantic").content.decode()
    assert f'href="/images/{first}/?style=romantic"' in page
