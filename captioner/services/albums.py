"""Albums: make one, put photos into it, take them out, rename and delete it. The photos themselves stay."""

from __future__ import annotations

import uuid
from collections.abc import Collection

from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from captioner.errors import Refused
from captioner.models import Album, Image, Viewer
from captioner.services.captions import lock_images
from captioner.services.visibility import not_found, visible_images

LONGEST_ALBUM = 100  # characters of a name
MOST_ALBUMS = 500  # of one person


def own_albums(viewer: Viewer) -> QuerySet[Album]:
    """The viewer's albums, the newest first. Nobody sees those of others."""
    return Album.objects.filter(viewer.own())


def get_album(viewer: Viewer, pk: uuid.UUID) -> Album:
    """One of the viewer's albums.

    Raises:
        Refused: there is none.
    """
    album = own_albums(viewer).filter(pk=pk).first()
    if album is None:
        raise not_found("album", pk)
    return album


def create_album(viewer: Viewer, name: str, images: Collection[uuid.UUID] = ()) -> Album:
    """Make an album, with these photos of the viewer's lists.

    Raises:
        Refused: nobody could find it again, it has no name or that of another, there are too many, or a photo is not
            in the viewer's lists.
    """
    name = _tidy(name)
    if not viewer.sender:
        raise Refused("not_signed_in", "sign in to create albums", status=403)
    if own_albums(viewer).count() >= MOST_ALBUMS:
        raise Refused("too_many_albums", f"you have {MOST_ALBUMS} albums already; delete one first", status=409)
    try:
        with transaction.atomic():
            album = Album.objects.create(owner=viewer.user, visitor=viewer.visitor, name=name)
            _put(viewer, album, images)
    except IntegrityError as error:
        raise _taken(name) from error
    return album


def add_to_album(viewer: Viewer, pk: uuid.UUID, images: Collection[uuid.UUID]) -> Album:
    """Put photos of the viewer's lists into an album; those that are in it already stay.

    Raises:
        Refused: there is no such album, or a photo is not in the viewer's lists.
    """
    with transaction.atomic():
        album = _locked(viewer, pk)
        _put(viewer, album, images)
    return album


def remove_from_album(viewer: Viewer, pk: uuid.UUID, images: Collection[uuid.UUID]) -> Album:
    """Take photos out of an album; those that are not in it are passed over.

    Raises:
        Refused: there is no such album.
    """
    album = get_album(viewer, pk)
    album.photos.remove(*Image.objects.filter(pk__in=images))
    return album


def rename_album(viewer: Viewer, pk: uuid.UUID, name: str) -> Album:
    """Give an album another name.

    Raises:
        Refused: there is no such album, or the name is empty, too long or that of another.
    """
    get_album(viewer, pk)
    name = _tidy(name)
    try:
        with transaction.atomic():
            album = _locked(viewer, pk)
            album.name = name
            album.save(update_fields=["name"])
    except IntegrityError as error:
        raise _taken(name) from error
    return album


def delete_album(viewer: Viewer, pk: uuid.UUID) -> None:
    """Delete an album; its photos stay.

    Raises:
        Refused: there is no such album.
    """
    get_album(viewer, pk).delete()


def _locked(viewer: Viewer, pk: uuid.UUID) -> Album:
    """The album, which nobody deletes until the transaction ends."""
    album = own_albums(viewer).select_for_update().filter(pk=pk).first()
    if album is None:
        raise not_found("album", pk)
    return album


def _put(viewer: Viewer, album: Album, images: Collection[uuid.UUID]) -> None:
    wanted = set(images)
    seen = set(visible_images(viewer).filter(pk__in=wanted).values_list("pk", flat=True))
    if missing := wanted - seen:
        raise not_found("image", min(missing))
    lock_images(wanted)
    album.photos.add(*Image.objects.filter(pk__in=wanted))


def _tidy(name: str) -> str:
    name = " ".join(name.replace("\0", "").split())
    if not 1 <= len(name) <= LONGEST_ALBUM:
        raise Refused(
            "invalid_name", f"an album's name must have 1 to {LONGEST_ALBUM} characters", status=422, field="name"
        )
    return name


def _taken(name: str) -> Refused:
    return Refused(
        "name_taken",
        f"you have an album called “{name}” already; add the photos to that one, or choose another name",
        status=409,
        field="name",
    )
