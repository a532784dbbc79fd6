"""Drafts of versions: comparisons, and a style's regenerated captions."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import product
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from captioner import audit, uploads
from captioner.errors import Refused
from captioner.jobs.job import UNFINISHED, Status, clock, queued_at
from captioner.jobs.wakeup import wake_workers
from captioner.models import Caption, Draft, DraftRequest, Image, MapperVersion, Style, Viewer
from captioner.services.captions import Upload, kept_options, lock_images, stored_image
from captioner.services.styles import check_not_archived
from clipcap.options import DecodingOptions

MOST_COMPARED = {"versions": 6, "photos": 24}
PART = 1000  # captions of a style that are queued to be rewritten in one transaction
REWRITING = timedelta(days=7)  # how long the captions of a style may take to be rewritten; comparisons pass them


def compare_versions(
    *, versions: Sequence[MapperVersion], images: Sequence[Upload | Image], person: Any = None
) -> DraftRequest:
    """Have each of the versions, in service or not, write about each of the images; wake the workers on commit.

    Raises:
        Refused: nothing to compare or too much of it, or a file that is not a picture; then nothing was queued.
    """
    for what, given in {"versions": versions, "photos": images}.items():
        if not 1 <= len(given) <= MOST_COMPARED[what]:
            raise Refused(
                f"invalid_{what}",
                f"choose between 1 and {MOST_COMPARED[what]} {what}, not {len(given)}",
                status=422,
                field=what,
            )
    uploads.check_pixels(image.data for image in images if isinstance(image, Upload))
    sender = Viewer(person).sender
    stored = {image.pk: image for image in (stored_image(image, place, sender) for place, image in enumerate(images))}
    now = clock("default")
    with transaction.atomic():
        lock_images(set(stored))
        request = DraftRequest.objects.create(person=person, created_at=now)
        _queue(request, product(stored, versions), queued_at(now, now + settings.DEADLINE))
        transaction.on_commit(wake_workers)
    return request


def ask_for_drafts(*, version: MapperVersion, images: Sequence[uuid.UUID], person: Any = None) -> None:
    """Have a version, in service or not, write about stored images that it has written about in no draft yet, at low
    priority; wake the workers on commit. Call it in a transaction."""
    known = drafted(version, images, unfinished=True)
    missing = [image for image in images if image not in known]
    now = clock("default")
    times = queued_at(now, now + REWRITING, rank=now + REWRITING)
    request: DraftRequest | None = None
    for first in range(0, len(missing), PART):
        stored = Image.lock(missing[first : first + PART])
        if stored:
            request = request or DraftRequest.objects.create(person=person, created_at=now)
            _queue(request, product(stored, [version]), times)
    transaction.on_commit(wake_workers)


def _queue(
    request: DraftRequest, wanted: Iterable[tuple[uuid.UUID, MapperVersion]], times: dict[str, datetime]
) -> None:
    options = kept_options(DecodingOptions())
    Draft.objects.bulk_create(
        Draft(request=request, image_id=image, version=version, options=options, **times) for image, version in wanted
    )


def drafted(version: MapperVersion, images: Sequence[uuid.UUID], *, unfinished: bool = False) -> dict[uuid.UUID, str]:
    """What a version has written about images in drafts, with the options that captions have by default.

    Args:
        unfinished: with "" for those that are queued or being written.
    """
    statuses = [Status.SUCCEEDED, *(UNFINISHED if unfinished else ())]
    options = kept_options(DecodingOptions())
    found: dict[uuid.UUID, str] = {}
    for first in range(0, len(images), PART):
        rows = Draft.objects.filter(version=version, caption=None, status__in=statuses)
        of_part = rows.filter(image__in=images[first : first + PART])
        found |= {row.image_id: row.text for row in of_part.order_by("created_at") if row.options == options}
    return found


def to_rewrite(style: Style, version: MapperVersion | None) -> QuerySet[Caption]:
    """The captions of a style that another version wrote than this, and that none is rewriting yet."""
    drafts = Draft.objects.unfinished().filter(caption=OuterRef("pk"))
    return Caption.objects.filter(~Exists(drafts), ~Q(version=version), style=style, status="succeeded")


def rewrite_captions(*, style: Style, person: Any = None) -> DraftRequest:
    """Regenerate all captions of a style with the version in service, at low priority.

    Each caption keeps its text until the new one is there, and its corrections for good. Called again, it goes on with
    what is left.

    Raises:
        Refused: no version is in service, it wrote all of them, or the style is archived.
    """
    version = style.version_in_service
    if version is None:
        raise Refused("no_active_version", f"{style.name} has no version in service; promote one first", status=409)
    now = clock("default")
    if not to_rewrite(style, version).exists():
        raise Refused("nothing_to_rewrite", f"{version} has already written all captions of {style.name}", status=409)
    with transaction.atomic():
        check_not_archived(style)
        request = DraftRequest.objects.create(person=person, style=style, version=version, listing=True, created_at=now)
        audit.record(audit.Action.SERVICE, f"captions of {style}", f"queued for regeneration by {version}", person)
    list_rewritings()  # the first part at once, the others by the workers
    return request


def list_rewritings() -> int:
    """Queue the next part of the captions to regenerate, of one request. Workers do it again and again;
    safe to call by anyone, at any time.

    Returns:
        How many captions were queued.
    """
    with transaction.atomic():
        waiting = DraftRequest.objects.filter(listing=True).order_by("created_at").select_related("style", "version")
        if connection.features.has_select_for_update_skip_locked:
            waiting = waiting.select_for_update(skip_locked=True, of=("self",))
        request = waiting.first()
        if request is None or request.style is None:
            return 0
        left = to_rewrite(request.style, request.version).order_by("-created_at", "-pk")
        if request.listed_to:
            left = left.filter(created_at__lte=request.listed_to)  # those of that very moment are drafts by now
        # Locked, so that none is deleted before its draft refers to it; in one order, against deadlocks.
        chosen = [pk for pk, _ in left.values_list("pk", "created_at")[:PART]]
        captions = list(Caption.objects.select_for_update().filter(pk__in=chosen).order_by("pk"))
        ends = request.created_at + REWRITING
        times = queued_at(request.created_at, ends, rank=ends)
        Draft.objects.bulk_create(
            [
                Draft(
                    request=request,
                    image_id=caption.image_id,
                    version=request.version,
                    caption=caption,
                    options=caption.options,
                    **times,
                )
                for caption in captions
            ],
            ignore_conflicts=True,  # someone else may have started the same
        )
        request.listing = len(chosen) == PART
        request.listed_to = min((caption.created_at for caption in captions), default=request.listed_to)
        request.save(update_fields=["listing", "listed_to"])
        transaction.on_commit(wake_workers)
    return len(captions)


def cancel_drafts(request: DraftRequest) -> int:
    """Cancel what is not written yet.

    Returns:
        How many drafts that were.

    Raises:
        Refused: nothing is left to cancel.
    """
    with transaction.atomic():
        stopped = DraftRequest.objects.filter(pk=request.pk, listing=True).update(listing=False)
        count: int = Draft.objects.filter(request=request).cancel()
    if not count and not stopped:
        raise Refused("already_finished", "everything is already finished", status=409)
    return count
