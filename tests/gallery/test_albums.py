"""Albums: photos under a name, for one person alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect
from rest_framework.test import APIClient

from captioner import services
from captioner.errors import Refused
from captioner.models import EVERYBODY, Album, Caption, Image, Viewer
from tests.axe import violations
from tests.gallery.photos import keys, photo_of
from tests.people import client_of, program_of, window_of


@pytest.fixture
def album(viewer: Viewer, images: list[Image]) -> Album:
    """Hers, with the first two."""
    return services.create_album(viewer, "Holiday", [image.pk for image in images[:2]])


@pytest.fixture
def program(viewer: Viewer) -> APIClient:
    """A program of hers."""
    return program_of(viewer.user)


@pytest.fixture
def page(browser: Browser, live_server: Any, viewer: Viewer) -> Iterator[Page]:
    """A window of hers."""
    with window_of(viewer.user, browser, live_server.url, reduced_motion="reduce") as page:
        yield page


def names(album: Album) -> set[Image]:
    return set(album.photos.all())


def test_selected_photos_are_put_into_a_new_album_after_asking(ada: Client, images: list[Image]) -> None:
    chosen = {"photo": keys(images[:2])}
    asked = ada.post(reverse("selected-album"), chosen).content.decode()
    assert "Add 2 photos to an album" in asked
    assert "Your albums" not in asked
    done = ada.post(reverse("selected-album"), {**chosen, "name": "  By the \n sea "}, follow=True)
    album = Album.objects.get()
    assert (album.name, names(album)) == ("By the sea", set(images[:2]))
    assert done.redirect_chain[-1][0] == f"/gallery/?album={album.pk}"
    assert "2 photos are now in “By the sea”." in done.content.decode()


def test_selected_photos_are_put_into_an_album_that_there_is(ada: Client, images: list[Image], album: Album) -> None:
    asked = ada.post(reverse("selected-album"), {"photo": keys(images)}).content.decode()
    assert f'value="{album.pk}">Holiday<' in asked
    for _ in range(2):  # those in it already stay
        ada.post(reverse("selected-album"), {"photo": keys(images), "album": str(album.pk)})
    assert names(album) == set(images)


def test_the_gallery_and_its_downloads_are_narrowed_to_an_album(ada: Client, images: list[Image], album: Album) -> None:
    page = ada.get("/gallery/", {"album": str(album.pk)}).content.decode()
    assert '<data value="2">2</data> photos found' in page
    assert "a blue wall" not in page
    assert f'<option value="{album.pk}" selected>Holiday</option>' in page
    assert f'href="/images/{images[0].pk}/?album={album.pk}"' in page
    rows = json.loads(b"".join(ada.get("/gallery/captions.json", {"album": str(album.pk)}).streaming_content))  # type: ignore[attr-defined]
    assert {row["image"] for row in rows} == set(keys(images[:2]))
    assert (
        '<data value="1">1</data> photo found'
        in ada.get("/gallery/", {"album": str(album.pk), "q": "red"}).content.decode()
    )
    neighbour = ada.get(f"/images/{images[1].pk}/?album={album.pk}").content.decode()
    assert 'rel="prev"' not in neighbour
    assert f'rel="next" href="/images/{images[0].pk}/?album={album.pk}"' in neighbour


def test_an_album_without_photos_says_how_to_fill_it(ada: Client, viewer: Viewer) -> None:
    album = services.create_album(viewer, "Later")
    page = ada.get("/gallery/", {"album": str(album.pk)}).content.decode()
    assert "No photos in this album" in page
    assert "Select photos in the" in page


def test_photos_are_taken_out_of_an_album_and_stay(ada: Client, images: list[Image], album: Album) -> None:
    chosen = {"photo": keys(images[1:]), "album": str(album.pk)}
    done = ada.post(reverse("selected-album-remove"), chosen, follow=True).content.decode()
    assert "no longer in “Holiday”" in done
    assert names(album) == {images[0]}
    assert Image.objects.count() == 3


def test_an_album_is_renamed(ada: Client, album: Album) -> None:
    answer = ada.post(reverse("album-rename", args=[album.pk]), {"name": "Summer"})
    assert answer["Location"] == f"/gallery/?album={album.pk}"
    album.refresh_from_db()
    assert album.name == "Summer"


def test_an_album_is_deleted_after_asking_and_its_photos_stay(ada: Client, album: Album) -> None:
    address = reverse("album-delete", args=[album.pk])
    assert "Its photos and their captions stay." in ada.get(address).content.decode()
    ada.post(address)
    assert Album.objects.exists()  # not confirmed
    done = ada.post(address, {"confirmed": "yes"}, follow=True).content.decode()
    assert "The album “Holiday” was deleted. Its photos are still here." in done
    assert not Album.objects.exists()
    assert Image.objects.count() == 3
    assert ada.get("/gallery/", {"album": str(album.pk)}).status_code == 404


def test_a_deleted_photo_leaves_its_albums_and_a_deleted_user_takes_theirs_along(
    viewer: Viewer, images: list[Image], album: Album
) -> None:
    services.delete_image(viewer, images[0].pk)
    assert names(album) == {images[1]}
    viewer.user.delete()
    assert not Album.objects.exists()


@pytest.mark.parametrize("name", ["", " \n\0", "x" * 101])
def test_an_album_without_a_sensible_name_is_refused(ada: Client, images: list[Image], name: str) -> None:
    answer = ada.post(reverse("selected-album"), {"photo": keys(images), "name": name})
    assert answer.status_code == 422
    assert "must have 1 to 100 characters" in answer.content.decode()
    assert not Album.objects.exists()


def test_two_albums_of_one_person_have_different_names_and_those_of_others_do_not_matter(
    viewer: Viewer, album: Album
) -> None:
    services.create_album(Viewer(User.objects.create_user("bob")), "Holiday")
    services.create_album(Viewer(visitor="x"), "Holiday")
    with pytest.raises(Refused, match="already"):
        services.create_album(viewer, "Holiday")
    other = services.create_album(viewer, "Work")
    with pytest.raises(Refused, match="already"):
        services.rename_album(viewer, other.pk, "Holiday")
    with pytest.raises(Refused, match="already"):
        services.create_album(Viewer(visitor="x"), "Holiday")


def test_there_is_a_most_of_albums(viewer: Viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.services.albums.MOST_ALBUMS", 1)
    services.create_album(viewer, "One")
    with pytest.raises(Refused, match="delete one first"):
        services.create_album(viewer, "Two")


def test_only_photos_in_ones_own_lists_are_put_into_albums(viewer: Viewer, album: Album) -> None:
    example = photo_of(Viewer(visitor=EVERYBODY), "white")
    other = photo_of(Viewer(User.objects.create_user("bob")), "black")
    services.add_to_album(viewer, album.pk, [example.pk])
    with pytest.raises(Refused, match="was not found"):
        services.add_to_album(viewer, album.pk, [other.pk])
    with pytest.raises(Refused, match="was not found"):
        services.create_album(viewer, "Theirs", [other.pk])
    assert Album.objects.count() == 1


def test_nobody_sees_or_changes_the_albums_of_others_not_even_who_sees_all_captions(
    images: list[Image], album: Album
) -> None:
    for user in (User.objects.create_user("bob"), User.objects.create_superuser("boss")):
        client, program = client_of(user), program_of(user)
        assert "Holiday" not in client.get("/gallery/").content.decode()
        assert client.get("/gallery/", {"album": str(album.pk)}).status_code == 404
        assert program.get("/api/images/", {"album": str(album.pk)}).status_code == 404
        assert program.get("/api/albums/").json()["results"] == []
        assert services.search_captions(Viewer(user), album=album.pk).count() == 0


def test_a_visitor_has_albums_in_their_browser(client: Client) -> None:
    client.post(reverse("progress"))  # gives the browser a name
    image = photo_of(Viewer(visitor=client.session["visitor"]), "red")
    client.post(reverse("selected-album"), {"photo": str(image.pk), "name": "Mine"})
    assert ">Mine</option>" in client.get("/gallery/").content.decode()
    assert ">Mine</option>" not in Client().get("/gallery/").content.decode()


def test_empty_albums_of_visitors_go_with_what_they_asked_for(album: Album, viewer: Viewer) -> None:
    visitor = Viewer(visitor="x")
    photo_of(visitor, "white")
    services.create_album(visitor, "Old", [Image.objects.get(sender="visitor:x").pk])
    services.create_album(viewer, "Empty")
    old = timezone.now() - timedelta(days=9)
    for rows in (Album.objects, Image.objects):
        rows.update(created_at=old)
    services.prune(timedelta(days=1))
    assert Album.objects.filter(name="Old").exists()
    Caption.objects.filter(visitor="x").delete()
    services.prune(timedelta(days=1))
    services.prune(timedelta(days=1))
    assert set(Album.objects.values_list("name", flat=True)) == {"Holiday", "Empty"}


def test_a_program_does_all_of_it(program: APIClient, images: list[Image]) -> None:
    first, second, third = keys(images)
    made = program.post("/api/albums/", {"name": "Holiday", "image_id": first}, format="json")
    assert made.status_code == 201
    url = made.json()["url"]
    assert (made.json()["name"], made.json()["photos"]) == ("Holiday", 1)
    assert program.post(f"{url}add/", {"image_id": [second, third]}, format="json").json()["photos"] == 3
    assert program.post(f"{url}remove/", {"image_id": first}, format="json").json()["photos"] == 2
    listed = program.get("/api/images/", {"album": made.json()["id"]}).json()["results"]
    assert [image["id"] for image in listed] == [third, second]
    found = program.get("/api/images/", {"album": made.json()["id"], "q": "wall green"}).json()["results"]
    assert [image["id"] for image in found] == [second]
    assert program.patch(url, {"name": "Summer"}, format="json").json()["name"] == "Summer"
    assert [album["name"] for album in program.get("/api/albums/").json()["results"]] == ["Summer"]
    assert program.delete(url).status_code == 204
    assert program.get(url).json()["code"] == "not_found"
    assert Image.objects.count() == 3


def test_a_program_is_told_what_is_wrong(program: APIClient, album: Album) -> None:
    url = f"/api/albums/{album.pk}/"
    assert program.post("/api/albums/", {"name": "Holiday"}, format="json").json()["code"] == "name_taken"
    assert program.patch(url, {"nam": "x"}, format="json").status_code == 422
    assert program.post(f"{url}add/", {"image_id": str(album.pk)}, format="json").json()["code"] == "not_found"
    wrong = program.get("/api/images/", {"album": "holiday"})
    assert wrong.status_code == 422
    assert "album" in wrong.content.decode()
    stranger = APIClient().post("/api/albums/", {"name": "x"}, format="json")
    assert (stranger.status_code, stranger.json()["code"]) == (403, "not_signed_in")


@pytest.mark.django_db(transaction=True)
def test_an_album_is_made_narrowed_to_and_deleted_by_keyboard(page: Page, images: list[Image]) -> None:
    page.goto("/gallery/")
    for image in images[:2]:
        page.locator(f"[name=photo][value='{image.pk}']").press("Space")
    page.get_by_role("button", name="Add to album…").press("Enter")
    expect(page.get_by_role("heading", name="Add 2 photos to an album")).to_be_visible()
    page.get_by_label("New album").fill("Holiday")
    page.get_by_label("New album").press("Enter")
    expect(page.get_by_role("heading", name="Holiday")).to_be_visible()
    expect(page.locator(".tile")).to_have_count(2)
    for scheme, width in (("light", 1440), ("dark", 390)):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.set_viewport_size({"width": width, "height": 900})
        page.locator("[name=photo]").first.check()
        assert not violations(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="Remove from album").press("Enter")
    expect(page.locator(".tile")).to_have_count(1)
    page.get_by_label("Album").select_option("")
    expect(page.locator(".tile")).to_have_count(3)
    expect(page.get_by_role("button", name="Remove from album")).to_have_count(0)
    page.get_by_label("Album").select_option("Holiday")
    expect(page.locator(".tile")).to_have_count(1)
    page.get_by_text("Rename").press("Enter")
    page.get_by_label("New name").fill("Summer")
    page.get_by_label("New name").press("Enter")
    expect(page.get_by_role("heading", name="Summer")).to_be_visible()
    page.get_by_role("link", name="Delete album").press("Enter")
    page.get_by_role("button", name="Delete album").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Its photos are still here.")
    expect(page.locator(".tile")).to_have_count(3)
