"""Photos: delete them with everything that hangs on them."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import QuerySet

from captioner import audit
from captioner.errors import Refused
from captioner.jobs.database import turn_to_write
from captioner.models import Caption, CaptionRequest, Draft, Image, Viewer
from captioner.services.retention import delete_images, lock_captions
from captioner.services.visibility import get_image, not_found, own_images

LONGEST_REASON = 500
BATCH = 50  # photos deleted in one transaction: on SQLite, nobody else writes for its part of a second


@dataclass(frozen=True)
class Deletion:
    """What would go with a photo, and what it takes to delete it.

    Args:
        captions: how many captions.
        needed_by: what else needs the photo, such as `2 examples`; empty if nothing does.
        takedown: it is somebody else's, or needed: whoever deletes it has to give a reason, which is kept.
    """

    image: Image
    captions: int
    needed_by: str
    takedown: bool

    @property
    def went(self) -> str:
        """What goes with the photo, for the audit log."""
        captions = f"{self.captions} caption{'' if self.captions == 1 else 's'}"
        return f"(with {', '.join(filter(None, (captions, self.needed_by)))})"


def deletion(viewer: Viewer, pk: uuid.UUID) -> Deletion:
    """What deleting a photo means, before it is done.

    Raises:
        Refused: there is none, or not for this viewer; or it is needed, and the viewer may not take photos down.
    """
    image = Image.objects.filter(pk=pk).first()
    own = image is not None and pk in own_images(viewer, [pk])
    if image is None or not (own or viewer.takes_down):
        get_image(viewer, pk)  # who may not even see it learns no more than that
        raise (
            not_found("image", pk)
            if image is None
            else Refused("not_yours", "only the person who sent this photo can delete it", status=403)
        )
    needed_by = ", ".join(
        f"{count} {rows.model._meta.verbose_name if count == 1 else rows.model._meta.verbose_name_plural}"
        for rows in _needing(image)
        if (count := rows.count())
    )
    if needed_by and not viewer.takes_down:
        raise Refused(
            "photo_in_use",
            f"a style learns from this photo ({needed_by}), so only an administrator can delete it; ask one",
            status=409,
        )
    return Deletion(image, image.captions.count(), needed_by, takedown=bool(needed_by) or not own)


def delete_image(viewer: Viewer, pk: uuid.UUID, reason: str = "") -> None:
    """Delete a photo with its captions and their corrections, whatever else refers to it, its embeddings and files.

    Captions that are queued or running go too; a worker that has one in hand holds no lease on it any more, and what
    it writes is not recorded. Requests without any caption left go with their last one.

    Args:
        reason: why; kept in the audit log. Needed for a photo that is not the viewer's, or that others need.

    Raises:
        Refused: there is none, or not for this viewer; it is needed, and the viewer may not take photos down; or it
            takes a reason.
    """
    if refused := delete_photos(viewer, [pk], reason):
        raise refused[0]


def delete_photos(viewer: Viewer, pks: Collection[uuid.UUID], reason: str = "") -> list[Refused]:
    """Delete photos as `delete_image` does, many in one transaction. What cannot be deleted keeps none of the others.

    Returns:
        Why some were not deleted: one error for each of them.
    """
    refused: list[Refused] = []
    ordered = sorted(set(pks))
    for start in range(0, len(ordered), BATCH):
        refused += _delete_batch(viewer, ordered[start : start + BATCH], " ".join(reason.replace("\0", "").split()))
    return refused


def _delete_batch(viewer: Viewer, pks: Sequence[uuid.UUID], reason: str) -> list[Refused]:
    going: list[Deletion] = []
    refused: list[Refused] = []
    with turn_to_write(), transaction.atomic():
        Image.lock(pks)  # nobody queues captions of them meanwhile
        for pk in pks:
            try:
                going.append(_deletion_for(viewer, pk, reason))
            except Refused as error:
                refused.append(error)
        if reason and viewer.takes_down:  # of their own photos too: the admin asks for one and says that it is kept
            for found in going:
                audit.record(audit.Action.DELETED, f"photo {found.image.pk}", f"{reason} {found.went}", viewer.user)
        images = [found.image.pk for found in going]
        captions, drafts = Caption.objects.filter(image__in=images), Draft.objects.filter(image__in=images)
        requests = list(captions.order_by().values_list("request", flat=True).distinct())
        drafts.lock()
        lock_captions(captions)
        drafts.delete()
        for found in going:
            for rows in _needing(found.image):
                rows.delete()
        captions.delete()
        CaptionRequest.objects.filter(pk__in=requests, captions=None).delete()
        delete_images(Image.objects.filter(pk__in=images))
    return refused


def _deletion_for(viewer: Viewer, pk: uuid.UUID, reason: str) -> Deletion:
    """What deleting a photo for this reason means.

    Raises:
        Refused: it may not be deleted, or not for this reason.
    """
    if len(reason) > LONGEST_REASON:
        raise Refused(
            "invalid_reason", f"a reason can have at most {LONGEST_REASON} characters", status=422, field="reason"
        )
    found = deletion(viewer, pk)
    if found.takedown and not reason:
        raise Refused(
            "reason_required",
            "to delete this photo, give a reason; the reason is kept in the audit log",
            status=422,
            field="reason",
        )
    return found


def _needing(image: Image) -> list[QuerySet[Any]]:
    """What needs the photo beside captions and drafts, which are made of it."""
    return [rows for rows in Image.rows_of(image) if rows.model not in (Caption, Draft)]
