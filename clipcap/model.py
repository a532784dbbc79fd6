"""What writes a style's captions: a mapper, and where it has them, language-model weights of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from clipcap.adapters import Adapters
from clipcap.mapper import Mapper

if TYPE_CHECKING:
    from clipcap.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class ClipCaptionModel:
    """A mapper and the language model that it speaks to.

    language_model: a fine-tuned copy of the loaded one; None for the loaded one, which all share.
    adapters: what is added to the language model for it.
    """

    mapper: Mapper
    language_model: LanguageModel | None = None
    adapters: Adapters | None = None

    @property
    def weights(self) -> nn.ModuleDict:
        """All weights that it does not share."""
        parts: dict[str, nn.Module] = {"mapper": self.mapper}
        if self.language_model:
            parts["language_model"] = self.language_model.model
        if self.adapters:
            parts["adapters"] = self.adapters
        return nn.ModuleDict(parts)

    @property
    def bytes(self) -> int:
        """The memory that its weights take, on whichever device they are."""
        return sum(tensor.nbytes for tensor in (*self.weights.parameters(), *self.weights.buffers()))
