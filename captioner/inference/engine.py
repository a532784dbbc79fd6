"""The caption worker's engine: claim a batch, embed what has no embedding yet, decode all styles at once, record."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from django.conf import settings
from torch import Tensor

from captioner.inference import belonging
from captioner.inference.embeddings import Embedded, EmbeddingAhead, embed_images, embed_texts
from captioner.inference.failures import (
    bisect_failures,
    failure_of,
)
from captioner.inference.model_cache import ModelCache, Writer
from captioner.inference.recording import Row, Written, record_answers
from captioner.jobs.job import Claim, Failure, JobQuerySet, clock
from captioner.jobs.wakeup import WAKE_UP
from captioner.models import BaseModels, Caption, Draft, Image, Queue, TextEmbedding
from captioner.services import turns
from captioner.workers.breaker import Breaker
from captioner.workers.worker_process import retry_on_lost_database
from clipcap.captioner import Captioner
from clipcap.decoding.rerank import find_reranker
from clipcap.encoder import Encoder
from clipcap.language_model import LanguageModel
from clipcap.mapper import Mapper
from clipcap.options import DecodingOptions

log = logging.getLogger(__name__)

LONGEST_BATCH = timedelta(minutes=5)  # a batch that takes longer hangs: its lease is let go
DRAFTS_FIRST = 5  # one turn in so many begins with the drafts: captions pass them, but not for ever
LOOK_AGAIN = timedelta(seconds=0.25)  # until rows are claimed again whose model could not be had yet
WORDS_KEPT = 3  # of each prefix vector of a draft
SEARCHES = 64  # texts embedded at a time
PASSING = {"captions": 8, "times": 16}  # that pass a batch at most: so many at a time, and so often


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
        self.ahead = EmbeddingAhead(captioner, self._let_pass)
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
        elif self.breaker.trouble:
            searched = TextEmbedding.objects.filter(encoder=self.captioner.encoder.text_identity)
            self.breaker.note_idle(any(queue.unfinished().exists() for queue in (*self._queues(), searched)))
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
            vectors = embed_texts(encoder, [row.text for row in part])

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

    def _queues(self) -> list[JobQuerySet[Any]]:
        base = self.base()
        return [belonging.captions_of(base), belonging.drafts_of(base)]

    def _claim(self) -> Sequence[Row]:
        self._turn += 1
        queues = self._queues()
        if self._turn % DRAFTS_FIRST == 0:
            queues.reverse()
        for queue in queues:
            if rows := queue.claim(self.name, self.breaker.limit(self.batch_size)):
                return rows
        return []

    def idle(self) -> int:
        """With nothing else to do, embed a few images that came without a caption to write.

        Returns:
            How many. 1 too if rows were postponed a moment ago: they can be claimed again now.
        """
        if (left := self._look_again_at - time.monotonic()) > 0:
            WAKE_UP.wait(left)
            return 1
        with self._letting_pass([]):
            return self.ahead.embed_some()

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
        return embed_images(self.captioner, images, self._let_pass)

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
            decode_ms = (time.monotonic() - started) * 1000
            done = [
                Written(row, version, answer, self._prefix(row, model.mapper, vectors[row.image_id]))
                for (row, (version, model)), answer in zip(part, answers, strict=True)
                if answer
            ]
            retry_on_lost_database(lambda: record_answers(done, embedded.took_ms, decode_ms))
            for (row, (version, _)), answer in zip(part, answers, strict=True):
                if not answer:
                    detail = f"{version} returns values that are not finite (NaN or infinity) for this image"
                    self._end(row, Failure("not_possible", detail, own=True))
            log.info(
                "captioned",
                extra={
                    "captions": [one.row.pk for one in done],
                    "requests": sorted({str(one.row.request_id) for one in done}),
                    "decode_ms": round(decode_ms, 1),
                },
            )

        failed = bisect_failures(items, decode, self.captioner.backend.release)
        for part, error in failed:
            for row, _ in part:
                self._end(row, failure_of(error, others_succeeded=len(failed) < len(items)))

    @torch.inference_mode()
    def _prefix(self, row: Row, mapper: Mapper, vector: Tensor) -> dict[str, Any]:
        """What a draft keeps of its prefix (K, D); captions keep nothing, nor do drafts of their texts."""
        if not isinstance(row, Draft) or row.caption_id is not None:
            return {}
        lm = self.captioner.language_model
        (prefix,) = mapper(vector[None].to(lm.device, torch.float32))
        return {
            "prefix_words": lm.nearest_words(prefix, WORDS_KEPT),
            "prefix": prefix.cpu().numpy().astype("<f2").tobytes(),
        }


def _queue(rows: Sequence[Row | TextEmbedding]) -> JobQuerySet[Any]:
    return type(rows[0]).objects.all()
