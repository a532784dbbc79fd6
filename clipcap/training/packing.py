"""The captions of one image behind one prefix: what a training step feeds the language model.

A row is one image: its prefix, then its captions one after the other. Each caption sees the prefix and itself
but not its neighbours, and its positions go on from the prefix, so the loss is what it would be with a row per
caption, while the prefix, most of such a row, is computed once.

Legend: B images, K prefix length, T caption tokens of the longest row, S = K + T, N predicted tokens.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """What the LM needs for the captions of B images.

    tokens (B, T) padded with 0, which the loss never reads; positions (B, S); mask (B, 1, S, S), 0 where a query may
    look and the dtype's lowest value elsewhere; source (N,), where in the flattened (B, 1 + T) logits (the prefix's
    last position, then the captions) each prediction stands; target (N,), the token it should be.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    source: Tensor
    target: Tensor

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on `device`."""
        return PackedBatch(*(getattr(self, f.name).to(device) for f in dataclasses.fields(self)))


def pack(images: Sequence[Sequence[Sequence[int]]], prefix_length: int, end_id: int) -> PackedBatch:
    """Lay out the captions (token ids, without the end token) of each image behind a prefix of K positions."""
    width = max(sum(len(caption) for caption in captions) for captions in images)
    tokens = torch.zeros(len(images), width, dtype=torch.long)
    positions = torch.arange(prefix_length + width).repeat(len(images), 1)
    segment = torch.full((len(images), width), -1)
    source: list[int] = []
    target: list[int] = []
    for row, captions in enumerate(images):
        start = 0
        for number, caption in enumerate(captions):
            end = start + len(caption)
            tokens[row, start:end] = torch.tensor(caption)
            positions[row, prefix_length + start : prefix_length + end] -= start
            segment[row, start:end] = number
            first = row * (width + 1)
            source += [first, *range(first + 1 + start, first + 1 + end)]
            target += [*caption, end_id]
            start = end
        positions[row, prefix_length + start :] = 0
    size = prefix_length + width
    same = segment[:, :, None] == segment[:, None, :]  # (B, T, T)
    allowed = torch.ones(len(images), size, size, dtype=torch.bool)
    allowed[:, prefix_length:, prefix_length:] = same
    allowed = allowed.tril()
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return PackedBatch(tokens, positions, mask[:, None], torch.tensor(source), torch.tensor(target))
