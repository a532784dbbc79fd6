"""Cross-entropy of captions behind the prefixes of their images.

Legend: B rows, E size of a CLIP embedding.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.language_model import LanguageModel
from clipcap.mapper import Mapper
from clipcap.training.data import CaptionedImages, Row, batches_of
from clipcap.training.options import TrainingOptions
from clipcap.training.packing import PackedBatch, pack


def caption_loss(
    mapper: Mapper, lm: LanguageModel, embeddings: Tensor, captions: Sequence[Sequence[Sequence[int]]], end_id: int
) -> Tensor:
    """Mean cross-entropy over every caption token and every caption's end.

    Args:
        embeddings: (B, E), one a row.
        captions: the token ids of each row's captions.
    """
    length, packed = mapper.config.prefix_length, lm.heeds_masks
    if not packed:  # then a caption a row, which needs no mask: padding stands behind what could see it
        embeddings = embeddings.repeat_interleave(torch.tensor([len(row) for row in captions]), dim=0)
        captions = [[caption] for row in captions for caption in row]
    batch: PackedBatch = pack(captions, length, end_id).to(lm.device)
    prefix = mapper(embeddings.to(lm.device))
    embedded = torch.cat([prefix.to(lm.dtype), lm.embed(batch.tokens)], dim=1)
    keep = embedded.shape[1] - length + 1
    mask, positions = (batch.mask.to(embedded.dtype), batch.positions) if packed else (None, None)
    logits = lm.logits(embedded, mask=mask, positions=positions, keep=keep)
    return F.cross_entropy(logits.flatten(0, 1)[batch.source].float(), batch.target)


@torch.no_grad()
def validation_loss(
    mapper: Mapper,
    lm: LanguageModel,
    images: CaptionedImages,
    rows: list[Row],
    options: TrainingOptions,
    autocast: AbstractContextManager[Any],
    on_batch: Callable[[], None] = lambda: None,
) -> float:
    """Mean cross-entropy per token over a whole dataset, on each image's first view; `on_batch` may raise to end it."""
    mapper.eval()
    total, count = 0.0, 0
    for batch in batches_of(rows, options, epoch=0):
        on_batch()
        tokens = sum(len(c) + 1 for _, captions in batch for c in captions)
        embeddings = images.embeddings[[i for i, _ in batch], 0].float()
        with autocast:
            loss = caption_loss(mapper, lm, embeddings, [captions for _, captions in batch], lm.end_id)
        total += loss.item() * tokens
        count += tokens
    mapper.train()
    return total / count
