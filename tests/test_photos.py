"""A photo is deleted with everything that hangs on it: by its owner, and by staff with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from captioner import services
from captioner.errors import Refused
from captioner.inference.engine import CaptionEngine
from captioner.models import (
    AuditEntry,
    Caption,
    CaptionRequest,
    Correction,
    DiscardedFile,
    Draft,
    Embedding,
    Image,
    Style,
    Viewer,
)
from captioner.search.vectors import VectorFile
from captioner.services import photos
from tests.pages.captions import jpeg
from tests.people import client_of, program_of
from training.models import Example


@pytest.fixture
def image(viewer: Viewer, styles: dict[str, Style], photo: bytes) -> Image:
    """Ada's photo, queued to be captioned in every style."""
    services.request_captions(viewer=viewer, images=[services.Upload(photo, "sea.jpg")], styles=["all"])
    return Image.objects.get()


@pytest.fixture
def other(viewer: Viewer, image: Image) -> Image:
    """Another photo of hers, in a request of its own."""
    photo = (Path(__file__).parent.parent / "examples/coco_cc/000000012280.jpg").read_bytes()
    services.request_captions(viewer=viewer, images=[services.Upload(photo)])
    return Image.objects.exclude(pk=image.pk).get()


@pytest.fixture
def ada(viewer: Viewer) -> Client:
    return client_of(viewer.user)


@pytest.fixture
def grace(db: None) -> User:
    """Staff that may view everything and take photos down."""
    user = User.objects.create_user("grace", is_staff=True)
    names = ("delete_image", "view_image", "view_caption")
    user.user_permissions.set(Permission.objects.filter(codename__in=names, content_type__app_label="captioner"))
    return user


@pytest.fixture
def staff(grace: User) -> Client:
    return client_of(grace)


def files_of(image: Image) -> list[bool]:
    return [file.storage.exists(str(file.name)) for file in (image.file, image.thumbnail)]


def learn_from(image: Image, style: Style) -> None:
    Example.objects.create(style=style, image=image, text="the sea", source=Example.Source.STORED, held_out=False)


@pytest.mark.django_db(transaction=True)
def test_everything_of_a_photo_goes_with_it_and_nothing_of_others(
    viewer: Viewer, image: Image, other: Image, engine: CaptionEngine, index_folder: Path
) -> None:
    engine.work()
    services.correct_caption(viewer, image.captions.first().pk, "the sea")  # type: ignore[union-attr]
    services.compare_versions(versions=[Style.objects.all()[0].version_in_service], images=[image])  # type: ignore[list-item]
    services.similar_images(viewer, image.pk)  # fills the index
    services.delete_image(viewer, image.pk)
    assert list(Image.objects.all()) == [other]
    assert {caption.image for caption in Caption.objects.all()} == {other}
    assert CaptionRequest.objects.count() == 1
    assert not Correction.objects.exists()
    assert not Draft.objects.exists()
    assert [embedding.image for embedding in Embedding.objects.all()] == [other]
    assert files_of(image) == [False, False]
    assert files_of(other) == [True, True]
    (index,) = [VectorFile(path) for path in index_folder.glob("*.vectors")]
    _, images = index.newest(10)
    assert sorted(row.tobytes() for row in images) == sorted([bytes(16), other.pk.bytes])


def test_a_request_keeps_its_captions_of_other_photos(viewer: Viewer, image: Image, other: Image) -> None:
    both = services.request_captions(viewer=viewer, images=[image, other])
    services.delete_image(viewer, image.pk)
    assert [caption.image for caption in CaptionRequest.objects.get(pk=both.pk).captions.all()] == [other]


