"""What writes a style's captions: a mapper, and where it has one, a language model of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from clipcap.mapper import Mapper

if TYPE_CHECKING:
    from clipcap.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class ClipCaptionModel:
    """A mapper and the language model that it speaks to.

    language_model: a fine-tuned copy of the loaded one; None for the loaded one, which all share.
    """

    mapper: Mapper
    language_model: LanguageModel | None = None

    @property
    def weights(self) -> nn.ModuleDict:
        """All weights that it does not share."""
        parts: dict[str, nn.Module] = {"mapper": self.mapper}
        if self.language_model:
            parts["language_model"] = self.language_model.model
        return nn.ModuleDict(parts)

    @property
    def bytes(self) -> int:
        """The memory that its weights take, on whichever device they are."""
        return sum(tensor.nbytes for tensor in (*self.weights.parameters(), *self.weights.buffers()))
