"""From a style's examples to what the trainer reads: captions by image, and the images' embeddings."""

import uuid
from collections.abc import Callable, Iterable, Iterator
from itertools import compress
from typing import Literal

import numpy as np
import numpy.typing as npt
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
    vectors, there = _vectors(models, wanted, report)

    def part(held_out: bool, place: slice) -> CaptionedImages:
        readable = there[place]
        images = list(compress(captions[held_out], readable))
        if not images:
            raise TrainingError("none of the examples' images can be read; import them again")
        found = vectors[place] if readable.all() else vectors[place][readable]  # there are no two copies of all
        embeddings = torch.from_numpy(found)[:, None]
        return CaptionedImages([str(i) for i in images], embeddings, [captions[held_out][i] for i in images])

    learned = len(captions[False])
    return part(False, slice(learned)), part(True, slice(learned, None)), len(wanted) - int(there.sum())


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
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The images' embeddings, (N, E), and which of them there are; those still missing are computed and kept."""
    vectors = np.empty((len(images), models.captioner.encoder.embedding_size), np.float32)
    there = np.zeros(len(images), bool)
    place = {image: number for number, image in enumerate(images)}

    def add(found: Iterable[tuple[uuid.UUID, npt.ArrayLike]]) -> None:
        for image, vector in found:
            vectors[place[image]], there[place[image]] = vector, True

    for first in range(0, len(images), 500):
        report("embedding", int(there.sum()), len(images))
        add(_stored(models, images[first : first + 500]))
    missing = [image for image in images if not there[place[image]]]
    for first in range(0, len(missing), BATCH):
        report("embedding", int(there.sum()), len(images))
        part = missing[first : first + BATCH]
        embedded = models.embeddings(list(Image.objects.filter(pk__in=part)))
        for failure in embedded.failures.values():
            if not failure.own and not failure.others_succeeded:
                raise Unavailable(failure)
        add((image, vector.numpy()) for image, vector in embedded.vectors.items())
        # The caption worker may have stored one meanwhile that differs in its last bits, and that is what counts: a
        # run that is taken up again has to find what it began with.
        add(_stored(models, part))
    return vectors, there


def _stored(models: CaptionEngine, images: list[uuid.UUID]) -> Iterator[tuple[uuid.UUID, npt.NDArray[np.float32]]]:
    found = Embedding.objects.filter(image__in=images, encoder=models.captioner.encoder.identity)
    for image, vector in found.values_list("image", "vector"):
        yield image, np.frombuffer(bytes(vector), "<f4")