def test_a_worker_that_has_its_caption_in_hand_records_nothing_and_fails_nothing(
    viewer: Viewer, image: Image, other: Image, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = engine.captioner.caption

    def slowly(*arguments: Any, **options: Any) -> Any:
        written = write(*arguments, **options)
        if Image.objects.filter(pk=image.pk).exists():
            services.delete_image(viewer, image.pk)
        return written

    monkeypatch.setattr(engine.captioner, "caption", slowly)
    engine.work()
    assert [caption.status for caption in Caption.objects.all()] == ["succeeded"]
    assert Caption.objects.get().image == other
    assert engine.breaker.limit(8) == 8


@pytest.mark.django_db(transaction=True)
def test_a_photo_that_is_deleted_while_a_worker_looks_at_it_leaves_nothing(
    viewer: Viewer, image: Image, other: Image, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = engine.captioner.encoder.encode_pixels

    def slowly(pixels: Any) -> Any:
        if Image.objects.filter(pk=image.pk).exists():
            services.delete_image(viewer, image.pk)
        return look(pixels)

    monkeypatch.setattr(engine.captioner.encoder, "encode_pixels", slowly)
    engine.work()
    assert [caption.status for caption in Caption.objects.all()] == ["succeeded"]
    assert not Embedding.objects.filter(image=image.pk).exists()
    assert engine.breaker.limit(8) == 8


def test_its_owner_deletes_it_on_its_page_after_being_asked(ada: Client, image: Image) -> None:
    address = reverse("image-delete", args=[image.pk])
    assert address in ada.get(reverse("image", args=[image.pk])).content.decode()
    asked = ada.get(address).content.decode()
    assert "Its 3 captions and their corrections are deleted too." in asked
    assert 'name="reason"' not in asked
    assert ada.post(address).status_code == 200  # not confirmed
    assert Image.objects.exists()
    answer = ada.post(address, {"confirmed": "yes"}, follow=True)
    assert "The photo was deleted." in answer.content.decode()
    assert not Image.objects.exists()
    assert not AuditEntry.objects.filter(action="deleted").exists()  # theirs to delete


def test_a_program_deletes_its_photo_and_is_told_when_it_is_gone(viewer: Viewer, image: Image) -> None:
    client = program_of(viewer.user)
    assert client.delete(f"/api/images/{image.pk}/").status_code == 204
    assert client.delete(f"/api/images/{image.pk}/").json()["code"] == "not_found"
    assert client.delete(f"/api/images/{image.pk}/?reson=x").status_code == 422


def test_who_may_see_a_photo_may_not_delete_it(image: Image) -> None:
    user = User.objects.create_user("viewer")
    user.user_permissions.add(Permission.objects.get(codename="view_caption"))
    client = program_of(user)
    answer = client.delete(f"/api/images/{image.pk}/")
    assert (answer.status_code, answer.json()["code"]) == (403, "not_yours")
    client.force_authenticate(User.objects.create_user("bob"))
    assert client.delete(f"/api/images/{image.pk}/").status_code == 404
    page = client_of(user)
    assert reverse("image-delete", args=[image.pk]) not in page.get(reverse("image", args=[image.pk])).content.decode()


def test_an_anonymous_program_deletes_by_id_what_it_sent_but_nothing_that_others_asked_for(
    styles: dict[str, Style], photo: bytes, viewer: Viewer
) -> None:
    nobody = Viewer()
    services.request_captions(viewer=nobody, images=[services.Upload(photo)])
    image = Image.objects.get()
    for visitor in (Viewer(visitor="x"), viewer):
        asked = services.request_captions(viewer=visitor, images=[image])
        with pytest.raises(Refused, match="only the person who sent"):
            services.delete_image(nobody, image.pk)
        asked.delete()
    services.delete_image(nobody, image.pk)
    assert not Image.objects.exists()


def test_staff_take_a_photo_down_with_a_reason_which_is_kept(staff: Client, image: Image) -> None:
    address = reverse("image-delete", args=[image.pk])
    assert 'name="reason"' in staff.get(address).content.decode()
    answer = staff.post(address, {"confirmed": "yes", "reason": " "})
    assert answer.status_code == 422
    assert "give a reason" in answer.content.decode()
    staff.post(address, {"confirmed": "yes", "reason": "the person in it asked us to"})
    assert not Image.objects.exists()
    entry = AuditEntry.objects.get(action="deleted")
    assert (entry.who, entry.subject) == ("grace", f"photo {image.pk}")
    assert entry.detail == "the person in it asked us to (with 3 captions)"


def test_staff_take_a_photo_down_by_the_api(grace: User, image: Image) -> None:
    client = program_of(grace)
    answer = client.delete(f"/api/images/{image.pk}/")
    assert (answer.status_code, answer.json()["field"]) == (422, "reason")
    assert client.delete(f"/api/images/{image.pk}/?reason={'x' * 501}").json()["code"] == "invalid_reason"
    assert client.delete(f"/api/images/{image.pk}/?reason=asked+to").status_code == 204
    assert AuditEntry.objects.get(action="deleted").detail.startswith("asked to")


def test_a_photo_that_a_style_learns_from_is_left_to_administrators(
    ada: Client, viewer: Viewer, staff: Client, image: Image
) -> None:
    learn_from(image, Style.objects.get(slug="factual"))
    answer = ada.get(reverse("image-delete", args=[image.pk]))
    assert answer.status_code == 409
    assert "A style learns from this photo (1 example)" in answer.content.decode()
    with pytest.raises(Refused, match="only an administrator"):
        services.delete_image(viewer, image.pk)
    address = reverse("admin:captioner_image_remove", args=[image.pk])
    assert "what it learns from is deleted too: 1 example" in staff.get(address).content.decode()
    assert "required" in staff.post(address, {"reason": ""}).content.decode()
    assert staff.post(address, {"reason": "asked to"}).status_code == 302
    assert not Image.objects.exists()
    assert not Example.objects.exists()
    assert AuditEntry.objects.get(action="deleted").detail == "asked to (with 3 captions, 1 example)"


def test_the_reason_for_deleting_ones_own_photo_in_the_admin_is_kept_too(
    staff: Client, grace: User, photo: bytes, styles: dict[str, Style]
) -> None:
    upload = services.Upload(photo)
    own = services.request_captions(viewer=Viewer(grace), images=[upload]).captions.get().image
    staff.post(reverse("admin:captioner_image_remove", args=[own.pk]), {"reason": "asked to"})
    assert not Image.objects.exists()
    entry = AuditEntry.objects.get(action="deleted")
    assert (entry.who, entry.detail) == ("grace", "asked to (with 1 caption)")


def test_staff_take_several_down_from_the_list(staff: Client, image: Image, other: Image) -> None:
    address = reverse("admin:captioner_image_changelist")
    chosen = {"action": "remove_chosen", "_selected_action": [image.pk, other.pk], "index": "0"}
    asked = staff.post(address, chosen).content.decode()
    assert "Delete 2 photos?" in asked
    assert Image.objects.count() == 2
    assert "This field is required" in staff.post(address, {**chosen, "sure": "1"}).content.decode()
    done = staff.post(address, {**chosen, "sure": "1", "reason": "asked to"}, follow=True)
    assert "2 photos were deleted." in done.content.decode()
    assert not Image.objects.exists()
    assert AuditEntry.objects.filter(action="deleted", detail__startswith="asked to").count() == 2


@pytest.mark.django_db(transaction=True)
def test_many_are_deleted_in_a_few_transactions_and_what_is_needed_stays_with_all_of_its_own(
    viewer: Viewer, styles: dict[str, Style], monkeypatch: pytest.MonkeyPatch, media: Path
) -> None:
    def sent(colour: str) -> Image:
        upload = services.Upload(jpeg(colour=colour).read())
        return services.request_captions(viewer=viewer, images=[upload], styles=["factual"]).captions.get().image

    images = [sent(f"#{number}00") for number in range(5)]
    services.request_captions(viewer=viewer, images=images, styles=["factual"])
    learn_from(images[2], styles["factual"])
    gone = [image for image in images if image != images[2]]
    monkeypatch.setattr(photos, "BATCH", 2)
    with CaptureQueriesContext(connection) as asked:
        (refused,) = services.delete_photos(viewer, [image.pk for image in images] * 2)
    written = [query for query in asked if 'DELETE FROM "captioner_image"' in query["sql"]]
    assert len(written) <= 3  # of five photos; what stays may have been the only one in its transaction
    assert refused.code == "photo_in_use"
    assert list(Image.objects.all()) == [images[2]]
    assert Caption.objects.filter(image=images[2]).count() == Caption.objects.count() == 2
    assert CaptionRequest.objects.count() == 2
    assert files_of(images[2]) == [True, True]
    assert [files_of(image) for image in gone] == [[False, False]] * 4
    assert not DiscardedFile.objects.exists()


def addresses(image: Image, kind: str) -> list[str]:
    return [reverse(f"image-{kind}", args=[image.pk]), f"/api/images/{image.pk}/{kind}/"]


@pytest.mark.parametrize("kind", ["file", "thumbnail"])
def test_a_picture_is_answered_alike_everywhere_and_its_bytes_are_sent_once(
    ada: Client, image: Image, kind: str
) -> None:
    answers = [ada.get(address) for address in addresses(image, kind)]
    shown = ("Content-Type", "Cache-Control", "X-Content-Type-Options", "ETag", "Content-Length", "Content-Disposition")
    assert len({tuple(answer[name] for name in shown) for answer in answers}) == 1
    for address in addresses(image, kind):
        again = ada.get(address, headers={"If-None-Match": answers[0]["ETag"]})
        assert (again.status_code, again["ETag"], again.content) == (304, answers[0]["ETag"], b"")


def test_a_browser_that_has_a_picture_is_told_no_more_of_it_once_it_is_not_theirs_to_see(
    ada: Client, grace: User, image: Image
) -> None:
    etag = ada.get(addresses(image, "file")[0])["ETag"]
    stranger = client_of(User.objects.create_user("eve"))
    for address in addresses(image, "file"):
        assert stranger.get(address, headers={"If-None-Match": etag}).status_code == 404


def test_staff_see_pictures_without_captions_with_the_permission_alone(
    staff: Client, grace: User, image: Image
) -> None:
    Caption.objects.all().delete()
    assert {staff.get(address).status_code for address in addresses(image, "thumbnail")} == {200}
    grace.user_permissions.remove(Permission.objects.get(codename="view_image"))
    assert {staff.get(address).status_code for address in addresses(image, "thumbnail")} == {404}
