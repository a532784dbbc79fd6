"""The embeddings of images and of searched texts: those that are kept are read, the others computed and kept."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import torch
from django.db import Error as DatabaseError
from django.db.models import Exists, OuterRef
from torch import Tensor

from captioner.inference.failures import (
    bisect_failures,
    failure_of,
    is_out_of_memory,
    storage_gives_others,
    unread_failure,
)
from captioner.jobs.job import Failure, clock
from captioner.models import Embedding, Image
from captioner.workers.worker_process import retry_on_lost_database
from clipcap.captioner import Captioner
from clipcap.encoder import Encoder
from clipcap.image import ImageError

log = logging.getLogger(__name__)

READ_AGAIN = 600.0  # seconds after which an image that the storage did not give is embedded ahead after all
AHEAD = 8  # images embedded at a time while idle
# A text tower knows captions, and a bare word is none: with an article, photos of 25 everyday things were found with a
# mean average precision of 0.62 in place of 0.24 (models/base), and whole captions found their photos as before. CLIP's
# authors embed names in several phrases too (Radford et al., 2021, section 3.1.4).
PHRASES = ("a {}", "the {}")


@dataclass(frozen=True)
class Embedded:
    """What became of images, by id: embeddings (E,), the milliseconds that each took, and what went wrong."""

    vectors: dict[uuid.UUID, Tensor]
    took_ms: dict[uuid.UUID, float]
    failures: dict[uuid.UUID, Failure]


def embed_images(captioner: Captioner, images: Sequence[Image], between: Callable[[], None]) -> Embedded:
    """The embeddings of images; those not known yet are computed and kept.

    Args:
        between: called between two steps of the work.
    """
    encoder = captioner.encoder
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
        between()
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
            between()
            part = keys[first : first + encoder.together]
            made = encoder.encode_pixels(torch.stack([pixels[k] for k in part]))
            if not bool(made.isfinite().all()):
                raise ValueError(
                    f"{encoder.identity} returns values that are not finite (NaN or infinity) for this image"
                )
            vectors.update(zip(part, made, strict=True))

    for keys, cause in bisect_failures(list(pixels), encode, captioner.backend.release):
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


def embed_texts(encoder: Encoder, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """What searched texts (N) mean to an encoder with a text tower: (N, E), the mean of what phrases with them mean."""
    phrased = encoder.encode_text([phrase.format(text) for text in texts for phrase in PHRASES])  # (N * P, E)
    units = phrased / phrased.norm(dim=1, keepdim=True).clamp_min(1e-12)
    mean: npt.NDArray[np.float32] = units.view(len(texts), len(PHRASES), -1).mean(dim=1).numpy().astype("<f4")
    return mean


class EmbeddingAhead:
    """Embeds images that came without a caption to write, those of a dataset say, oldest first."""

    def __init__(self, captioner: Captioner, between: Callable[[], None]) -> None:
        self.captioner, self.between = captioner, between
        self._embedded_until = datetime.min.replace(tzinfo=UTC)
        self._unreadable: set[uuid.UUID] = set()
        self._unread: dict[uuid.UUID, datetime] = {}  # images to read later, and when they came
        self._read_again_at = 0.0

    def embed_some(self) -> int:
        """Embed a few.

        Returns:
            How many; all older images that can be read have their embedding when there are none.
        """
        now = clock("default")
        if time.monotonic() > self._read_again_at:
            self._unread.clear()
        encoded = Embedding.objects.filter(image=OuterRef("pk"), encoder=self.captioner.encoder.identity)
        missing = (
            Image.objects.filter(~Exists(encoded))
            .filter(created_at__gte=self._embedded_until)
            .exclude(pk__in=self._unreadable | self._unread.keys())
            .order_by("created_at")[:AHEAD]
        )
        images = list(missing)
        if not images:
            # Clocks of other machines may differ a little.
            self._embedded_until = min([now - timedelta(minutes=10), *self._unread.values()])
            return 0
        failures = embed_images(self.captioner, images, self.between).failures
        self._unreadable |= {pk for pk, failure in failures.items() if failure.own}
        for image in images:
            if image.pk in failures.keys() - self._unreadable:
                if not self._unread:
                    self._read_again_at = time.monotonic() + READ_AGAIN
                self._unread[image.pk] = image.created_at
        return len(images)
