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
from clipcap.training.data import Row, batches_of, count_tokens
from clipcap.training.group import Group
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
    embeddings: Tensor,
    rows: list[Row],
    options: TrainingOptions,
    autocast: AbstractContextManager[Any],
    group: Group,
    on_batch: Callable[[], None] = lambda: None,
) -> float:
    """Mean cross-entropy per token over a whole dataset of (N, A, E) embeddings, on each image's first view. The
    processes of the group take turns with its batches.

    Args:
        on_batch: called before each batch, whosever it is; it may raise to end it.
    """
    mapper.eval()
    total, count = 0.0, 0.0
    for number, batch in enumerate(batches_of(rows, options, epoch=0)):
        on_batch()
        if number % group.size != group.rank:
            continue
        tokens = count_tokens(batch)
        images = embeddings[[i for i, _ in batch], 0].float()
        with autocast:
            loss = caption_loss(mapper, lm, images, [captions for _, captions in batch], lm.end_id)
        total += loss.item() * tokens
        count += tokens
    mapper.train()
    total, count = group.total([total, count], lm.device)
    return total / count
