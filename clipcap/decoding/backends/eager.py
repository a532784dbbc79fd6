"""Decoding by transformers' own forward pass and key-value cache, kernel by kernel.

Shorter prefixes are padded on the left, masked, and positions are counted from each row's own start.

Legend: B rows, L live hypotheses, S cached positions, K prefix length, D size of a token embedding, V vocabulary.
"""

from __future__ import annotations

import clipcap.torchvision_schemas  # noqa: F401 (before transformers is imported)

# isort: split
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from clipcap.adapters import Adapters, Mixture

if TYPE_CHECKING:
    from clipcap.language_model import LanguageModel

CPU_BYTES = 256 * 2**20  # of keys and values; on a CPU bigger batches are no faster
CUDA_SHARE = 0.25  # of the free memory; selecting the rows that go on copies keys and values once


class EagerBackend:
    """Runs a language model of transformers."""

    def __init__(self, language_model: LanguageModel) -> None:
        self.language_model = language_model

    @property
    def identity(self) -> str:
        """The language model's."""
        return self.language_model.identity

    @property
    def vocabulary(self) -> int:
        """V"""
        return self.language_model.vocabulary

    @property
    def max_length(self) -> int:
        """Positions of prefix and caption together, at most."""
        return self.language_model.max_length

    def start(self, prefixes: Sequence[Tensor], adapters: Sequence[Adapters | None] = ()) -> _Generation:
        """Begin a batch of prefixes, (K, D) each."""
        return _Generation(self.language_model, prefixes, adapters)

    def together(self, positions: int) -> int:
        """How many hypotheses of so many positions fit into what keys and values may take."""
        lm = self.language_model
        budget = CPU_BYTES
        if lm.device.type == "cuda":
            budget = int(torch.cuda.mem_get_info(lm.device)[0] * CUDA_SHARE)
        return max(1, budget // (positions * lm.cache_bytes))

    def release(self) -> None:
        """Empty the allocator's cache."""
        if self.language_model.device.type == "cuda":
            torch.cuda.empty_cache()


class _Generation:
    """The LM's side of a batch: its cache, the rows' adapters, and the padding in front of shorter prefixes."""

    def __init__(self, lm: LanguageModel, prefixes: Sequence[Tensor], adapters: Sequence[Adapters | None]) -> None:
        self.lm = lm
        self.adapters = Mixture(lm, adapters) if any(adapters) else None
        self.cache = DynamicCache(config=lm.model.config)
        longest = max(len(prefix) for prefix in prefixes)
        embedded = torch.zeros(len(prefixes), longest, lm.size, device=lm.device, dtype=lm.dtype)
        self.mask: Tensor | None = None  # (L, S); none where no prefix is shorter than another
        positions = None
        if any(len(prefix) < longest for prefix in prefixes):
            self.mask = torch.zeros(len(prefixes), longest, dtype=torch.long, device=lm.device)
        for row, prefix in enumerate(prefixes):
            embedded[row, longest - len(prefix) :] = prefix
            if self.mask is not None:
                self.mask[row, longest - len(prefix) :] = 1
        if self.mask is not None:
            positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        self.logits = self._next(embedded, positions, keep=1)  # (L, V) of each live hypothesis's next token

    def advance(self, sources: Tensor, tokens: Tensor) -> None:
        """See `clipcap.decoding.backends.base.Generation`."""
        unchanged = len(sources) == len(self.logits) and bool(
            (sources == torch.arange(len(sources), device=sources.device)).all()
        )
        if not unchanged:
            self.cache.batch_select_indices(sources)
            if self.adapters:
                self.adapters.select(sources)
        positions = None
        if self.mask is not None:
            self.mask = F.pad(self.mask[sources], (0, 1), value=1)
            positions = self.mask.sum(1, keepdim=True) - 1
        embedded = self.lm.embed(tokens[:, None])
        self.logits = self._next(embedded, positions)

    def _next(self, embedded: Tensor, positions: Tensor | None, keep: int = 0) -> Tensor:
        with self.adapters.applied() if self.adapters else nullcontext():
            out = self.lm.logits(embedded, mask=self.mask, positions=positions, cache=self.cache, keep=keep)
        return out[:, -1].float()
