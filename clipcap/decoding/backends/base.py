"""The seam between a search, which chooses tokens, and what computes their probabilities.

Legend: L live hypotheses, K prefix length, D size of a token embedding, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from clipcap.adapters import Adapters


class Generation(Protocol):
    """A batch under way.

    Before `advance` is called, each prefix is one hypothesis, in their order.
    """

    logits: Tensor  # (L, V) float32, of each live hypothesis's next token

    def advance(self, sources: Tensor, tokens: Tensor) -> None:
        """Go on with hypotheses `sources` (L,), rows of the last `logits`, each followed by one of `tokens` (L,)."""


class Backend(Protocol):
    """A language model, ready to decode.

    Every row must get the logits that it gets alone, whatever else is in its batch and however long its prefix is.
    """

    @property
    def identity(self) -> str:
        """The language model's name, for error messages."""

    @property
    def vocabulary(self) -> int:
        """V"""

    @property
    def max_length(self) -> int:
        """Positions of prefix and caption together, at most."""

    def start(self, prefixes: Sequence[Tensor], adapters: Sequence[Adapters | None] = ()) -> Generation:
        """Begin a batch of prefixes, (K, D) each; K may differ from row to row. So may what is added to the language
        model: each row's adapters, or nothing for any row if none are given."""

    def together(self, positions: int) -> int:
        """How many hypotheses of so many positions are best decoded at a time, by the memory that each takes."""

    def release(self) -> None:
        """Give memory that is kept for later batches back to the device, after it ran short."""
