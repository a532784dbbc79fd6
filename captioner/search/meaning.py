"""Search by meaning: the texts that people search for, and the index of the photos' embeddings.

A text is embedded by a caption worker and kept (`TextEmbedding`); what is near to it is looked up in a file of all
images' embeddings (`vectors.py`), which whoever searches feeds from the database. So the web process needs no model.
Nothing depends on the file: what is wrong with it is logged, and it is rebuilt.
"""

from __future__ import annotations

import hashlib
import logging
import statistics
import time
import uuid
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import numpy as np
from django.conf import settings
from django.db.models import Aggregate, QuerySet, TextField
from numpy.typing import NDArray

from captioner.jobs.job import Status, clock, queued_at
from captioner.models import BaseModels, Caption, Embedding, TextEmbedding
from captioner.search.vectors import BrokenIndex, Images, VectorFile, Vectors

log = logging.getLogger(__name__)

LOOKED_UP = timedelta(seconds=60)  # a search that no worker gets to by then fails
AGAIN = timedelta(seconds=30)  # after which one that failed is tried again
PART = 1000  # embeddings added to the index at a time
OVERLAP = 500  # by which the numbers of rows may run ahead of their commits
CATCH_UP = 0.15  # seconds that one search spends on feeding the index
PATIENCE = 1.0  # seconds for which a deletion waits for those who feed the index
STEADY = 60  # of reciprocal rank fusion: how much the first places count more than those behind them


def vector_of(row: TextEmbedding | Embedding) -> Vectors:
    """The vector of a finished row: (E,)."""
    return np.frombuffer(bytes(row.vector or b""), "<f4")


def known_text(encoder: str, text: str) -> TextEmbedding | None:
    """The row of a text that is looked up or was, unless that failed some time ago.

    Args:
        encoder: the identity of the encoder's text half.
    """
    row = TextEmbedding.objects.filter(encoder=encoder, text=text).first()
    if row is None or row.status not in (Status.FAILED, Status.CANCELED) or row.finished_at is None:
        return row
    return row if row.finished_at > clock("default") - AGAIN else None


def queue_text(encoder: str, text: str) -> TextEmbedding:
    """Queue a text to be embedded by the next free worker."""
    now = clock("default")
    until = now + LOOKED_UP
    row, made = TextEmbedding.objects.get_or_create(encoder=encoder, text=text, defaults=queued_at(now, until))
    if not made and row.retry(until):
        row.refresh_from_db()
    return row


def near(
    encoder: str, vector: Vectors, listed: Sequence[QuerySet[Caption]] | None, most: int, *, stand_out: bool
) -> tuple[list[tuple[uuid.UUID, float]], bool]:
    """The images nearest to a vector, of those that the `listed` captions are of (None: of all), each with its cosine.

    Others do not count, and how long it takes does not depend on what they show.

    Args:
        encoder: the identity of the encoder's image half.
        stand_out: only those that stand out. Most photos have nothing to do with what is searched for; how near such
            a photo comes by chance follows from the middle and the spread of all.

    Returns:
        The images, the nearest first, and whether the index has all embeddings by now.

    Raises:
        OSError: the index cannot be written.
    """
    index = _index(encoder)
    try:
        images, cosines, own, complete = _compare(index, encoder, vector, listed)
    except BrokenIndex as error:
        log.warning("an index is rebuilt", extra={"index": index.path, "error": error})
        with index.growing() as mine:
            if mine:
                index.path.unlink(missing_ok=True)
        images, cosines, own, complete = _compare(index, encoder, vector, listed)
    rows = np.arange(len(images)) if own is None else np.flatnonzero(_among(images[:, 0], own))
    if stand_out and len(rows):
        rows = rows[cosines[rows] >= _chance(cosines[rows])]
    best = rows[np.argsort(-cosines[rows], kind="stable")][:most]
    return [(uuid.UUID(bytes=images[row].tobytes()), float(cosines[row])) for row in best], complete


def fuse(*rankings: Sequence[uuid.UUID]) -> list[uuid.UUID]:
    """One ranking of several: reciprocal rank fusion (Cormack, Clarke and Büttcher, 2009)."""
    scores: dict[uuid.UUID, float] = {}
    for ranking in rankings:
        for place, key in enumerate(ranking):
            scores[key] = scores.get(key, 0.0) + 1 / (STEADY + place)
    return sorted(scores, key=lambda key: -scores[key])


def rebuild() -> int:
    """Rebuild the index of the encoder in use, without deleted images, and remove the indexes of other encoders.

    Returns:
        How many embeddings it has.

    Raises:
        OSError: it cannot be written.
    """
    newest = in_use(Embedding.objects.all())
    path = _index(newest.encoder).path if newest else None
    for other in settings.INDEX.glob("*.vectors"):
        if other != path:
            other.unlink(missing_ok=True)
    if newest is None:
        return 0
    index = _index(newest.encoder)
    while True:
        with index.growing() as mine:
            if mine:
                with index.replacing() as fresh:
                    while pks := _missing(fresh, newest.encoder):
                        _add(fresh, pks)
                return len(index)
        time.sleep(0.1)  # whoever searches at this moment feeds it for a moment only


def in_use(embeddings: QuerySet[Embedding]) -> Embedding | None:
    """The newest of these by the encoder in service; while there is none, the newest."""
    newest, in_service = embeddings.order_by("-pk"), BaseModels.in_service()
    return (newest.filter(encoder=in_service.encoder).first() if in_service else None) or newest.first()


