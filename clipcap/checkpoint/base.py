"""What a mapper's file says, whichever format it has."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipcap.adapters import Adapters
from clipcap.fingerprint import same_weights
from clipcap.mapper import Mapper, MapperConfig, build_mapper
from clipcap.model import ClipCaptionModel
from clipcap.tensor_file import not_finite, unlike


class CheckpointError(ValueError):
    """A mapper file that cannot be used; the message says which file, why, and what to do."""


@dataclass(frozen=True)
class MapperCheckpoint:
    """A mapper with the identities of the encoder and the LM it fits, and notes (metrics, origin) for people.

    An identity is None where the file does not say, as in the authors' format. `weights` are the LM's as they became
    with the mapper, by name, in the type that they are stored in; none where it stayed as it was. `adapters` are what
    is added to the LM.
    """

    mapper: Mapper
    encoder: str | None
    language_model: str | None
    notes: dict[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    adapters: Adapters | None = None

    @classmethod
    def of(
        cls, model: ClipCaptionModel, encoder: str | None, language_model: str | None, notes: dict[str, Any]
    ) -> "MapperCheckpoint":
        """What is to be stored of a model: a language model of its own in half precision, which is half the file."""
        own = model.language_model.weights if model.language_model else {}
        halves = {name: tensor.half() for name, tensor in own.items()}
        return cls(model.mapper, encoder, language_model, notes, halves, model.adapters)

    def described(self) -> dict[str, Any]:
        """What is filed of it: `config`, `encoder` and `language_model`, "" where the file does not say.

        Of a mapper from the authors' format the config also says in words what embeddings it is taken for trained on;
        of one with language-model weights, how those became what they are.
        """
        config = asdict(self.mapper.config)
        if self.adapters:
            config |= {"language_model": "adapters", "rank": self.adapters.rank, "targets": self.adapters.targets}
        if self.weights:
            config["language_model"] = "finetuned"
        if how := self.notes.get("normalize"):
            config["trained_on"] = f"embeddings {as_trained(self.mapper.config.normalize)} ({how})"
        return {"config": config, "encoder": self.encoder or "", "language_model": self.language_model or ""}

    def check_fits(self, *, encoder: str, embedding_size: int, language_model: str, lm_size: int) -> None:
        """Refuse a mapper made for other models.

        Raises:
            CheckpointError: naming what the mapper needs and what is loaded.
        """
        for what, needs, loaded in (
            ("encoder", self.encoder, encoder),
            ("language model", self.language_model, language_model),
        ):
            if needs is not None and not same_weights(needs, loaded):
                raise CheckpointError(
                    f"the mapper was trained for {what} {needs}, but {loaded} is loaded; "
                    f"load {needs}, or retrain the mapper for {loaded}"
                )
        for what, needs_size, size in (
            ("embeddings", self.mapper.config.embedding_size, embedding_size),
            ("a language model", self.mapper.config.lm_size, lm_size),
        ):
            if needs_size != size:
                raise CheckpointError(
                    f"the mapper needs {what} of size {needs_size}, not {size}; load the models it was made for"
                )


def as_trained(normalize: bool) -> str:
    """In words, what embeddings a mapper was trained on."""
    return "normalized to unit length" if normalize else "as the encoder gives them"


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a file's weights that are not all numbers.

    Raises:
        CheckpointError: naming the first such weights.
    """
    if name := not_finite(state):
        raise CheckpointError(
            f"mapper file {path} cannot be used: {name} contains values that are not finite (NaN or infinity), as "
            "after a training run that diverged; train it again with a lower learning rate"
        )


def filled_mapper(config: MapperConfig, state: Mapping[str, Tensor], path: Path) -> Mapper:
    """The mapper of a config with the weights of a file.

    Raises:
        CheckpointError: the weights are not those that the config asks for, or not all numbers.
    """
    with torch.device("meta"):  # sizes in a hostile header cost nothing until they have been compared
        try:
            mapper = build_mapper(config)
        except RuntimeError as error:  # together the sizes are more than can be counted
            raise CheckpointError(f"mapper file {path} declares impossible sizes ({error}); export it again") from error
    if problem := unlike(mapper.state_dict(), state):
        raise CheckpointError(f"mapper file {path} does not match its own config: {problem}; export it again")
    check_finite(state, path)
    mapper.load_state_dict(dict(state), assign=True)
    return mapper.eval().requires_grad_(False)
