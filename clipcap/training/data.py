"""Captioned images, and the batches that an epoch is made of.

Legend: N images, A augmented views of each, B rows of a batch, E size of a CLIP embedding.
"""

import hashlib
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipcap.language_model import LanguageModel
from clipcap.mapper import Mapper
from clipcap.training.errors import TrainingCanceled, TrainingError
from clipcap.training.options import TrainingOptions

# An image's index and the tokens of some of its captions, in arrays: lists take six times as much memory.
Row = tuple[int, list["array[int]"]]
_LOOK = 1000  # images tokenized between two looks whether to go on, or checked at once
_CAPTION_TOKENS = 64  # for which a step has room, for each caption of a batch
_ROW_TOKENS = 160  # a row with more captions than fit is continued in another, behind the same prefix again


@dataclass(frozen=True)
class CaptionedImages:
    """A dataset: N images by name, their embeddings (N, A, E) and their captions.

    The first view is the image itself; training draws one of the A views each time, validation reads the first.
    """

    names: Sequence[str]
    embeddings: Tensor
    captions: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 3 or not self.embeddings.shape[1]:
            raise TrainingError(
                f"embeddings must be (images, at least one view, size), not {tuple(self.embeddings.shape)}"
            )
        if not len(self.names) == len(self.embeddings) == len(self.captions):
            raise TrainingError(
                f"{len(self.names)} names, {len(self.embeddings)} embeddings and captions of {len(self.captions)} "
                f"images do not belong together"
            )

    def split(self, validation_share: float = 0.1) -> tuple["CaptionedImages", "CaptionedImages"]:
        """Training and validation part, decided by each image's name alone, so that an image stays in its part when
        others come and go."""

        def is_validation(name: str) -> bool:
            return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < validation_share * 2**64

        chosen = [is_validation(name) for name in self.names]
        return self._take([i for i, v in enumerate(chosen) if not v]), self._take(
            [i for i, v in enumerate(chosen) if v]
        )

    def _take(self, rows: list[int]) -> "CaptionedImages":
        return CaptionedImages([self.names[i] for i in rows], self.embeddings[rows], [self.captions[i] for i in rows])


def tokenized_rows(
    images: CaptionedImages,
    mapper: Mapper,
    lm: LanguageModel,
    options: TrainingOptions,
    what: str,
    on_tokens: Callable[[int, int], bool],
) -> tuple[list[Row], dict[str, int]]:
    """Tokenize, and refuse early what would fail late."""
    config = mapper.config
    if len(images.names) == 0:
        raise TrainingError(f"the {what} split has no images; add examples, or choose another validation share")
    if images.embeddings.shape[2] != config.embedding_size:
        raise TrainingError(
            f"the embeddings have size {images.embeddings.shape[2]}, the mapper expects {config.embedding_size}; "
            f"compute them with the encoder the mapper is for"
        )
    if not all(bool(part.isfinite().all()) for part in images.embeddings.split(_LOOK)):
        raise TrainingError(
            f"embeddings of the {what} part contain values that are not finite (NaN or infinity); compute them again"
        )
    if config.lm_size != lm.size:
        raise TrainingError(f"the mapper writes prefixes of size {config.lm_size}, the language model reads {lm.size}")
    if lm.dtype == torch.float16:
        raise TrainingError(
            f"{lm.identity} is loaded in float16, in which gradients vanish; load it in float32 or bfloat16 to train"
        )
    longest = lm.max_length - config.prefix_length
    if longest < 1:
        raise TrainingError(
            f"a prefix of {config.prefix_length} leaves no room for a caption in the {lm.max_length} positions of "
            f"{lm.identity}; choose a shorter prefix"
        )
    left_out = {"empty": 0, "duplicate": 0, "too long": 0}
    rows: list[Row] = []
    for index, captions in enumerate(images.captions):
        if index % _LOOK == 0 and not on_tokens(index, len(images.captions)):
            raise TrainingCanceled("canceled before the first step; call again to start over")
        seen: set[str] = set()
        packed: list[array[int]] = []
        for caption in captions:
            text = " ".join(caption.split())
            tokens = array("i", lm.encode(text) if text and text not in seen else [])
            reason = (
                "empty" if not text else "duplicate" if text in seen else "too long" if len(tokens) > longest else ""
            )
            if reason:
                left_out[reason] += 1
                continue
            seen.add(text)
            if packed and sum(map(len, packed)) + len(tokens) > _ROW_TOKENS:
                rows.append((index, packed))
                packed = []
            packed.append(tokens)
        if packed:
            rows.append((index, packed))
    if not rows:
        raise TrainingError(
            f"the {what} split has no caption that can be used: "
            + ", ".join(f"{count} {reason}" for reason, count in left_out.items())
            + f" (at most {longest} tokens fit); fix the captions"
        )
    return rows, left_out


def batches_of(rows: list[Row], options: TrainingOptions, epoch: int) -> list[list[Row]]:
    """The batches of an epoch: rows of like length together, all in an order that seed and epoch decide."""
    rng = random.Random(f"{options.seed} {epoch}")
    order = rng.sample(rows, len(rows))
    pool = 50 * options.batch_size  # sorting within pools keeps batches random but for their lengths
    batches: list[list[Row]] = []
    for first in range(0, len(order), pool):
        batch: list[Row] = []
        for row in sorted(order[first : first + pool], key=_length):  # so this one is its batch's longest
            if batch and (
                sum(len(c) for _, c in batch) + len(row[1]) > options.batch_size
                or (len(batch) + 1) * _length(row) > _CAPTION_TOKENS * options.batch_size
            ):
                batches.append(batch)
                batch = []
            batch.append(row)
        batches.append(batch)
    rng.shuffle(batches)
    return batches


def _length(row: Row) -> int:
    return sum(map(len, row[1]))


def count_tokens(batch: list[Row]) -> int:
    """What the loss of a batch is the mean of: every caption's tokens, and its end."""
    return sum(len(caption) + 1 for _, captions in batch for caption in captions)


def draw_embeddings(
    embeddings: Tensor, batch: list[Row], deviation: Tensor, options: TrainingOptions, step: int
) -> Tensor:
    """(B, E) embeddings of a training batch: a random view of each, with noise."""
    rng = random.Random(f"{options.seed} view {step}")
    drawn = torch.stack([embeddings[i, rng.randrange(embeddings.shape[1])] for i, _ in batch]).float()
    if options.noise:
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        drawn = drawn + options.noise * deviation * torch.randn(drawn.shape, generator=generator)
    return drawn
