"""Everything a user can do, one function each. The API, the pages, the admin and the commands call these.

Who may do it is decided by the caller's `viewer` here, never by what a page shows. Errors are `Refused`. Workers are
rung on commit, by a task's name: this module loads no model and no torch.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from functools import partial, reduce
from itertools import count
from operator import and_, or_
from pathlib import Path, PurePath
from typing import Any, Literal

from django.conf import settings
from django.core.cache import cache
from django.core.files import File
from django.db import Error as DatabaseError
from django.db import IntegrityError, connection, transaction
from django.db.models import Exists, Max, OuterRef, Prefetch, ProtectedError, Q, QuerySet
from django.utils import timezone

from captioner import audit, meaning, storage, turns, uploads, webhooks
from captioner.bells import ring
from captioner.errors import Refused
from captioner.jobs import UNFINISHED, Status, clock
from captioner.models import (
    Caption,
    CaptionQuerySet,
    CaptionRequest,
    Correction,
    DeliveryQuerySet,
    Draft,
    DraftRequest,
    Embedding,
    Image,
    MapperVersion,
    Promotion,
    Queue,
    Style,
    TextEmbedding,
    Viewer,
    WebhookDelivery,
    Worker,
)
from captioner.vectors import BrokenIndex
from captioner.writing import turn_to_write
from clipcap.fingerprint import file_sha256
from clipcap.options import DecodingOptions

log = logging.getLogger(__name__)

IDEMPOTENCY = timedelta(hours=24)
MAX_CAPTIONS_PER_REQUEST = 500
MOST_COMPARED = {"versions": 6, "photos": 24}
PART = 1000  # captions of a style that are queued to be rewritten in one transaction
REWRITING = timedelta(days=7)  # how long the captions of a style may take to be rewritten; comparisons pass them
LONGEST_CAPTION = 100  # tokens
MOST_ALTERNATIVES = 10
MOST_WORDS = 10  # of a search
LONGEST_SEARCH = 200  # characters
MOST_FOUND = {"words": 1000, "meaning": 500}  # photos of one search, by each
SIMILAR = 24
PATIENCE = 1.0  # seconds that a search waits for a worker to look it up
TEXTS_KEPT = timedelta(days=30)
LONGEST_CHECK = 300  # seconds for looking at an uploaded mapper


@dataclass(frozen=True)
class Once:
    """What makes a repeated call known: the client's key, whose it is, and the digest of all that was sent."""

    scope: str
    key: str
    body_sha256: str


@dataclass(frozen=True)
class Upload:
    """A file as it was sent."""

    data: bytes
    name: str = ""


Match = Literal["words", "meaning"]
MeaningStatus = Literal["searched", "pending", "unavailable"]


@dataclass(frozen=True)
class Hit:
    """A photo that a search found, and by what: words in its captions, what it shows, or both."""

    image: uuid.UUID
    matched: tuple[Match, ...]


@dataclass(frozen=True)
class Search:
    """What a search found, the best first, and whether photos were searched by what they show.

    `meaning` is `pending` where a worker has still to look at the text, or not all photos are in the index yet: the
    same search finds more in a moment. `detail` says why it is not `searched`.
    """

    hits: list[Hit]
    meaning: MeaningStatus
    detail: str = ""


