"""The caption worker's engine: claim a batch, embed what has no embedding yet, decode all styles at once, record."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import transaction
from django.db.models import Exists, OuterRef
from torch import Tensor

from captioner.inference import belonging
from captioner.inference.failures import (
    bisect_failures,
    failure_of,
    is_out_of_memory,
    storage_gives_others,
    unread_failure,
)
from captioner.inference.model_cache import ModelCache, Writer
from captioner.jobs.job import Claim, Failure, JobQuerySet, clock
from captioner.jobs.wakeup import WAKE_UP
from captioner.models import BaseModels, Caption, Draft, Embedding, Image, Queue, TextEmbedding
from captioner.reports import Alternative
from captioner.services import turns
from captioner.workers.breaker import Breaker
from captioner.workers.worker_process import retry_on_lost_database
from clipcap.captioner import Captioner
from clipcap.decoding.rerank import find_reranker
from clipcap.encoder import Encoder
from clipcap.image import ImageError
from clipcap.language_model import LanguageModel
from clipcap.mapper import Mapper
from clipcap.options import DecodingOptions

log = logging.getLogger(__name__)

LONGEST_BATCH = timedelta(minutes=5)  # a batch that takes longer hangs: its lease is let go
DRAFTS_FIRST = 5  # one turn in so many begins with the drafts: captions pass them, but not for ever
LOOK_AGAIN = timedelta(seconds=0.25)  # until rows are claimed again whose model could not be had yet
WORDS_KEPT = 3  # of each prefix vector of a draft
READ_AGAIN = 600.0  # seconds after which an image that the storage did not give is embedded ahead after all
AHEAD = 8  # images embedded at a time while idle
SEARCHES = 64  # texts embedded at a time
PASSING = {"captions": 8, "times": 16}  # that pass a batch at most: so many at a time, and so often
# A text tower knows captions, and a bare word is none: with an article, photos of 25 everyday things were found with a
# mean average precision of 0.62 in place of 0.24 (models/base), and whole captions found their photos as before. CLIP's
# authors embed names in several phrases too (Radford et al., 2021, section 3.1.4).
PHRASES = ("a {}", "the {}")
Row = Caption | Draft


@dataclass(frozen=True)
class Embedded:
    """What became of images, by id: embeddings (E,), the milliseconds that each took, and what went wrong."""

    vectors: dict[uuid.UUID, Tensor]
    took_ms: dict[uuid.UUID, float]
    failures: dict[uuid.UUID, Failure]


class CaptionEngine:
    """The loaded models and what they are working on."""

    def __init__(self, captioner: Captioner, name: str, batch_size: int) -> None:
        self.captioner, self.name, self.batch_size = captioner, name, batch_size
        self.holding: Claim | None = None
        self.breaker = Breaker()
        self._handed_back: list[Failure] = []  # in this turn
        self.mappers = ModelCache(captioner)
        self._turn = 0
        self._flows: frozenset[str] | None = None  # of the batch that others may pass; None while nobody may
        self._passed = 0
        captioner.between = self._let_pass
        self._embedded_until = datetime.min.replace(tzinfo=UTC)
        self._unreadable: set[uuid.UUID] = set()
        self._unread: dict[uuid.UUID, datetime] = {}  # images to read later, and when they came
        self._read_again_at = 0.0
        self._look_again_at = 0.0  # at rows that were postponed

    @classmethod
    def load(cls, name: str) -> CaptionEngine:
        """Load the models that the settings name.

        Raises:
            ValueError: a model cannot be loaded; the message names the cause and the remedy.
        """
        torch.set_num_threads(settings.THREADS)
        encoder = Encoder.load(settings.ENCODER, device=settings.DEVICE)
        return cls(
            Captioner(
                encoder,
                LanguageModel.load(settings.LANGUAGE_MODEL, device=settings.DEVICE),
                find_reranker(Path(settings.RERANKING)),
            ),
            name,
            settings.BATCH_SIZE,
        )

    def work(self) -> int:
        """Embed what people search for, then claim one batch and bring each of its rows to an end.

        Returns:
            How many rows were claimed; 0 if there was nothing to do, or the queue or this worker is paused.
        """
        if not self.breaker.limit(1):
            return 0
        searches = self.embed_texts()
        if Queue.is_paused("captions"):
            return searches
        rows = self._claim()
        if rows:
            with self._hold(rows), self._letting_pass(rows):
                self._process(rows)
        return searches + len(rows)

    def embed_texts(self) -> int:
        """Embed what people search for and wait for the answer to.

        Returns:
            How many texts were claimed.
        """
        encoder = self.captioner.encoder
        if encoder.text_identity is None:
            return 0
        rows = TextEmbedding.objects.filter(encoder=encoder.text_identity).claim(self.name, SEARCHES)
        if not rows:
            return 0

        def embed(part: list[TextEmbedding]) -> None:
            phrased = encoder.encode_text([phrase.format(row.text) for row in part for phrase in PHRASES])  # (N * P, E)
            units = phrased / phrased.norm(dim=1, keepdim=True).clamp_min(1e-12)
            vectors = units.view(len(part), len(PHRASES), -1).mean(dim=1).numpy().astype("<f4")

            def record() -> None:
                now = clock("default")
                for row, vector in zip(part, vectors, strict=True):
                    row.succeed(now, vector=vector.tobytes())

            retry_on_lost_database(record)

        with self._hold(rows):
            failed = bisect_failures(rows, embed, self.captioner.backend.release)
            for part, error in failed:
                for row in part:
                    self._end(row, failure_of(error, others_succeeded=len(failed) < len(rows)))
        return len(rows)

    @contextmanager
    def _hold(self, rows: Sequence[Row | TextEmbedding]) -> Iterator[None]:
        """Let the heartbeat renew the lease on what was claimed, until the block ends."""
        held, token = _queue(rows), rows[0].lease_token
        assert token is not None
        outer, self.holding = self.holding, Claim(held, token, LONGEST_BATCH, self.holding)
        before, self._handed_back = self._handed_back, []
        try:
            yield
        except Exception as error:  # between the rows, where the database or memory are wanting
            for row in rows:
                self._end(row, failure_of(error))
            raise
        finally:
            self.holding = outer
            failures, self._handed_back = self._handed_back, before
            self.breaker.note(len(rows) - len(failures), len(failures), failures[-1].detail if failures else "")
            # Nothing is left, unless this process is ending: then another attempt is due.
            held.held(token).update(lease_expires_at=clock("default"))

    def _end(self, row: Row | TextEmbedding, failure: Failure) -> None:
        """Bring a row to an end that could not be done: it failed, or others will try it later."""
        if not retry_on_lost_database(lambda: row.hand_back(failure)):
            return
        if not failure.own:
            self._handed_back.append(failure)
        what = {"search": row.pk} if isinstance(row, TextEmbedding) else {"caption": row.pk, "request": row.request_id}
        log.warning("work failed", extra={**what, "code": failure.code, "detail": failure.detail})

    @contextmanager
    def _letting_pass(self, rows: Sequence[Row]) -> Iterator[None]:
        """Let captions of others pass until the block ends."""
        self._flows, self._passed = frozenset(row.flow for row in rows if isinstance(row, Caption)), 0
        try:
            yield
        finally:
            self._flows = None

    def _let_pass(self) -> None:
        """Between two steps of a batch, if a wake-up message has arrived meanwhile: embed searched texts, and write the
        captions of those who have nothing in the batch and whose turn it is. They would wait for all of it otherwise.
        """
        flows = self._flows
        if flows is None or self._passed == PASSING["times"] or not WAKE_UP.is_set():
            return
        self._flows = None  # nobody passes those who pass
        WAKE_UP.clear()
        try:
            self.embed_texts()
            own = belonging.captions_of(self.base())
            others = own.filter(bulk=False, attempts=0, turn__lte=turns.current() + 1)
            if not Queue.is_paused("captions") and (
                rows := others.exclude(flow__in=flows).claim(self.name, self.breaker.limit(PASSING["captions"]))
            ):
                self._passed += 1
                with self._hold(rows):
                    self._process(rows)
        except Exception:  # the batch at hand is not to blame; what was claimed comes back by itself
            log.exception("urgent captions could not be processed ahead of a batch")
        finally:
            self._flows = flows

    def base(self) -> BaseModels | None:
        """What is on record of the loaded models; looked up at every claim, as promotions are for every batch."""
        models = self.captioner
        return BaseModels.objects.loaded(models.encoder.identity, models.language_model.identity)

    def _claim(self) -> Sequence[Row]:
        self._turn += 1
        base = self.base()
        queues: list[JobQuerySet[Any]] = [belonging.captions_of(base), belonging.drafts_of(base)]
        if self._turn % DRAFTS_FIRST == 0:
            queues.reverse()
        for queue in queues:
            if rows := queue.claim(self.name, self.breaker.limit(self.batch_size)):
                return rows
        return []

    def idle(self) -> int:
        """With nothing else to do, embed a few images that came without a caption to write, those of a dataset say.

        Returns:
            How many; all older images that can be read have their embedding when there are none. 1 too if rows were
            postponed a moment ago: they can be claimed again now.
        """
        if (left := self._look_again_at - time.monotonic()) > 0:
            WAKE_UP.wait(left)
            return 1
        identity = self.captioner.encoder.identity
        now = clock("default")
        if time.monotonic() > self._read_again_at:
            self._unread.clear()
        missing = (
            Image.objects.filter(~Exists(Embedding.objects.filter(image=OuterRef("pk"), encoder=identity)))
            .filter(created_at__gte=self._embedded_until)
            .exclude(pk__in=self._unreadable | self._unread.keys())
            .order_by("created_at")[:AHEAD]
        )
        images = list(missing)
        if not images:
            # Clocks of other machines may differ a little.
            self._embedded_until = min([now - timedelta(minutes=10), *self._unread.values()])
            return 0
        with self._letting_pass([]):
            failures = self.embeddings(images).failures
        self._unreadable |= {pk for pk, failure in failures.items() if failure.own}
        for image in images:
            if image.pk in failures.keys() - self._unreadable:
                if not self._unread:
                    self._read_again_at = time.monotonic() + READ_AGAIN
                self._unread[image.pk] = image.created_at
        return len(images)

    def _process(self, rows: Sequence[Row]) -> None:
        images = Image.objects.in_bulk({row.image_id for row in rows})
        rows = [row for row in rows if row.image_id in images]  # the others were deleted since they were claimed
        embedded = self.embeddings(list(images.values()))
        base = self.base()
        writers: dict[tuple[str, int], Writer | Failure | None] = {}
        postponed: list[uuid.UUID] = []
        able: list[tuple[Row, Writer]] = []
        with self.mappers.in_use():
            for row in rows:
                if row.image_id in embedded.failures:
                    self._end(row, embedded.failures[row.image_id])
                    continue
                wanted = ("version", row.version_id) if isinstance(row, Draft) else ("style", row.style_id)
                if wanted not in writers:
                    writers[wanted] = self.mappers.writer(row, base)
                writer = writers[wanted]
                if isinstance(writer, Failure):
                    self._end(row, writer)
                elif writer is None:
                    postponed.append(row.pk)
                else:
                    able.append((row, writer))

            self._postpone(rows, postponed)

            def key(item: tuple[Row, Writer]) -> str:
                return json.dumps(item[0].options, sort_keys=True)

            for _, group in groupby(sorted(able, key=key), key):
                self._decode(list(group), embedded)

    def _postpone(self, rows: Sequence[Row], keys: list[uuid.UUID]) -> None:
        """Hand some of the claimed rows back, to be claimed again in a moment."""
        token = rows[0].lease_token if keys else None
        if token is not None:
            retry_on_lost_database(lambda: _queue(rows).filter(pk__in=keys).hand_back(token, LOOK_AGAIN))
            self._look_again_at = time.monotonic() + 1.1 * LOOK_AGAIN.total_seconds()

    def embeddings(self, images: Sequence[Image]) -> Embedded:
        """The embeddings of images; those not known yet are computed and kept."""
        encoder = self.captioner.encoder
        stored = Embedding.objects.filter(image__in=[i.pk for i in images], encoder=encoder.identity)
        vectors: dict[uuid.UUID, Tensor] = {
            e.image_id: torch.from_numpy(np.frombuffer(bytes(e.vector), "<f4").copy()) for e in stored
        }
        took: dict[uuid.UUID, float] = dict.fromkeys(vectors, 0.0)
        failures: dict[uuid.UUID, Failure] = {}
        unread: dict[uuid.UUID, Exception] = {}
        pixels: dict[uuid.UUID, Tensor] = {}
        started = time.monotonic()
        for image in images:
            if image.pk in vectors:
                continue
            self._let_pass()
            try:
                with image.file.open("rb") as file:
                    pixels[image.pk] = encoder.preprocess(file.read())
            except ImageError as error:
                if is_out_of_memory(error.__cause__):  # which decoders take for a damaged picture
                    unread[image.pk] = MemoryError()
                else:
                    failures[image.pk] = Failure(f"image_{error.code}", str(error), own=True)
            except Exception as error:  # whatever a storage raises
                log.warning("an image cannot be read", extra={"image": image.pk, "error": error})
                unread[image.pk] = error
        if unread:
            there = bool(pixels) or storage_gives_others(unread)
            failures |= {pk: unread_failure(error, others_succeeded=there) for pk, error in unread.items()}

        def encode(keys: list[uuid.UUID]) -> None:
            for first in range(0, len(keys), encoder.together):
                self._let_pass()
                part = keys[first : first + encoder.together]
                made = encoder.encode_pixels(torch.stack([pixels[k] for k in part]))
                if not bool(made.isfinite().all()):
                    raise ValueError(
                        f"{encoder.identity} returns values that are not finite (NaN or infinity) for this image"
                    )
                vectors.update(zip(part, made, strict=True))

        for keys, cause in bisect_failures(list(pixels), encode, self.captioner.backend.release):
            for pk in keys:
                failures[pk] = failure_of(cause, others_succeeded=any(key in vectors for key in pixels))
        each = (time.monotonic() - started) * 1000 / max(1, len(pixels))
        took.update(dict.fromkeys(pixels, each))
        fresh = [
            Embedding(image_id=pk, encoder=encoder.identity, vector=vectors[pk].numpy().astype("<f4").tobytes())
            for pk in sorted(pixels)  # in one order, because each locks its image
            if pk in vectors
        ]
        try:
            retry_on_lost_database(lambda: Embedding.objects.bulk_create(fresh, ignore_conflicts=True))
        except DatabaseError as error:  # an image deleted meanwhile; the embeddings were only to save time
            log.info("embeddings were not stored", extra={"error": error})
        return Embedded(vectors, took, failures)

    def _decode(self, items: list[tuple[Row, Writer]], embedded: Embedded) -> None:
        first, token = items[0][0], items[0][0].lease_token
        assert token is not None
        queue = _queue([first])
        wanted = set(retry_on_lost_database(lambda: list(queue.held(token).values_list("pk", flat=True))))
        items = [(row, writer) for row, writer in items if row.pk in wanted]
        options = DecodingOptions(**first.options)
        vectors = embedded.vectors

        def decode(part: list[tuple[Row, Writer]]) -> None:
            started = time.monotonic()
            answers = self.captioner.caption(
                torch.stack([vectors[row.image_id] for row, _ in part]),
                [model for _, (_, model) in part],
                options,
            )
            prefixes = {
                row.pk: self._prefix(model.mapper, vectors[row.image_id])
                for row, (_, model) in part
                if isinstance(row, Draft) and row.caption_id is None
            }
            decode_ms = (time.monotonic() - started) * 1000
            done = [(row, version, answer) for (row, (version, _)), answer in zip(part, answers, strict=True) if answer]

            def record() -> None:
                now = clock("default")
                with transaction.atomic():
                    rows = [row for row, _, _ in done]
                    queue.filter(pk__in=[row.pk for row in rows]).lock()
                    Caption.objects.filter(drafts__in=[row for row in rows if isinstance(row, Draft)]).lock()
                    for row, version, (best, *others) in done:
                        written = {
                            "text": best.text,
                            "confidence": best.confidence,
                            "log_probability": best.log_probability,
                            "alternatives": [
                                Alternative(o.text, o.confidence, o.log_probability).to_json() for o in others
                            ],
                            "version": version,
                            "encode_ms": embedded.took_ms[row.image_id],
                            "decode_ms": decode_ms,
                        }
                        if isinstance(row, Draft):
                            row.finish(now, written, **prefixes.get(row.pk, {}))
                        else:
                            row.succeed(now, **row.kept(written))

            retry_on_lost_database(record)
            for (row, (version, _)), answer in zip(part, answers, strict=True):
                if not answer:
                    detail = f"{version} returns values that are not finite (NaN or infinity) for this image"
                    self._end(row, Failure("not_possible", detail, own=True))
            log.info(
                "captioned",
                extra={
                    "captions": [row.pk for row, _, _ in done],
                    "requests": sorted({str(row.request_id) for row, _, _ in done}),
                    "decode_ms": round(decode_ms, 1),
                },
            )

        failed = bisect_failures(items, decode, self.captioner.backend.release)
        for part, error in failed:
            for row, _ in part:
                self._end(row, failure_of(error, others_succeeded=len(failed) < len(items)))

    @torch.inference_mode()
    def _prefix(self, mapper: Mapper, vector: Tensor) -> dict[str, Any]:
        """What a draft keeps of its prefix (K, D)."""
        lm = self.captioner.language_model
        (prefix,) = mapper(vector[None].to(lm.device, torch.float32))
        return {
            "prefix_words": lm.nearest_words(prefix, WORDS_KEPT),
            "prefix": prefix.cpu().numpy().astype("<f2").tobytes(),
        }


def _queue(rows: Sequence[Row | TextEmbedding]) -> JobQuerySet[Any]:
    return type(rows[0]).objects.all()