def forget(images: Collection[uuid.UUID]) -> None:
    """Erase deleted images from the indexes of this machine. Where that fails, a search still does not show them, and
    `rebuild` leaves them out."""
    ids = [image.bytes for image in images]
    for path in settings.INDEX.glob("*.vectors"):
        index = VectorFile(path)
        ends = time.monotonic() + PATIENCE
        try:
            while not (erased := _erase(index, ids)) and time.monotonic() < ends:
                time.sleep(0.02)  # whoever searches at this moment feeds it for a moment only
        except (BrokenIndex, OSError) as error:
            log.warning("deleted photos stay in an index until it is rebuilt", extra={"index": path, "error": error})
        else:
            if not erased:
                log.warning("deleted photos stay in an index until it is rebuilt", extra={"index": path})


def _erase(index: VectorFile, ids: list[bytes]) -> bool:
    with index.growing() as mine:
        if mine:
            index.erase(ids)
        return mine


def _index(encoder: str) -> VectorFile:
    return VectorFile(settings.INDEX / f"{hashlib.sha256(encoder.encode()).hexdigest()[:16]}.vectors")


def _compare(
    index: VectorFile, encoder: str, vector: Vectors, listed: Sequence[QuerySet[Caption]] | None
) -> tuple[Images, Vectors, NDArray[np.uint64] | None, bool]:
    """All images of the index, their cosines with a vector, what `_first_halves` finds of those that are `listed`, and
    whether the index has all embeddings by now."""
    complete = _feed(index, encoder)
    if listed is None:
        return (*index.compare(vector), None, complete)
    with ThreadPoolExecutor(1) as pool:  # numpy and the database each take a while, and neither holds Python up
        comparing = pool.submit(index.compare, vector)
        own = _first_halves(listed)
        return (*comparing.result(), own, complete)


def _feed(index: VectorFile, encoder: str) -> bool:
    """Add what the index lacks, for some time at most; returns whether it lacks nothing then."""
    ends = time.monotonic() + CATCH_UP
    while _missing(index, encoder):
        if time.monotonic() > ends:
            return False
        with index.growing() as mine:
            if mine and (pks := _missing(index, encoder)):
                _add(index, pks)
        if not mine:
            time.sleep(0.02)
    return True


def _missing(index: VectorFile, encoder: str) -> list[int]:
    """The next embeddings that the index lacks.

    They are numbered in the order in which they are written, which need not be that in which they are committed: so
    the last numbers are looked at once more.

    Raises:
        BrokenIndex: it was fed from another database.
    """
    keys, images = index.newest(2 * OVERLAP)
    known = dict(zip(keys.tolist(), images[:, 0].tolist(), strict=True))
    since = max(known, default=0) - OVERLAP
    rows = Embedding.objects.filter(encoder=encoder, pk__gt=since).order_by("pk").values_list("pk", "image_id")
    missing = []
    for pk, image in rows[: OVERLAP + PART]:
        if pk not in known:
            missing.append(pk)
        elif known[pk] != int.from_bytes(image.bytes[:8], "little"):
            raise BrokenIndex("its rows belong to another database")
    return missing[:PART]


def _add(index: VectorFile, pks: list[int]) -> None:
    rows = list(Embedding.objects.filter(pk__in=pks).order_by("pk"))
    if rows:
        vectors = np.stack([vector_of(row) for row in rows])
        index.append([row.pk for row in rows], [row.image_id.bytes for row in rows], vectors)


class _Joined(Aggregate):
    """All different ids of a column in one text, as hexadecimal digits with commas: a hundred thousand rows take as
    long to be fetched as to be found."""

    function, template, output_field = "GROUP_CONCAT", "%(function)s(DISTINCT %(expressions)s)", TextField()

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        template = "STRING_AGG(DISTINCT ENCODE(UUID_SEND(%(expressions)s), 'hex'), ',')"
        return self.as_sql(compiler, connection, template=template, **context)


def _first_halves(captions: Sequence[QuerySet[Caption]]) -> NDArray[np.uint64]:
    """The first halves of the ids of the images that captions are of, in order. Two images that share theirs are as
    unlikely as two that share the whole, and whoever shows images asks the database for them anyway."""
    texts = [rows.order_by().aggregate(images=_Joined("image_id"))["images"] or "" for rows in captions]
    ids = b"".join(bytes.fromhex(text.replace(",", "")) for text in texts)
    return np.sort(np.frombuffer(ids, "<u8")[::2])


def _among(values: NDArray[np.uint64], sorted_: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the values are among those that are in order."""
    if not len(sorted_):
        return np.zeros(len(values), bool)
    order = np.argsort(values)  # looked up in order, they are found in half the time
    ordered = values[order]
    places = np.minimum(np.searchsorted(sorted_, ordered), len(sorted_) - 1)
    found = np.empty(len(values), bool)
    found[order] = sorted_[places] == ordered
    return found


def _chance(cosines: Vectors) -> float:
    """The cosine that one of as many unrelated photos would reach by chance.

    The median and the median distance from it stand for mean and deviation, since those that are related are not to
    count; the distribution is taken to be normal.
    """
    middle = float(np.median(cosines))
    spread = 1.4826 * float(np.median(np.abs(cosines - middle)))  # a normal distribution's deviation
    return middle + spread * statistics.NormalDist().inv_cdf(1 - 1 / len(cosines)) if len(cosines) > 1 else middle
