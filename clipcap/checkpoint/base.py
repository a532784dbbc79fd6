"""What a mapper's file says, whichever format it has."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipcap.mapper import Mapper, MapperConfig, build_mapper
from clipcap.tensor_file import not_finite, unlike


class CheckpointError(ValueError):
    """A mapper file that cannot be used; the message says which file, why, and what to do."""


@dataclass(frozen=True)
class MapperCheckpoint:
    """A mapper with the identities of the encoder and the LM it fits, and notes (metrics, origin) for people.

    An identity is None where the file does not say, as in the authors' format.
    """

    mapper: Mapper
    encoder: str | None
    language_model: str | None
    notes: dict[str, Any] = field(default_factory=dict)
    gpt2: Mapping[str, Tensor] = field(default_factory=dict)  # of the authors' format: what it was trained with

    def described(self) -> dict[str, Any]:
        """What is filed of it: `config`, `encoder` and `language_model`, "" where the file does not say.

        Of a mapper from the authors' format the config also says in words what embeddings it is taken for trained on.
        """
        config = asdict(self.mapper.config)
        if how := self.notes.get("normalize"):
            config["trained_on"] = f"embeddings {as_trained(self.mapper.config.normalize)} ({how})"
        return {"config": config, "encoder": self.encoder or "", "language_model": self.language_model or ""}

    def check_same_gpt2(self, state: Mapping[str, Tensor], language_model: str) -> None:
        """Refuse a mapper that learned to speak to a GPT-2 which learned too: over another it writes nonsense.

        Args:
            state: the loaded LM's `state_dict()`.

        Raises:
            CheckpointError: the file holds a GPT-2 that is not the loaded one, by more than rounding.
        """
        for name, tensor in self.gpt2.items():
            if name.endswith((".attn.bias", ".attn.masked_bias")):  # no weights: the causal mask
                continue
            loaded = state.get(name)
            if (
                loaded is None
                or loaded.shape != tensor.shape
                or not torch.allclose(loaded.float().cpu(), tensor, rtol=0.01, atol=0.001)
            ):
                raise CheckpointError(
                    f"the mapper was trained along with a GPT-2, which its file contains and which is not "
                    f"{language_model} ({name} differs); load that one: read_original(path).build_gpt2()"
                )

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


def same_weights(identity: str, other: str) -> bool:
    """A folder's identity is NAME@DIGEST, and its name says nothing about what is in it; a published model is its
    name."""
    return identity.rpartition("@")[2] == other.rpartition("@")[2]


def as_trained(normalize: bool) -> str:
    """In words, what embeddings a mapper was trained on."""
    return "normalized to unit length" if normalize else "as the encoder gives them"


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
    if problem := unlike(mapper, state):
        raise CheckpointError(f"mapper file {path} does not match its own config: {problem}; export it again")
    if name := not_finite(state):
        raise CheckpointError(
            f"mapper file {path} cannot be used: {name} contains values that are not finite (NaN or infinity), as "
            "after a training run that diverged; train it again with a lower learning rate"
        )
    mapper.load_state_dict(dict(state), assign=True)
    return mapper.eval().requires_grad_(False)
