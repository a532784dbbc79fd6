"""Photos and captions found by words and by what photos show."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from operator import and_, or_
from typing import Any, Literal

from django.db import Error as DatabaseError
from django.db.models import Exists, OuterRef, Q, QuerySet

from captioner.errors import Refused
from captioner.jobs.job import Status
from captioner.jobs.wakeup import wake_workers
from captioner.models import (
    Caption,
    CaptionQuerySet,
    Correction,
    Embedding,
    Image,
    Style,
    TextEmbedding,
    Viewer,
    Worker,
)
from captioner.search import meaning
from captioner.search.vectors import BrokenIndex
from captioner.services.albums import own_albums
from captioner.services.visibility import get_image, visible_captions, visible_images
from captioner.services.waiting import place_to_wait, wait_while

log = logging.getLogger(__name__)

MOST_WORDS = 10  # of a search
LONGEST_SEARCH = 200  # characters
MOST_FOUND = {"words": 1000, "meaning": 500}  # photos of one search, by each
SIMILAR = 24
PATIENCE = 1.0  # seconds that a search waits for a worker to look it up
Match = Literal["words", "meaning"]
MeaningStatus = Literal["searched", "pending", "unavailable"]


@dataclass(frozen=True)
class Hit:
    """A photo found by a search, and how: by words in its captions, by what it shows, or both."""

    image: uuid.UUID
    matched: tuple[Match, ...]


@dataclass(frozen=True)
class SearchResult:
    """What a search found, the best first, and whether photos were searched by what they show.

    `meaning` is `pending` where a worker has still to look at the text, or not all photos are in the index yet: the
    same search finds more in a moment. `detail` says why it is not `searched`.
    """

    hits: list[Hit]
    meaning: MeaningStatus
    detail: str = ""

    def place_after(self, cursor: str) -> int | None:
        """Where the page begins that a cursor names: behind its hit, or at its place where that is gone; None, if it
        is not a cursor."""
        if not cursor:
            return 0
        place, _, key = cursor.partition("~")
        if not (place.isascii() and place.isdigit() and len(place) < 6):
            return None
        try:
            image = uuid.UUID(key)
        except ValueError:
            return None
        behind = (number + 1 for number, hit in enumerate(self.hits) if hit.image == image)
        return next(behind, min(int(place), len(self.hits)))

    def cursor_of(self, place: int) -> str:
        """The cursor of the page that begins at a place, which is not the first."""
        return f"{place}~{self.hits[place - 1].image}"


def search_captions(
    viewer: Viewer,
    *,
    text: str = "",
    style: str = "",
    status: str = "",
    unsure: bool = False,
    mine: bool = False,
    album: uuid.UUID | None = None,
    name: str = "",
    since: datetime | None = None,
    before: datetime | None = None,
) -> CaptionQuerySet:
    """Of what the viewer's lists show, the captions that hold every word of `text`, as written by the model or a
    person, in the style of this slug, of this status, unsure, of the photos in this album of the viewer's, with `name`
    in their file's name, and requested `since` one moment and `before` another; an empty value is not a filter."""
    captions = visible_captions(viewer)
    if name:
        captions = captions.filter(name__icontains=name.replace("\0", ""))
    if since:
        captions = captions.filter(created_at__gte=since)
    if before:
        captions = captions.filter(created_at__lt=before)
    if album:
        captions = captions.filter(image__in=own_albums(viewer).filter(pk=album).values("photos"))
    for word in _words(text):
        corrected = Correction.objects.filter(caption=OuterRef("pk"), text__icontains=word)
        captions = captions.filter(Q(text__icontains=word) | Exists(corrected))
    if style:  # by its key: with a join, SQLite reads all captions of the style
        captions = captions.filter(style=Style.objects.filter(slug=style).values("pk")[:1])
    if status:
        captions = captions.filter(status=status)
    if unsure:
        captions = captions.filter(Caption.doubtful())
    return captions.filter(viewer.own()) if mine else captions


def tidy_search(text: str) -> str:
    """The search text with single spaces; empty if there is nothing to search for.

    Raises:
        Refused: it is too long.
    """
    text = " ".join(text.replace("\0", "").split())
    if len(text) > LONGEST_SEARCH:
        raise Refused(
            "search_too_long", f"a search can have at most {LONGEST_SEARCH} characters", status=422, field="q"
        )
    return text


