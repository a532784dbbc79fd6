"""From a style's examples to what the trainer reads: captions by image, and the images' embeddings."""

import uuid
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from django.db.models import QuerySet
from torch import Tensor

from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import Failure
from captioner.models import Embedding, Image
from clipcap.captioner import Captioner
from clipcap.mapper import MapperConfig
from clipcap.model import ClipCaptionModel
from clipcap.options import DecodingOptions
from clipcap.training import CaptionedImages, TrainingError
from training.models import Example


class Unavailable(Exception):
    """What the examples need cannot be had now, through no fault of theirs."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


BATCH = 32
PART = 2000  # rows read at once


def captioned_images(
    models: CaptionEngine, examples: QuerySet[Example], report: Callable[[str, int, int], None]
) -> tuple[CaptionedImages, CaptionedImages, int]:
    """The examples as training and validation part, and the number of images that cannot be read.

    Args:
        report: called with what is being done, "reading" or "embedding", and how many of how many examples are read,
            or embeddings of images there or computed; it may raise to end it.

    Raises:
        TrainingError: no image of a part can be read.
        Unavailable: some cannot be read now, since the storage is away, say.
    """
    captions: dict[bool, dict[uuid.UUID, list[str]]] = {False: {}, True: {}}
    total = examples.count()
    rows = examples.order_by("pk").values_list("image", "text", "held_out").iterator(PART)
    for place, (image, text, held_out) in enumerate(rows):
        if place % PART == 0:
            report("reading", place, total)
        captions[held_out].setdefault(image, []).append(text)
    wanted = [*captions[False], *captions[True]]
    vectors = _vectors(models, wanted, report)

    def part(held_out: bool) -> CaptionedImages:
        images = [image for image in captions[held_out] if image in vectors]
        if not images:
            raise TrainingError("none of the examples' images can be read; import them again")
        embeddings = torch.stack([vectors[image] for image in images])[:, None]
        return CaptionedImages([str(i) for i in images], embeddings, [captions[held_out][i] for i in images])

    return part(False), part(True), len(wanted) - len(vectors)


def mapper_config(
    captioner: Captioner, kind: Literal["transformer", "mlp"], prefix_length: int, layers: int
) -> MapperConfig:
    """The config of a new mapper between these models."""
    lm_size = captioner.language_model.size
    return MapperConfig(
        kind,
        embedding_size=captioner.encoder.embedding_size,
        lm_size=lm_size,
        prefix_length=prefix_length,
        layers=layers,
        heads=next(heads for heads in (8, 4, 2, 1) if lm_size % heads == 0),
    )


def captions_of(
    captioner: Captioner, model: ClipCaptionModel, embeddings: Tensor, report: Callable[[int], None] = lambda done: None
) -> list[str]:
    """The best caption of each of (N, E) embeddings; its mapper is left in eval mode.

    Raises:
        ValueError: the mapper answers to one with numbers that are none.
    """
    model.mapper.eval()
    texts: list[str] = []
    for part in embeddings.split(BATCH):
        report(len(texts))
        answers = captioner.caption(part, [model] * len(part), DecodingOptions())
        if not all(answers):
            raise ValueError(
                "the mapper returns values that are not finite (NaN or infinity): train it with a lower learning rate"
            )
        texts += [best.text for best, *_ in answers]
    return texts


def _vectors(
    models: CaptionEngine, images: list[uuid.UUID], report: Callable[[str, int, int], None]
) -> dict[uuid.UUID, Tensor]:
    """The images' embeddings, (E,) each; those still missing are computed and kept."""
    vectors: dict[uuid.UUID, Tensor] = {}
    for first in range(0, len(images), 500):
        report("embedding", len(vectors), len(images))
        vectors |= _stored(models, images[first : first + 500])
    missing = [image for image in images if image not in vectors]
    for first in range(0, len(missing), BATCH):
        report("embedding", len(vectors), len(images))
        part = missing[first : first + BATCH]
        embedded = models.embeddings(list(Image.objects.filter(pk__in=part)))
        for failure in embedded.failures.values():
            if not failure.own and not failure.others_succeeded:
                raise Unavailable(failure)
        made = embedded.vectors
        # The caption worker may have stored one meanwhile that differs in its last bits, and that is what counts: a
        # run that is taken up again has to find what it began with.
        made |= _stored(models, part)
        vectors |= {image: made[image] for image in part if image in made}
    return vectors


def _stored(models: CaptionEngine, images: list[uuid.UUID]) -> dict[uuid.UUID, Tensor]:
    found = Embedding.objects.filter(image__in=images, encoder=models.captioner.encoder.identity)
    return {
        image: torch.from_numpy(np.frombuffer(bytes(vector), "<f4").copy())
        for image, vector in found.values_list("image", "vector")
    }
