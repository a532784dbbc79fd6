"""Photos that a worker has looked at, texts whose meaning is known, and searching for them."""

from __future__ import annotations

import itertools
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from django.utils import timezone

from captioner import services
from captioner.jobs.job import Status
from captioner.models import (
    Embedding,
    Image,
    Style,
    TextEmbedding,
    Viewer,
)
from tests.captions import finished

ENCODER, READER = "eyes@1", "words@1"  # identities of an encoder's halves
URL = "/api/images/"
SIZE = 8
VISITOR = Viewer(visitor="a visitor")
COUNTER = itertools.count()
PHOTOS = Path(__file__).parents[2] / "examples" / "coco_cc"


def direction(*places: int, noise: float = 0.0, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A vector that points to the given axes, and a little elsewhere."""
    vector = noise * np.random.default_rng(seed).normal(size=SIZE)
    vector[list(places)] += 1
    return vector.astype("<f4")


def photo(style: Style, text: str, vector: Any, viewer: Viewer = VISITOR, **changes: Any) -> Image:
    """A photo that a worker has looked at and captioned for somebody."""
    image = Image.objects.create(sha256=f"{next(COUNTER):064x}", width=4, height=3, size=9, file="a", thumbnail="b")
    finished(image, style, text, **{"owner": viewer.user, "visitor": viewer.visitor, **changes})
    if vector is not None:
        Embedding.objects.create(image=image, encoder=ENCODER, vector=vector.tobytes())
    return image


def known(text: str, vector: Any) -> None:
    """What a worker has found that a text means."""
    now = timezone.now()
    TextEmbedding.objects.create(
        encoder=READER, text=text, vector=vector.tobytes(), status=Status.SUCCEEDED, finished_at=now, deadline_at=now
    )


def crowd(style: Style, count: int = 40, viewer: Viewer = VISITOR) -> list[Image]:
    """Photos that have nothing to do with what is searched for: about axes 4 to 7."""
    return [photo(style, "a wall", direction(4 + n % 4, noise=0.1, seed=n), viewer) for n in range(count)]


def search(text: str, viewer: Viewer = VISITOR, **options: Any) -> services.SearchResult:
    return services.search_images(viewer, text, seconds=0, **options)


def by(found: services.SearchResult) -> dict[uuid.UUID, tuple[str, ...]]:
    return {hit.image: hit.matched for hit in found.hits}