def search_images(
    viewer: Viewer,
    text: str,
    *,
    seconds: float = PATIENCE,
    may_ask: Callable[[], bool] = lambda: True,
    **filters: Any,
) -> SearchResult:
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
    worded, all_worded = _images_with_words(viewer, text, **filters)
    near, state, detail = _images_that_show(viewer, text, seconds, may_ask)
    # Whatever the index says, what is shown to whom is what the database says.
    allowed = _of_images(search_captions(viewer, **filters), near)
    near = [image for image in near if image in allowed]
    if not all_worded:
        more = _of_images(search_captions(viewer, text=text, **filters), near).difference(worded)
        worded += [image for image in near if image in more]
    found_by: dict[Match, set[uuid.UUID]] = {"words": set(worded), "meaning": set(near)}
    ranking = meaning.fuse(worded, near)
    hits = [Hit(image, tuple(way for way, images in found_by.items() if image in images)) for image in ranking]
    return SearchResult(hits, state, detail)


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
    embedding = meaning.in_use(Embedding.objects.filter(image=image))
    if embedding is None:
        raise Refused("not_looked_at", "no worker has processed this photo yet; try again in a moment", status=409)
    try:
        near, _ = meaning.near(
            embedding.encoder, meaning.vector_of(embedding), _listed(viewer), SIMILAR + 1, stand_out=False
        )
    except (BrokenIndex, OSError) as error:
        log.exception("the index of photos cannot be used")
        raise Refused(
            "index_unavailable", "photo search is not available now; see the server's log", status=503
        ) from error
    found = visible_images(viewer).exclude(pk=pk).in_bulk([key for key, _ in near])
    similar = [(found[key], cosine) for key, cosine in near if key in found][:SIMILAR]
    for one, cosine in similar:
        one.similarity = cosine  # type: ignore[attr-defined]
    return [one for one, _ in similar]


def _words(text: str) -> list[str]:
    return text.replace("\0", "").split()[:MOST_WORDS]


def _images_with_words(viewer: Viewer, text: str, **filters: Any) -> tuple[list[uuid.UUID], bool]:
    """The images whose captions hold every word, as far as they are found, those of the newest captions first; and
    whether that is all of them.

    Corrections are looked up by themselves, and the parts of the viewer's lists too: with a condition that covers all,
    a database would look at every caption it has.
    """
    said = reduce(and_, (Q(text__icontains=word) for word in _words(text)), Q())
    corrections = Correction.objects.filter(reduce(or_, (Q(text__icontains=word) for word in _words(text)), Q()))
    most = MOST_FOUND["words"]
    corrected = list(corrections.order_by("-pk").values_list("caption", flat=True)[:most])
    queries = [search_captions(viewer, **filters).filter(part).filter(said) for part in viewer.listed_parts()]
    queries.append(search_captions(viewer, text=text, **filters).filter(pk__in=corrected))
    # In an index's own order: in that of lists, SQLite sorts all that somebody may see.
    newest = [query.order_by("-created_at", "-pk").values_list("created_at", "image") for query in queries]
    found = [list(query[: 3 * most]) for query in newest]
    images = dict.fromkeys(image for _, image in sorted((row for rows in found for row in rows), reverse=True))
    limits = [len(corrected) < most, len(images) <= most, *(len(rows) < 3 * most for rows in found)]
    return list(images)[:most], all(limits)


def _images_that_show(
    viewer: Viewer, text: str, seconds: float, may_ask: Callable[[], bool]
) -> tuple[list[uuid.UUID], MeaningStatus, str]:
    """The images that show what a text means, the nearest first; then the state of that search, and why it is so."""
    worker = max(Worker.objects.writing(), key=lambda one: one.started_at, default=None)
    if worker is None:
        return [], "unavailable", "no worker is available to search by meaning"
    if not worker.text_encoder:
        return [], "unavailable", "the encoder has no text tower, so photos cannot be compared with text"
    try:
        row = _looked_up(worker.text_encoder, text.lower(), seconds, may_ask)
        if row is None:
            return [], "unavailable", "too many new searches in a short time; try again in a minute"
        if not row.finished:
            return [], "pending", "the search by meaning is still in progress"
        if row.status != Status.SUCCEEDED:
            return [], "unavailable", "the search by meaning failed; try again in a minute"
        most, listed = MOST_FOUND["meaning"], _listed(viewer)
        near, complete = meaning.near(worker.encoder, meaning.vector_of(row), listed, most, stand_out=True)
    except (DatabaseError, BrokenIndex, OSError):  # words are searched all the same
        log.exception("photos cannot be searched by meaning")
        return [], "unavailable", "photo search is not available now"
    images = [image for image, _ in near]
    return (images, "searched", "") if complete else (images, "pending", "not all photos are in the index yet")


def _listed(viewer: Viewer) -> list[QuerySet[Caption]] | None:
    """The captions in the viewer's lists, in parts; None where these are all that there are."""
    return None if viewer.sees_all else [Caption.objects.filter(part) for part in viewer.listed_parts()]


def _looked_up(encoder: str, text: str, seconds: float, may_ask: Callable[[], bool]) -> TextEmbedding | None:
    """What a text means to an encoder's text half, as far as it is known after some seconds; None if nobody may ask."""
    row = meaning.known_text(encoder, text)
    if row is None:
        if not may_ask():
            return None
        row = meaning.queue_text(encoder, text)
        wake_workers()
    if not row.finished:
        with place_to_wait() as place:
            left = TextEmbedding.objects.filter(pk=row.pk).unfinished()
            wait_while(left.exists, seconds if place else 0)
        row.refresh_from_db()
    return row


def _of_images(captions: QuerySet[Caption], images: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Which of the images have some of the captions."""
    return set(captions.filter(image__in=images).order_by().values_list("image", flat=True).distinct())
