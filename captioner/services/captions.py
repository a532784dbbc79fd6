"""Captions: request, cancel, retry, correct and delete them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from itertools import count
from pathlib import PurePath
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Model

from captioner import audit, uploads
from captioner.errors import Refused
from captioner.jobs.database import turn_to_write
from captioner.jobs.job import clock, queued_at
from captioner.jobs.wakeup import wake_workers
from captioner.models import Caption, CaptionQuerySet, CaptionRequest, Correction, Image, Viewer, WebhookDelivery
from captioner.services import turns
from captioner.services.agreement import is_labelled
from captioner.services.idempotency import IdempotencyKey, earlier_request
from captioner.services.retention import delete_images, lock_captions
from captioner.services.styles import check_not_archived, choose_styles
from captioner.services.visibility import get_caption, not_found
from captioner.webhooks import client as webhooks
from clipcap.options import DecodingOptions

MAX_CAPTIONS_PER_REQUEST = 500
LONGEST_CAPTION = 100  # tokens
MOST_ALTERNATIVES = 10


@dataclass(frozen=True)
class Upload:
    """A file as it was sent."""

    data: bytes
    name: str = ""


def decoding_options(given: dict[str, Any]) -> DecodingOptions:
    """The validated options of a request.

    Raises:
        Refused: an option does not exist, is not valid or contradicts another.
    """
    names = [field.name for field in fields(DecodingOptions)]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise Refused(
            "invalid_options", f"unknown option {unknown[0]!r}; the options are {', '.join(names)}", status=422
        )
    try:
        options = DecodingOptions(**given)
    except (TypeError, ValueError) as error:
        raise Refused("invalid_options", str(error), status=422) from error
    for name, most in (
        ("captions", MOST_ALTERNATIVES),
        ("beam_size", MOST_ALTERNATIVES),
        ("max_length", LONGEST_CAPTION),
    ):
        if (getattr(options, name) or 0) > most:
            raise Refused("invalid_options", f"{name} can be at most {most}", status=422)
    return options


def kept_options(options: DecodingOptions) -> dict[str, Any]:
    """What is stored of options: those that say something, so that an older worker need not know the newest."""
    return {name: value for name, value in asdict(options).items() if value is not None}


def request_captions(
    *,
    viewer: Viewer,
    images: Sequence[Upload | Image],
    styles: Sequence[str] = (),
    options: dict[str, Any] | None = None,
    min_confidence: float | None = None,
    bulk: bool = False,
    deadline: timedelta | None = None,
    webhook_url: str = "",
    webhook_secret: str = "",
    webhook_previous_secret: str = "",
    into: uuid.UUID | None = None,
    once: IdempotencyKey | None = None,
    render: Callable[[CaptionRequest], dict[str, Any]] | None = None,
) -> CaptionRequest:
    """Store the images and queue a caption of each in each style, in this order; wake the workers on commit.

    Args:
        styles: slugs; `all`; none for the default style.
        options: fields of `DecodingOptions`.
        min_confidence: of a caption less likely to be right than that, 0 to 1, no words are kept.
        bulk: lets others pass, `turns.BULK_COST` captions for each.
        deadline: from now; what is still queued then fails.
        webhook_previous_secret: signs the webhook too, beside the new one, while its receiver changes secrets.
        into: the id of the request to add to, which is made if there is none. A picture that the request has in a
            style already is not queued again: an upload whose answer was lost can simply be repeated.
        once: makes a repetition of the call return the first one's request.
        render: makes of the new request the answer that is kept with it, to be given again to a repetition; its
            captions need no query.

    Raises:
        Refused: something of it cannot be met; then nothing was queued.
    """
    if once and (earlier := earlier_request(once)):
        return earlier
    chosen = choose_styles(styles)
    decoding = kept_options(decoding_options(options or {}))
    if min_confidence is not None and not 0 <= min_confidence <= 1:
        raise Refused(
            "invalid_min_confidence", "min_confidence must be from 0 to 1", status=422, field="min_confidence"
        )
    most = min(settings.MAX_IMAGES_PER_REQUEST, MAX_CAPTIONS_PER_REQUEST // len(chosen))
    if not images:
        raise Refused("no_image", "send at least one image", status=422)
    if len(images) > most:
        raise Refused(
            "too_many_images",
            f"{len(images)} images in {len(chosen)} style(s) are too many for one request; send at most {most}",
            status=422,
        )
    if webhook_url:
        webhooks.check_url(webhook_url)
        webhook_secret = webhooks.check_secret(webhook_secret)
        if webhook_previous_secret:
            webhooks.check_secret(webhook_previous_secret)
    uploads.check_pixels(image.data for image in images if isinstance(image, Upload))
    # Pictures are decoded before the transaction, which on SQLite keeps all other writers waiting.
    stored = [
        (stored_image(image, place, viewer.sender), tidy_name(getattr(image, "name", "")))
        for place, image in enumerate(images)
    ]
    try:
        with turn_to_write(), transaction.atomic():
            lock_images({image.pk for image, _ in stored})
            now = clock("default")
            owner = {"owner": viewer.user, "visitor": viewer.visitor}
            new = {
                **owner,
                "created_at": now,
                "idempotency_scope": once.scope if once else "",
                "idempotency_key": once.key if once else None,
                "body_sha256": once.body_sha256 if once else "",
            }
            if into:
                request, _ = CaptionRequest.objects.get_or_create(id=into, defaults=new)
            else:
                request = CaptionRequest.objects.create(**new)
            wanted = {(image.pk, style.pk) for image, _ in stored for style in chosen}
            there = _already_in(request, viewer, wanted) if into else {}
            known = {image: index for (image, _), index in there.items() if index is not None}
            following = count(max(known.values(), default=-1) + 1)
            indices = [known[image.pk] if image.pk in known else next(following) for image, _ in stored]
            ends = now + (deadline or settings.DEADLINE)
            queued = [
                Caption(
                    request=request,
                    image=image,
                    style=style,
                    name=name,
                    index=index,
                    place=place,
                    options=decoding,
                    min_confidence=min_confidence,
                    flow=viewer.flow,
                    bulk=bulk,
                    **owner,
                    **queued_at(now, ends),
                )
                for index, (image, name) in zip(indices, stored, strict=True)
                for place, style in enumerate(chosen)
                if (image.pk, style.pk) not in there
            ]
            for caption, turn in zip(queued, turns.take(viewer.flow, len(queued), bulk=bulk), strict=True):
                caption.turn = turn
            Caption.objects.bulk_create(queued)
            if not into:
                _keep(request, "captions", queued)
                for caption in queued:
                    _keep(caption, "corrections", [])
            if webhook_url:
                WebhookDelivery.objects.create(
                    request=request,
                    url=webhook_url,
                    host=webhooks.host_of(webhook_url),
                    secret=webhook_secret,
                    previous_secret=webhook_previous_secret,
                    created_at=now,
                    not_before=now,
                    deadline_at=ends + webhooks.PATIENCE,
                )
            if render and once:  # kept with the request, or neither is there
                request.answer = render(request)
                request.save(update_fields=["answer"])
            transaction.on_commit(wake_workers)
    except IntegrityError:
        if once and (earlier := earlier_request(once)):  # the same call, made twice at once
            return earlier
        raise
    if render and not once:  # after the transaction: on SQLite no other request is written while it lasts
        request.answer = render(request)
    return request


def cancel_caption(viewer: Viewer, pk: uuid.UUID) -> Caption:
    """Cancel a queued or running caption; a later result of a worker is not recorded.

    Raises:
        Refused: not there, or finished already.
    """
    caption = get_caption(viewer, pk, to="change")
    if not Caption.objects.filter(pk=caption.pk).cancel():
        raise Refused("already_finished", f"a caption with the status {caption.status} cannot be canceled", status=409)
    return get_caption(viewer, pk)


def cancelable(viewer: Viewer, captions: CaptionQuerySet) -> CaptionQuerySet:
    """Those of the captions that are unfinished and that the viewer may change."""
    return captions.order_by().filter(viewer.changeable()).unfinished()


def cancel_captions(viewer: Viewer, captions: CaptionQuerySet) -> int:
    """Cancel those of the captions that are unfinished and that the viewer may change: in one step, however many they
    are.

    Returns:
        How many that were.
    """
    return cancelable(viewer, captions).cancel()


def retry_caption(viewer: Viewer, pk: uuid.UUID) -> Caption:
    """Queue a failed or canceled caption again.

    Raises:
        Refused: not there, neither failed nor canceled, or its style is archived.
    """
    caption = get_caption(viewer, pk, to="change")
    with transaction.atomic():
        check_not_archived(caption.style)
        (turn,) = turns.take(caption.flow, 1, bulk=caption.bulk)
        if not caption.retry(clock("default") + settings.DEADLINE, turn=turn):
            raise Refused(
                "not_failed",
                f"only failed or canceled captions can be retried; the status of this one is {caption.status}",
                status=409,
            )
    wake_workers()
    return get_caption(viewer, pk)


def delete_caption(viewer: Viewer, pk: uuid.UUID) -> None:
    """Delete a caption, and its image if nothing else refers to the image.

    Raises:
        Refused: not there.
    """
    caption = get_caption(viewer, pk, to="delete")
    with transaction.atomic():
        Image.lock([caption.image_id])  # first, as who adds captions to a request does
        lock_captions(Caption.objects.filter(pk=pk))
        if viewer.user and caption.owner_id != viewer.user.pk:
            audit.record(audit.Action.DELETED, f"caption {pk}", str(caption), viewer.user)
        caption.delete()
        if not CaptionRequest.objects.filter(pk=caption.request_id, captions__isnull=False).exists():
            CaptionRequest.objects.filter(pk=caption.request_id).delete()
        delete_images(Image.objects.filter(pk=caption.image_id))


def correct_caption(viewer: Viewer, pk: uuid.UUID, text: str) -> Correction:
    """Save what a person says a caption should be; its own text confirms it.

    Raises:
        Refused: not there, not finished, or no text.
    """
    caption = get_caption(viewer, pk, to="change")
    text = " ".join(text.replace("\0", "").split())
    if not 1 <= len(text) <= 500:
        raise Refused("invalid_text", "a caption must have 1 to 500 characters", status=422, field="text")
    if not caption.finished:
        raise Refused(
            "not_finished", f"the caption is {caption.status}; it can be corrected when it is finished", status=409
        )
    confirms = text == " ".join(caption.text.split())
    with transaction.atomic():
        Caption.objects.filter(pk=pk).lock()  # so that two who label it at the same time both count
        correction = Correction.objects.create(caption=caption, text=text, confirms=confirms, author=viewer.user)
        Caption.objects.filter(pk=pk).update(labelled=is_labelled(caption))
        return correction


def tidy_name(name: str) -> str:
    """The last part of a file name, printable and not too long; for display only."""
    last = PurePath(name.replace("\\", "/")).name
    return "".join(c for c in last if c.isprintable())[:255]


def stored_image(image: Upload | Image, place: int, sender: str) -> Image:
    """An upload, stored, or the image that was stored before.

    Raises:
        Refused: it is not a picture within the limits; `index` and `name` say which of the uploads it is.
    """
    if isinstance(image, Image):
        return image
    try:
        return uploads.store(image.data, sender)
    except Refused as error:
        error.extra |= {"index": place, "name": tidy_name(image.name)}
        raise


def lock_images(pks: set[uuid.UUID]) -> None:
    """Keep images from being deleted before rows refer to them.

    Raises:
        Refused: one of them is gone already.
    """
    if len(Image.lock(pks)) < len(pks):
        raise Refused("conflict", "an image was deleted in the meantime; send the request again", status=409)


def _keep(row: Model, name: str, related: list[Any]) -> None:
    """Let the rows that refer to `row` be read as if they had been prefetched: they were written a moment ago, and to
    fetch them again took a fifth of a call."""
    rows = getattr(row, name).all()
    rows._result_cache, rows._prefetch_done = related, True
    row._prefetched_objects_cache = {name: rows}  # type: ignore[attr-defined]


def _already_in(
    request: CaptionRequest, viewer: Viewer, wanted: set[tuple[uuid.UUID, int]]
) -> dict[tuple[uuid.UUID, int], int | None]:
    """The pairs of image and style that a request has, to which the viewer wants to add, with the images' indices.

    Raises:
        Refused: it belongs to someone else, or is full.
    """
    if (request.owner_id, request.visitor) != (viewer.user and viewer.user.pk, viewer.visitor):
        raise not_found("request", request.pk)
    # Locked, so that the same upload made twice at once is added once.
    CaptionRequest.objects.select_for_update().get(pk=request.pk)
    there = {(image, style): index for image, style, index in request.captions.values_list("image", "style", "index")}
    if len(there.keys() | wanted) > MAX_CAPTIONS_PER_REQUEST:
        raise Refused(
            "too_many_images",
            f"a request can have at most {MAX_CAPTIONS_PER_REQUEST} captions; create another request for more photos",
            status=422,
        )
    return there
