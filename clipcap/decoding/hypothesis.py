"""What a search has written, and what every search offers.

Legend: L live hypotheses, V vocabulary.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Hypothesis:
    """Tokens as generated, the one that ended them included, and their mean log-probability per token."""

    tokens: tuple[int, ...]
    log_probability: float


class Search(Protocol):
    """One way of decoding all rows: what it has written so far, and what it wants the LM to go on with."""

    sources: Tensor  # (L,) whom each live hypothesis follows: its place among the last logits
    tokens: Tensor  # (L,) its newest token; none is left when the search is over

    def go_on(self, logits: Tensor) -> None:
        """Choose the next tokens by (L, V)."""

    def answers(self) -> list[list[Hypothesis]]:
        """`options.captions` hypotheses of each row, best first."""
