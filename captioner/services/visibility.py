"""What a viewer may list, open and change."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Literal

from django.db.models import Exists, OuterRef, Prefetch, Q, QuerySet

from captioner import audit
from captioner.errors import Refused
from captioner.models import Caption, CaptionQuerySet, CaptionRequest, Image, Viewer

FEW = 5000  # captions


def note_export(viewer: Viewer, what: str, detail: str = "") -> None:
    """Record exports by users who may see more than their own data."""
    if viewer.sees_all:
        audit.record(audit.Action.EXPORTED, what, detail, viewer.user)


def visible_captions(viewer: Viewer) -> CaptionQuerySet:
    """What the viewer's lists show, with what they show of it, the newest first."""
    return with_parts(Caption.objects.filter(viewer.listed()))


def get_captions(viewer: Viewer, pks: Sequence[uuid.UUID]) -> list[Caption]:
    """Those of these captions that there are and that the viewer may open."""
    return list(with_parts(Caption.objects.filter(viewer.reachable(), pk__in=pks)))


def changeable(viewer: Viewer, captions: Iterable[Caption]) -> set[uuid.UUID]:
    """Which of the captions the viewer may cancel, try again and correct."""
    return _those(viewer.changeable(), captions)


def deletable(viewer: Viewer, captions: Iterable[Caption]) -> set[uuid.UUID]:
    """Which of the captions the viewer may delete."""
    return _those(viewer.deletable(), captions)


def _those(allowed: Q, captions: Iterable[Caption]) -> set[uuid.UUID]:
    ids = [caption.pk for caption in captions]
    return set(Caption.objects.filter(allowed, pk__in=ids).values_list("pk", flat=True))


def get_caption(viewer: Viewer, pk: uuid.UUID, *, to: Literal["view", "change", "delete"] = "view") -> Caption:
    """One caption, by its id.

    Args:
        to: what is to be done with it.

    Raises:
        Refused: there is none, or not for this viewer.
    """
    allowed = {"view": viewer.reachable, "change": viewer.changeable, "delete": viewer.deletable}[to]()
    caption = with_parts(Caption.objects.filter(allowed, pk=pk)).first()
    if caption is None:
        raise not_found("caption", pk)
    return caption


def visible_requests(viewer: Viewer) -> QuerySet[CaptionRequest]:
    """What the viewer's lists show, with captions, the newest first."""
    return with_captions(CaptionRequest.objects.filter(viewer.listed()))


def get_request(viewer: Viewer, pk: uuid.UUID) -> CaptionRequest:
    """One request with its captions.

    Raises:
        Refused: there is none, or not for this viewer.
    """
    request = with_captions(CaptionRequest.objects.filter(viewer.reachable(), pk=pk)).first()
    if request is None:
        raise not_found("request", pk)
    return request


def visible_images(viewer: Viewer, captions: QuerySet[Caption] | None = None) -> QuerySet[Image]:
    """The images of the captions in the viewer's lists, or of these `captions` among them, the newest first.

    Where they are few, they are looked up first: to find them, a database would go through all images.
    """
    listed = visible_captions(viewer) if captions is None else captions
    images = Image.objects.filter(Exists(listed.filter(image=OuterRef("pk")))).order_by("-created_at", "-pk")
    found: list[uuid.UUID] = []
    for part in viewer.listed_parts():
        found += listed.filter(part).order_by().values_list("image", flat=True)[: FEW + 1]
    return images if len(found) > FEW else images.filter(pk__in=set(found))


def get_image(viewer: Viewer, pk: uuid.UUID) -> Image:
    """One image, by its id.

    Raises:
        Refused: there is none, or not for this viewer.
    """
    captions = Caption.objects.filter(viewer.reachable(), image=OuterRef("pk"))
    image = Image.objects.filter(Exists(captions), pk=pk).first()
    if image is None:
        raise not_found("image", pk)
    return image


def get_picture(viewer: Viewer, pk: uuid.UUID) -> Image:
    """One image of which the viewer may see the picture: one that they may open, and staff with the permission any.

    Raises:
        Refused: there is none, or not for this viewer.
    """
    image = Image.objects.filter(pk=pk).first() if viewer.sees_photos else None
    return image or get_image(viewer, pk)


def own_images(viewer: Viewer, pks: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Which of the images the viewer may delete as their own: those that they sent. One whose sender cannot be known
    again is theirs who may delete every caption of it."""
    captions = Caption.objects.filter(image=OuterRef("pk"))
    others = captions.exclude(pk__in=Caption.objects.filter(viewer.deletable(), image=OuterRef(OuterRef("pk"))))
    theirs = Q(sender="") & Q(Exists(captions)) & ~Q(Exists(others))
    if viewer.sender:
        theirs |= Q(sender=viewer.sender)
    return set(Image.objects.filter(theirs, pk__in=list(pks)).values_list("pk", flat=True))


def with_parts(captions: CaptionQuerySet) -> CaptionQuerySet:
    """The captions with what is shown of them, in a few queries."""
    return captions.select_related("image", "style", "version__style").prefetch_related("corrections__author")


def with_captions(requests: QuerySet[CaptionRequest]) -> QuerySet[CaptionRequest]:
    """The requests with all that is said about their captions, as they were asked for: image by image, and of each
    image style by style. In a few queries, however many captions these are."""
    as_asked = Caption.objects.order_by("index", "place", "created_at", "pk")
    return requests.prefetch_related(Prefetch("captions", with_parts(as_asked)))


def not_found(what: str, pk: uuid.UUID | str) -> Refused:
    """The error for what is not there, or not for this viewer: these are not distinguished."""
    return Refused("not_found", f"{what} {pk} was not found, or you don't have access", status=404)