# Whoever waits for a worker holds a thread of the server: at most half of them may be held so.
_waiting = threading.BoundedSemaphore(max(1, settings.WEB_THREADS // 2))


def decoding_options(given: dict[str, Any]) -> DecodingOptions:
    """The options of a request, checked.

    Raises:
        Refused: an option that does not exist, has no sense or contradicts another.
    """
    names = [field.name for field in fields(DecodingOptions)]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise Refused("invalid_options", f"there is no option {unknown[0]!r}; there are {', '.join(names)}", status=422)
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


def _kept(options: DecodingOptions) -> dict[str, Any]:
    """What is stored of options: those that say something, so that an older worker need not know the newest."""
    return {name: value for name, value in asdict(options).items() if value is not None}


def styles_in_service() -> QuerySet[Style]:
    """Those that have a version in service, the default one first."""
    return Style.objects.filter(Exists(Promotion.objects.filter(style=OuterRef("pk"))))


def note_export(viewer: Viewer, what: str, detail: str = "") -> None:
    """Record what somebody exports who may see more than what is theirs."""
    if viewer.sees_all:
        audit.record(audit.Action.EXPORTED, what, detail, viewer.user)


def get_style(slug: str) -> Style:
    """One style in service.

    Raises:
        Refused: there is none.
    """
    style = styles_in_service().filter(slug=slug).first()
    if style is None:
        raise _not_found("style", slug)
    return style


def choose_styles(names: Sequence[str]) -> list[Style]:
    """The styles of these slugs; of `all`, every style in service; of none, the default one.

    Raises:
        Refused: no such style, or it has no version in service.
    """
    in_service = styles_in_service()
    if not in_service:
        raise Refused("no_styles", "no style is in service; an administrator has to promote a version", status=503)
    if "all" in names:
        return list(in_service)
    if not names:
        return [in_service[0]]
    found = {style.slug: style for style in in_service.filter(slug__in=names)}
    missing = [name for name in names if name not in found]
    if missing:
        slugs = ", ".join(in_service.values_list("slug", flat=True))
        raise Refused("unknown_style", f"there is no style {missing[0]!r} in service; there are {slugs}", status=422)
    return [found[name] for name in dict.fromkeys(names)]


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
    once: Once | None = None,
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
        render: makes of the new request the answer that is kept with it, to be given again to a repetition.

    Raises:
        Refused: something of it cannot be met; then nothing was queued.
    """
    if once and (earlier := _earlier(once)):
        return earlier
    chosen = choose_styles(styles)
    decoding = _kept(decoding_options(options or {}))
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
        (_stored(image, place, viewer.sender), tidy_name(getattr(image, "name", "")))
        for place, image in enumerate(images)
    ]
    try:
        with turn_to_write(), transaction.atomic():
            _lock_images({image.pk for image, _ in stored})
            now = clock("default")
            owner = {"owner": viewer.user, "visitor": viewer.visitor}
            request, _ = CaptionRequest.objects.get_or_create(
                id=into or uuid.uuid4(),
                defaults={
                    **owner,
                    "created_at": now,
                    "idempotency_scope": once.scope if once else "",
                    "idempotency_key": once.key if once else None,
                    "body_sha256": once.body_sha256 if once else "",
                },
            )
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
                    created_at=now,
                    rank_at=now,
                    deadline_at=ends,
                    flow=viewer.flow,
                    bulk=bulk,
                    **owner,
                )
                for index, (image, name) in zip(indices, stored, strict=True)
                for place, style in enumerate(chosen)
                if (image.pk, style.pk) not in there
            ]
            for caption, turn in zip(queued, turns.take(viewer.flow, len(queued), bulk=bulk), strict=True):
                caption.turn = turn
            Caption.objects.bulk_create(queued)
            if webhook_url:
                WebhookDelivery.objects.create(
                    request=request,
                    url=webhook_url,
                    host=webhooks.host_of(webhook_url),
                    secret=webhook_secret,
                    previous_secret=webhook_previous_secret,
                    created_at=now,
                    rank_at=now,
                    deadline_at=ends + webhooks.PATIENCE,
                )
            if render and once:  # kept with the request, or neither is there
                request.answer = render(request)
                request.save(update_fields=["answer"])
            transaction.on_commit(ring)
    except IntegrityError:
        if once and (earlier := _earlier(once)):  # the same call, made twice at once
            return earlier
        raise
    if render and not once:  # after the transaction: on SQLite no other request is written while it lasts
        request.answer = render(request)
    return request


def wait(request: CaptionRequest, seconds: float) -> bool:
    """Wait until nothing of a request is left to do.

    Returns:
        Whether that was so before the time was up.
    """
    return _wait_while(lambda: Caption.objects.filter(request=request).unfinished().exists(), seconds)


@contextmanager
def place_to_wait() -> Iterator[bool]:
    """Whether this thread of the server may wait for a worker, until the block ends: at most half of them may."""
    place = _waiting.acquire(blocking=False)
    try:
        yield place
    finally:
        if place:
            _waiting.release()


def _wait_while(unfinished: Callable[[], bool], seconds: float) -> bool:
    ends, pause = time.monotonic() + seconds, 0.02
    while unfinished():
        if time.monotonic() >= ends:
            return False
        time.sleep(min(pause, max(0.0, ends - time.monotonic())))
        pause = min(0.25, pause * 1.5)
    return True


def look_after(captions: Iterable[Caption]) -> None:
    """Whoever looks at unfinished captions calls this: it ends what a lost worker left behind, and rings again where
    a bell may have been lost."""
    waiting = [c for c in captions if not c.finished and timezone.now() - c.created_at > timedelta(seconds=3)]
    if waiting and cache.add("looked-after", True, timeout=3):
        Caption.objects.reap()
        ring()


def visible_captions(viewer: Viewer) -> QuerySet[Caption]:
    """What the viewer's lists show, with what they show of it, the newest first."""
    return _with_parts(Caption.objects.filter(viewer.listed()))


def search_captions(
    viewer: Viewer, *, text: str = "", style: str = "", status: str = "", unsure: bool = False, mine: bool = False
) -> QuerySet[Caption]:
    """Of what the viewer's lists show, the captions that hold every word of `text`, as written by the model or a
    person, in the style of this slug, of this status, and unsure; an empty value is no filter."""
    captions = visible_captions(viewer)
    for word in _words(text):
        corrected = Correction.objects.filter(caption=OuterRef("pk"), text__icontains=word)
        captions = captions.filter(Q(text__icontains=word) | Exists(corrected))
    if style:
        captions = captions.filter(style__slug=style)
    if status:
        captions = captions.filter(status=status)
    if unsure:
        captions = captions.filter(Caption.doubtful())
    return captions.filter(viewer.own()) if mine else captions


def tidy_search(text: str) -> str:
    """What somebody searches for, with single spaces; empty if there is nothing to search for.

    Raises:
        Refused: it is too long.
    """
    text = " ".join(text.replace("\0", "").split())
    if len(text) > LONGEST_SEARCH:
        raise Refused("search_too_long", f"a search has at most {LONGEST_SEARCH} characters", status=422, field="q")
    return text


def search_images(
    viewer: Viewer,
    text: str,
    *,
    seconds: float = PATIENCE,
    may_ask: Callable[[], bool] = lambda: True,
    **filters: Any,
) -> Search:
    """Of the images in the viewer's lists, those whose captions hold every word of `text` and those that show what it
    means; the best first, by both rankings together.

    Args:
        seconds: how long to wait for a worker that looks up what the text means, if that is not known.
        may_ask: called before a worker is asked for that; whether it may be.
        filters: what else the captions of a photo have to be, as `search_captions` takes it.

    Raises:
        Refused: the text is too long.
    """
    text = tidy_search(text)
    worded = _images_with_words(viewer, text, **filters)
    near, state, detail = _images_that_show(viewer, text, seconds, may_ask)
    # Whatever the index says, what is shown to whom is what the database says.
    allowed = _of_images(search_captions(viewer, **filters), near)
    near = [image for image in near if image in allowed]
    more = _of_images(search_captions(viewer, text=text, **filters), near).difference(worded)
    worded += [image for image in near if image in more]
    found_by: dict[Match, set[uuid.UUID]] = {"words": set(worded), "meaning": set(near)}
    ranking = meaning.fuse(worded, near)
    hits = [Hit(image, tuple(way for way, images in found_by.items() if image in images)) for image in ranking]
    return Search(hits, state, detail)


def found_images(hits: Sequence[Hit]) -> list[Image]:
    """The images of some of a search's hits, each with what it was `matched` by."""
    images = Image.objects.in_bulk([hit.image for hit in hits])
    for hit in hits:
        if hit.image in images:
            images[hit.image].matched = hit.matched  # type: ignore[attr-defined]
    return [images[hit.image] for hit in hits if hit.image in images]


def similar_images(viewer: Viewer, pk: uuid.UUID) -> list[Image]:
    """Of the images in the viewer's lists, those that show what is most like an image, the likest first, each with its
    `similarity`: the cosine of their embeddings.

    Raises:
        Refused: there is no such image for this viewer, or no worker has looked at it yet.
    """
    image = get_image(viewer, pk)
    embedding = Embedding.objects.filter(image=image).order_by("-pk").first()
    if embedding is None:
        raise Refused("not_looked_at", "no worker has looked at this photo yet; try again in a moment", status=409)
    listed = [Caption.objects.filter(part) for part in viewer.listed_parts()]
    try:
        near, _ = meaning.near(embedding.encoder, meaning.vector_of(embedding), listed, SIMILAR + 1, stand_out=False)
    except (BrokenIndex, OSError) as error:
        log.exception("the index of photos cannot be used")
        raise Refused(
            "index_unavailable", "the index of photos cannot be used now; the server's log says why", status=503
        ) from error
    found = visible_images(viewer).exclude(pk=pk).in_bulk([key for key, _ in near])
    similar = [(found[key], cosine) for key, cosine in near if key in found][:SIMILAR]
    for one, cosine in similar:
        one.similarity = cosine  # type: ignore[attr-defined]
    return [one for one, _ in similar]


def get_captions(viewer: Viewer, pks: Sequence[uuid.UUID]) -> list[Caption]:
    """Those of these captions that there are and that the viewer may open."""
    return list(_with_parts(Caption.objects.filter(viewer.reachable(), pk__in=pks)))


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
    caption = _with_parts(Caption.objects.filter(allowed, pk=pk)).first()
    if caption is None:
        raise _not_found("caption", pk)
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
        raise _not_found("request", pk)
    return request


def visible_images(viewer: Viewer, captions: QuerySet[Caption] | None = None) -> QuerySet[Image]:
    """The images of the captions in the viewer's lists, or of these `captions` among them, the newest first."""
    listed = visible_captions(viewer) if captions is None else captions
    return Image.objects.filter(Exists(listed.filter(image=OuterRef("pk")))).order_by("-created_at", "-pk")


def get_image(viewer: Viewer, pk: uuid.UUID) -> Image:
    """One image, by its id.

    Raises:
        Refused: there is none, or not for this viewer.
    """
    captions = Caption.objects.filter(viewer.reachable(), image=OuterRef("pk"))
    image = Image.objects.filter(Exists(captions), pk=pk).first()
    if image is None:
        raise _not_found("image", pk)
    return image


def cancel_caption(viewer: Viewer, pk: uuid.UUID) -> Caption:
    """Cancel a queued or running caption; what a worker still finds is not recorded.

    Raises:
        Refused: not there, or finished already.
    """
    caption = get_caption(viewer, pk, to="change")
    if not Caption.objects.filter(pk=caption.pk).cancel():
        raise Refused("already_finished", f"the caption has {caption.status} and cannot be canceled", status=409)
    return get_caption(viewer, pk)


def cancel_captions(viewer: Viewer, captions: QuerySet[Caption]) -> int:
    """Cancel those of the captions that are unfinished and that the viewer may change: in one step, however many they
    are.

    Returns:
        How many that were.
    """
    return CaptionQuerySet(Caption).filter(viewer.changeable(), pk__in=captions.order_by().values("pk")).cancel()


def retry_caption(viewer: Viewer, pk: uuid.UUID) -> Caption:
    """Queue a failed or canceled caption again.

    Raises:
        Refused: not there, neither failed nor canceled, or too much is queued.
    """
    caption = get_caption(viewer, pk, to="change")
    with transaction.atomic():
        (turn,) = turns.take(caption.flow, 1, bulk=caption.bulk)
        if not caption.retry(clock("default") + settings.DEADLINE, turn=turn):
            raise Refused(
                "not_failed",
                f"only a failed or canceled caption can be tried again; this one is {caption.status}",
                status=409,
            )
    ring()
    return get_caption(viewer, pk)


def delete_caption(viewer: Viewer, pk: uuid.UUID) -> None:
    """Delete a caption, and its image with it if nothing else refers to that.

    Raises:
        Refused: not there.
    """
    caption = get_caption(viewer, pk, to="delete")
    with transaction.atomic():
        if viewer.user and caption.owner_id != viewer.user.pk:
            audit.record(audit.Action.DELETED, f"caption {pk}", str(caption), viewer.user)
        caption.delete()
        if not CaptionRequest.objects.filter(pk=caption.request_id, captions__isnull=False).exists():
            CaptionRequest.objects.filter(pk=caption.request_id).delete()
        _delete_images(Image.objects.filter(pk=caption.image_id))


def redeliver(viewer: Viewer, pk: uuid.UUID, *, secret: str = "", previous_secret: str = "") -> WebhookDelivery:
    """Send a request's webhook again, now and with all tries before it, whether it arrived, was given up or waits.

    Args:
        secret: signs it from now on; the one it had, if empty.
        previous_secret: signs it too; of no meaning without `secret`.

    Raises:
        Refused: no such request, it has no webhook or one that is being sent at this moment, or a bad secret.
    """
    delivery = WebhookDelivery.objects.filter(request__in=CaptionRequest.objects.filter(viewer.changeable()))
    delivery = delivery.filter(request=pk)
    if not delivery.exists():
        raise _not_found("webhook of a request", pk)
    changes = {}
    if secret:
        changes["secret"] = webhooks.check_secret(secret)
        changes["previous_secret"] = webhooks.check_secret(previous_secret) if previous_secret else ""
    if not redeliver_all(delivery, **changes):
        raise Refused("being_sent", "the webhook is being sent at this very moment; look at its attempts", status=409)
    return delivery.get()


def redeliver_all(deliveries: QuerySet[WebhookDelivery], **changes: str) -> int:
    """Send webhooks again, as `redeliver` does, but for those that are being sent at this moment.

    Returns:
        How many that are.
    """
    now = clock("default")
    return (
        DeliveryQuerySet(WebhookDelivery)
        .filter(pk__in=deliveries.order_by().values("pk"))
        .send_again(now, now + webhooks.PATIENCE, **changes)
    )


def correct_caption(viewer: Viewer, pk: uuid.UUID, text: str) -> Correction:
    """Keep what a person writes in place of a caption.

    Raises:
        Refused: not there, not finished, or no text.
    """
    caption = get_caption(viewer, pk, to="change")
    text = " ".join(text.replace("\0", "").split())
    if not 1 <= len(text) <= 500:
        raise Refused("invalid_text", "a caption has between 1 and 500 characters", status=422, field="text")
    if not caption.finished:
        raise Refused("not_finished", f"the caption is {caption.status}; correct it when it is finished", status=409)
    return Correction.objects.create(caption=caption, text=text, author=viewer.user)


def register_version(
    *,
    style: Style,
    path: Path,
    origin: MapperVersion.Origin,
    person: Any = None,
    metrics: dict[str, Any] | None = None,
) -> MapperVersion:
    """File a mapper as the next version of a style. It is read first, which loads torch: for commands and workers.

    Raises:
        CheckpointError: the file is unusable.
    """
    with stored_version(style=style, path=path, origin=origin, person=person, metrics=metrics) as version:
        file_version(version)
    return version


@contextmanager
def stored_version(
    *,
    style: Style,
    path: Path,
    origin: MapperVersion.Origin,
    person: Any = None,
    metrics: dict[str, Any] | None = None,
) -> Iterator[MapperVersion]:
    """A mapper read and stored, for the block to file as a version (`file_version`) in a transaction of its own.

    Apart from that, because on SQLite a transaction keeps all other writers waiting. If the block fails, the stored
    file goes again.

    Raises:
        CheckpointError: the file is unusable.
    """
    from clipcap.checkpoint import load_mapper

    fields = {**load_mapper(path).described(), "metrics": metrics or {}, "origin": origin, "created_by": person}
    with _stored_file(style, path, path.suffix, **fields) as version:
        yield version


def file_version(version: MapperVersion) -> None:
    """Give a stored mapper a row and its style's next number. Locks the style; may be repeated after a rollback."""
    with transaction.atomic():
        Style.objects.select_for_update().get(pk=version.style_id)  # numbers are given one at a time
        last = MapperVersion.objects.filter(style=version.style_id).aggregate(last=Max("number"))["last"]
        version.pk, version.number = None, (last or 0) + 1
        version.save(force_insert=True)


def import_version(
    *, style: Style, file: File[bytes], name: str, person: Any = None, normalize: bool | None = None
) -> MapperVersion:
    """File an uploaded mapper, in our format or the authors' `.pt`, as the next version of a style.

    It is stored in our format, in which a file says how its mapper was trained.

    Args:
        normalize: whether it was trained on embeddings divided by their norm. Our format says so itself; of the
            authors' it is guessed unless given, and the version's config tells which.

    Raises:
        Refused: it cannot be used, or not be looked at in time.
    """
    with _room(), tempfile.TemporaryDirectory(prefix="clipcap-mapper-") as folder:
        path, ours = Path(folder) / "mapper", Path(folder) / "ours.safetensors"
        with path.open("wb") as copy:
            for chunk in file.chunks():
                copy.write(chunk)
        known = {True: ["--normalize"], False: ["--no-normalize"], None: []}[normalize]
        found = check_mapper(path, tidy_name(name), *known, "--write", str(ours))
        origin = MapperVersion.Origin.IMPORTED
        filed = _stored_file(
            style, ours if ours.exists() else path, ours.suffix, origin=origin, created_by=person, **found
        )
        with filed as version, transaction.atomic():
            file_version(version)
            audit.record(audit.Action.IMPORTED, f"version {version}", tidy_name(name), person)
        return version


def check_mapper(path: Path, name: str, *options: str) -> dict[str, Any]:
    """Whether a file is a mapper that fits the models which workers load, and writes a caption with them.

    A process of its own looks at it: that loads torch, and what a hostile file may do to it ends with it.

    Args:
        name: what the file is to be called in what people are told.
        options: of the command `check_mapper`.

    Returns:
        Fields of a version: `config`, `encoder` and `language_model`.

    Raises:
        Refused: it cannot be used, or not be looked at in time.
    """
    command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "check_mapper", str(path), *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_CHECK, check=False)
    except subprocess.TimeoutExpired as error:
        raise Refused(
            "check_timed_out",
            f"the file could not be checked within {LONGEST_CHECK} seconds; try again",
            status=503,
        ) from error
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        log.warning("a mapper could not be checked", extra={"rc": done.returncode, "said": done.stderr[-2000:]})
        raise Refused(
            "check_failed", "the file could not be checked; the web server's log has the details", status=500
        ) from error
    if "error" in found:
        raise Refused("invalid_mapper", found["error"].replace(str(path), name), status=422, field="file")
    return found


@contextmanager
def _room() -> Iterator[None]:
    """Refuse what there is no room for.

    Raises:
        Refused: a file could not be written.
    """
    try:
        yield
    except OSError as error:
        raise Refused(
            "storage_full",
            f"the file could not be stored ({error.strerror or error}); make room and try again",
            status=507,
        ) from error


@contextmanager
def _stored_file(style: Style, path: Path, suffix: str, **fields: Any) -> Iterator[MapperVersion]:
    version = MapperVersion(style=style, sha256=file_sha256(path), size=path.stat().st_size, **fields)
    name = f"{style.slug}-{uuid.uuid4()}{suffix}"
    stored = version.file.field.generate_filename(version, name)  # one that was not written whole is there in part
    try:
        with path.open("rb") as file:
            version.file.save(name, File(file), save=False)
        yield version
    except BaseException:
        # A connection lost at the very commit leaves open whether there is a row; where there is, its file stays.
        with suppress(DatabaseError):
            if not MapperVersion.objects.filter(file=stored).exists():
                version.file.storage.delete(stored)
        raise


def promote(*, version: MapperVersion, person: Any = None, reason: str = "") -> Promotion:
    """Put a version in service; workers use it from their next batch on. Promoting an older one is a rollback.

    Raises:
        Refused: it is in service already, it or its file is gone, or it was judged worse, never served before, and
            nobody says why it should; or it came from elsewhere, never served before or not any more, and cannot write.
    """
    judged_worse = version.metrics.get("verdict") == "worse"
    if judged_worse and not reason.strip() and not version.promotions.exists():
        raise Refused(
            "reason_required",
            f"{version} was judged worse than the version in service; give the reason why it should serve all the same",
            status=422,
            field="reason",
        )
    if not version.file.storage.exists(str(version.file.name)):
        raise Refused("file_missing", f"the file of {version} is not in the storage; it cannot serve", status=409)
    imported = version.origin == MapperVersion.Origin.IMPORTED  # others were tried by their tests, or by their run
    if version.load_error or (imported and not version.promotions.exists()):
        _check_stored(version)
    with transaction.atomic():
        style = Style.objects.select_for_update().get(pk=version.style_id)
        if style.active_version == version:
            raise Refused("already_active", f"{version} is in service already", status=409)
        if not style.versions.filter(pk=version.pk).exists():
            raise Refused("not_found", f"{version} was deleted at this very moment; promote another", status=404)
        audit.record(audit.Action.PROMOTED, version, reason.strip(), person)
        return Promotion.objects.create(style=style, version=version, person=person, reason=reason.strip())


def _check_stored(version: MapperVersion) -> None:
    with tempfile.TemporaryDirectory(prefix="clipcap-mapper-") as folder:
        try:
            path = version.copied_to(Path(folder))
        except (ValueError, OSError) as error:
            cause = (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
            raise Refused("file_damaged", f"the file of {version} cannot be used: {cause}", status=409) from error
        check_mapper(path, f"of {version}")


def delete_version(version: MapperVersion) -> None:
    """Delete a version that never served, with its file.

    Raises:
        Refused: it is in service or in the history, wrote a caption, or a run started from it.
    """
    try:
        with transaction.atomic():
            Style.objects.select_for_update().get(pk=version.style_id)  # nobody promotes it meanwhile
            if version.promotions.exists():
                raise Refused(
                    "version_in_use", f"{version} is in service or in the history of promotions; it stays", status=409
                )
            if version.captions.exists():
                raise Refused("version_in_use", f"{version} wrote captions that are kept; it stays", status=409)
            audit.record(audit.Action.DELETED, f"version {version}")
            version.delete()
            storage.discard([str(version.file.name)])
    except (ProtectedError, IntegrityError) as error:
        raise Refused(
            "version_in_use",
            f"a training run started from {version}, or it came into use at this very moment; it stays",
            status=409,
        ) from error


def compare_versions(
    *, versions: Sequence[MapperVersion], images: Sequence[Upload | Image], person: Any = None
) -> DraftRequest:
    """Have each of the versions, in service or not, write about each of the images; wake the workers on commit.

    Raises:
        Refused: nothing to compare or too much of it, or a file that is no picture; then nothing was queued.
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
    stored = {image.pk: image for image in (_stored(image, place, sender) for place, image in enumerate(images))}
    now = clock("default")
    with transaction.atomic():
        _lock_images(set(stored))
        request = DraftRequest.objects.create(person=person, created_at=now)
        Draft.objects.bulk_create(
            Draft(
                request=request,
                image=image,
                version=version,
                options=_kept(DecodingOptions()),
                created_at=now,
                rank_at=now,
                deadline_at=now + settings.DEADLINE,
            )
            for image in stored.values()
            for version in versions
        )
        transaction.on_commit(ring)
    return request


def to_rewrite(style: Style, version: MapperVersion | None) -> QuerySet[Caption]:
    """The captions of a style that another version wrote than this, and that none is rewriting yet."""
    drafts = Draft.objects.unfinished().filter(caption=OuterRef("pk"))
    return Caption.objects.filter(~Exists(drafts), ~Q(version=version), style=style, status="succeeded")


def rewrite_captions(*, style: Style, person: Any = None) -> DraftRequest:
    """Have the version in service write all captions of its style anew, when there is nothing else to do.

    Each caption keeps its text until the new one is there, and its corrections for good. Called again, it goes on with
    what is left.

    Raises:
        Refused: no version is in service, or it wrote all of them.
    """
    version = style.active_version
    if version is None:
        raise Refused("no_active_version", f"{style.name} has no version in service; promote one first", status=409)
    now = clock("default")
    if not to_rewrite(style, version).exists():
        raise Refused("nothing_to_rewrite", f"{version} wrote all captions of {style.name}", status=409)
    with transaction.atomic():
        request = DraftRequest.objects.create(person=person, style=style, version=version, listing=True, created_at=now)
        audit.record(audit.Action.SERVICE, f"captions of {style}", f"to be written anew by {version}", person)
    list_rewritings()  # the first part at once, the others by the workers
    return request


def list_rewritings() -> int:
    """Queue the next part of the captions that are to be written anew, of one request. Workers do it again and again;
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
        Draft.objects.bulk_create(
            [
                Draft(
                    request=request,
                    image_id=caption.image_id,
                    version=request.version,
                    caption=caption,
                    options=caption.options,
                    created_at=request.created_at,
                    rank_at=request.created_at + REWRITING,
                    deadline_at=request.created_at + REWRITING,
                )
                for caption in captions
            ],
            ignore_conflicts=True,  # somebody else may have begun the same
        )
        request.listing = len(chosen) == PART
        request.listed_to = min((caption.created_at for caption in captions), default=request.listed_to)
        request.save(update_fields=["listing", "listed_to"])
        transaction.on_commit(ring)
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
        raise Refused("already_finished", "everything is written already", status=409)
    return count


def set_default_style(style: Style) -> None:
    """Use a style wherever a request names none."""
    with transaction.atomic():
        Style.objects.filter(is_default=True).update(is_default=False)
        Style.objects.filter(pk=style.pk).update(is_default=True)
        audit.record(audit.Action.SERVICE, f"style {style}", "used where a request names none")


def pause_queue(*, name: Queue.Name, person: Any = None, reason: str = "") -> None:
    """Let workers claim no more from a queue; what they hold they finish."""
    values = {"paused": True, "reason": reason.strip()[:200], "person": person, "at": clock("default")}
    with transaction.atomic():
        Queue.objects.update_or_create(name=name, defaults=values)
        audit.record(audit.Action.SERVICE, f"queue {name}", f"paused: {reason.strip()}", person)


def resume_queue(*, name: Queue.Name, person: Any = None) -> None:
    """Let workers claim from a queue again; wake them on commit."""
    values = {"paused": False, "reason": "", "person": person, "at": clock("default")}
    with transaction.atomic():
        Queue.objects.update_or_create(name=name, defaults=values)
        audit.record(audit.Action.SERVICE, f"queue {name}", "resumed", person)
    transaction.on_commit(partial(ring, "captioner.ring" if name == Queue.Name.CAPTIONS else "training.ring"))


def prune(older_than: timedelta | None = None) -> dict[str, int]:
    """Delete finished requests older than this (the setting, if None), images that nothing refers to, expired keys, and
    what people searched for more than a month ago; and the files that could not be deleted with their rows.

    Returns:
        How many `requests` and `images` were deleted.
    """
    keep = (settings.KEEP_RESULTS or None) if older_than is None else older_than
    now = clock("default")
    CaptionRequest.objects.filter(idempotency_key__isnull=False, created_at__lt=now - IDEMPOTENCY).update(
        idempotency_key=None, answer={}
    )
    TextEmbedding.objects.filter(created_at__lt=now - TEXTS_KEPT).delete()
    requests = 0
    if keep is not None:
        corrected = Caption.objects.filter(request=OuterRef("pk"), corrections__isnull=False)
        unfinished = Caption.objects.filter(request=OuterRef("pk"), status__in=UNFINISHED)
        old = CaptionRequest.objects.filter(~Exists(corrected), ~Exists(unfinished), created_at__lt=now - keep)
        while ids := list(old.values_list("pk", flat=True)[:500]):
            requests += len(ids)
            with transaction.atomic():
                CaptionRequest.objects.filter(pk__in=ids).delete()
        unwritten = Draft.objects.unfinished().filter(request=OuterRef("pk"))
        DraftRequest.objects.filter(~Exists(unwritten), listing=False, created_at__lt=now - keep).delete()
    images = 0
    unused = Image.objects.filter(Image.unreferenced(), created_at__lt=now - timedelta(hours=1))
    while ids := list(unused.values_list("pk", flat=True)[:500]):
        with transaction.atomic():
            images += _delete_images(Image.objects.filter(pk__in=ids))
    storage.finish_deletions()
    return {"requests": requests, "images": images}


def check_storage(older_than: timedelta, *, sweep: bool = False) -> storage.Findings:
    """Find rows without their file, and files without a row that are older than this; `sweep` deletes the latter.

    Raises:
        Refused: it might be an upload's file that is swept, or all files would be.
        OSError: the storage cannot be read. Other storages than folders raise errors of their own.
    """
    return storage.check(older_than, sweep=sweep)


def rebuild_index() -> int:
    """Make the index of photos anew on this machine, without what deleted photos have left in it.

    Returns:
        How many photos it has.

    Raises:
        OSError: it cannot be written.
    """
    return meaning.rebuild()


def tidy_name(name: str) -> str:
    """The last part of a file's name, printable and not too long: it is only ever shown."""
    last = PurePath(name.replace("\\", "/")).name
    return "".join(c for c in last if c.isprintable())[:255]


def _words(text: str) -> list[str]:
    return text.replace("\0", "").split()[:MOST_WORDS]


def _images_with_words(viewer: Viewer, text: str, **filters: Any) -> list[uuid.UUID]:
    """The images whose captions hold every word, as far as they are found; those of the newest captions first.

    Corrections are looked up by themselves, and the parts of the viewer's lists too: with a condition that covers all,
    a database would look at every caption it has.
    """
    said = reduce(and_, (Q(text__icontains=word) for word in _words(text)), Q())
    corrections = Correction.objects.filter(reduce(or_, (Q(text__icontains=word) for word in _words(text)), Q()))
    most = MOST_FOUND["words"]
    corrected = list(corrections.order_by("-pk").values_list("caption", flat=True)[:most])
    queries = [search_captions(viewer, **filters).filter(part).filter(said) for part in viewer.listed_parts()]
    queries.append(search_captions(viewer, text=text, **filters).filter(pk__in=corrected))
    rows = [row for query in queries for row in query.values_list("created_at", "image")[: 3 * most]]
    return list(dict.fromkeys(image for _, image in sorted(rows, reverse=True)))[:most]


def _images_that_show(
    viewer: Viewer, text: str, seconds: float, may_ask: Callable[[], bool]
) -> tuple[list[uuid.UUID], MeaningStatus, str]:
    """The images that show what a text means, the nearest first; then the state of that search, and why it is so."""
    worker = Worker.captioning().order_by("-started_at").first()
    if worker is None:
        return [], "unavailable", "no worker is there to look up what it means"
    if not worker.text_encoder:
        return [], "unavailable", "the encoder in use has no text half, so photos cannot be compared with text"
    try:
        row = _looked_up(worker.text_encoder, text.lower(), seconds, may_ask)
        if row is None:
            return [], "unavailable", "there were too many new searches in a short time; try again in a minute"
        if not row.finished:
            return [], "pending", "what it means is still being looked up"
        if row.status != Status.SUCCEEDED:
            return [], "unavailable", "a worker failed to look up what it means; try again in a minute"
        listed = [Caption.objects.filter(part) for part in viewer.listed_parts()]
        most = MOST_FOUND["meaning"]
        near, complete = meaning.near(worker.encoder, meaning.vector_of(row), listed, most, stand_out=True)
    except (DatabaseError, BrokenIndex, OSError):  # words are searched all the same
        log.exception("photos cannot be searched by what they show")
        return [], "unavailable", "the index of photos cannot be used now"
    images = [image for image, _ in near]
    return (images, "searched", "") if complete else (images, "pending", "not all photos are in the index yet")


def _looked_up(encoder: str, text: str, seconds: float, may_ask: Callable[[], bool]) -> TextEmbedding | None:
    """What a text means to an encoder's text half, as far as it is known after some seconds; None if nobody may ask."""
    row = meaning.known_text(encoder, text)
    if row is None:
        if not may_ask():
            return None
        row = meaning.queue_text(encoder, text)
        ring()
    if not row.finished:
        with place_to_wait() as place:
            left = TextEmbedding.objects.filter(pk=row.pk).unfinished()
            _wait_while(left.exists, seconds if place else 0)
        row.refresh_from_db()
    return row


def _of_images(captions: QuerySet[Caption], images: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Which of the images have some of the captions."""
    return set(captions.filter(image__in=images).order_by().values_list("image", flat=True).distinct())


def _stored(image: Upload | Image, place: int, sender: str) -> Image:
    if isinstance(image, Image):
        return image
    try:
        return uploads.store(image.data, sender)
    except Refused as error:
        error.extra |= {"index": place, "name": tidy_name(image.name)}
        raise


def _lock_images(pks: set[uuid.UUID]) -> None:
    """Keep images from being deleted before rows refer to them; in one order, against deadlocks.

    Raises:
        Refused: one of them is gone already.
    """
    locked = Image.objects.select_for_update().filter(pk__in=pks).order_by("pk")
    if len(locked.values_list("pk", flat=True)) < len(pks):
        raise Refused("conflict", "an image was deleted at this very moment; send the request again", status=409)


def _already_in(
    request: CaptionRequest, viewer: Viewer, wanted: set[tuple[uuid.UUID, int]]
) -> dict[tuple[uuid.UUID, int], int | None]:
    """The pairs of image and style that a request has, to which the viewer wants to add, with the images' indices.

    Raises:
        Refused: it is somebody else's, or full.
    """
    if (request.owner_id, request.visitor) != (viewer.user and viewer.user.pk, viewer.visitor):
        raise _not_found("request", request.pk)
    # Locked, so that the same upload made twice at once is added once.
    CaptionRequest.objects.select_for_update().get(pk=request.pk)
    there = {(image, style): index for image, style, index in request.captions.values_list("image", "style", "index")}
    if len(there.keys() | wanted) > MAX_CAPTIONS_PER_REQUEST:
        raise Refused(
            "too_many_images",
            f"a request holds at most {MAX_CAPTIONS_PER_REQUEST} captions; start another for further photos",
            status=422,
        )
    return there


def _earlier(once: Once) -> CaptionRequest | None:
    """The request that was made with this key in the last 24 hours.

    Raises:
        Refused: it had another body.
    """
    same = CaptionRequest.objects.filter(idempotency_scope=once.scope, idempotency_key=once.key)
    same.filter(created_at__lt=clock("default") - IDEMPOTENCY).update(idempotency_key=None, answer={})
    earlier = same.first()
    if earlier and earlier.body_sha256 != once.body_sha256:
        raise Refused(
            "idempotency_key_reused",
            "this Idempotency-Key was used for another request in the last 24 hours; give each request its own",
            status=422,
        )
    return earlier


def _with_parts(captions: QuerySet[Caption]) -> QuerySet[Caption]:
    return captions.select_related("image", "style", "version__style").prefetch_related("corrections__author")


def with_captions(requests: QuerySet[CaptionRequest]) -> QuerySet[CaptionRequest]:
    """The requests with all that is said about their captions, as they were asked for: image by image, and of each
    image style by style. In a few queries, however many captions these are."""
    as_asked = Caption.objects.order_by("index", "place", "created_at", "pk")
    return requests.prefetch_related(Prefetch("captions", _with_parts(as_asked)))


def _delete_images(images: QuerySet[Image]) -> int:
    """Delete those that nothing refers to, their files on commit. Call it within a transaction."""
    # Locked first and asked about then: whoever had them locked may have queued captions of them meanwhile.
    locked = [image.pk for image in images.select_for_update().order_by("pk")]
    unused = list(Image.objects.filter(Image.unreferenced(), pk__in=locked))
    Image.objects.filter(pk__in=[image.pk for image in unused]).delete()
    storage.discard(str(file.name) for image in unused for file in (image.file, image.thumbnail))
    return len(unused)


def _not_found(what: str, pk: uuid.UUID | str) -> Refused:
    return Refused("not_found", f"there is no {what} {pk} that you may see", status=404)
