"""The `.pt` files of the authors' code, CLIP_prefix_caption, never unpickled beyond tensors."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch
from torch import Tensor

from clipcap.checkpoint.base import CheckpointError, as_trained, filled_mapper
from clipcap.mapper import Mapper, MapperConfig

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

log = logging.getLogger(__name__)

MASKS = (".attn.bias", ".attn.masked_bias")  # of older versions of transformers, beside GPT-2's weights


def is_original(path: Path) -> bool:
    """Whether a mapper's file is in the authors' format and not in ours.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(16)
    except OSError as error:
        raise CheckpointError(f"mapper file {path} cannot be read ({error.strerror}); check the path") from error
    # What torch.save writes: a zip, once a bare pickle. A safetensors file begins with a number, which may look like
    # that, and goes on with JSON.
    return start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:9] != b"{")


@dataclass(frozen=True)
class OriginalCheckpoint:
    """What a `.pt` file of the authors' code holds: a mapper and the GPT-2 it was trained with.

    Where GPT-2 was fine-tuned along, `gpt2` differs from the published one and the mapper is of no use without it;
    where it was frozen the two are the same. It is empty if the file holds only the mapper.
    """

    mapper: Mapper
    gpt2: dict[str, Tensor]

    @property
    def weights(self) -> dict[str, Tensor]:
        """Those of `gpt2` by their names in transformers, each once: no causal masks, and where the last layer is the
        first, as in every GPT-2, the first."""
        found = {name: tensor for name, tensor in self.gpt2.items() if not name.endswith(MASKS)}
        first, last = found.get("transformer.wte.weight"), found.get("lm_head.weight")
        if first is not None and last is not None and torch.equal(first, last):
            del found["lm_head.weight"]
        return found

    def build_gpt2(self, *, heads: int | None = None, end_id: int | None = None) -> GPT2LMHeadModel:
        """GPT-2 with the weights of the file.

        Args:
            heads: attention heads, which shapes do not show; 64 wide each, as in every published GPT-2, unless given.
            end_id: the end-of-text token; the last one of the vocabulary, as published, unless given.

        Raises:
            CheckpointError: the file holds no GPT-2, or not a whole one.
        """
        if not self.gpt2:
            raise CheckpointError("the file holds only a mapper; load the language model it was trained with by name")
        import clipcap.torchvision_schemas  # noqa: F401 (before transformers, which takes long and is wanted here alone)

        # isort: split
        from transformers import GPT2Config, GPT2LMHeadModel

        try:
            vocabulary, size = self.gpt2["transformer.wte.weight"].shape
            length = len(self.gpt2["transformer.wpe.weight"])
        except KeyError as error:
            raise CheckpointError(f"the GPT-2 inside the file lacks {error}; export the checkpoint again") from error
        layers = 1 + max(
            (int(m[1]) for name in self.gpt2 if (m := re.match(r"transformer\.h\.(\d+)\.", name))), default=-1
        )
        end = vocabulary - 1 if end_id is None else end_id
        config = GPT2Config(
            vocab_size=vocabulary,
            n_positions=length,
            n_embd=size,
            n_layer=layers,
            n_head=heads or max(1, size // 64),
            bos_token_id=end,
            eos_token_id=end,
        )
        model = GPT2LMHeadModel(config)
        state = {n: t for n, t in self.gpt2.items() if not n.endswith(MASKS)}
        try:
            model.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise CheckpointError(
                f"the GPT-2 inside the file is incomplete: {str(error).splitlines()[1].strip()}"
            ) from error
        model.eval()
        return model


def gpt2_sizes(weights: Mapping[str, Tensor]) -> str:
    """In words, what GPT-2 these weights are of, by their shapes; "" where they are of none."""
    if "transformer.wte.weight" not in weights:
        return ""
    vocabulary, size = weights["transformer.wte.weight"].shape
    layers = len({m[1] for name in weights if (m := re.match(r"transformer\.h\.(\d+)\.", name))})
    known = _PUBLISHED.get((layers, size))
    return f"a GPT-2 of {layers} layers of size {size} and {vocabulary:,} tokens{f', such as {known}' if known else ''}"


_PUBLISHED = {(6, 768): "distilgpt2", (12, 768): "gpt2", (24, 1024): "gpt2-medium"}
_PUBLISHED |= {(36, 1280): "gpt2-large", (48, 1600): "gpt2-xl"}
# The authors' names on the left, ours on the right.
_ORIGINAL_NAMES = {
    "model.0": "hidden",
    "model.2": "out",
    "linear": "linear",
    "prefix_const": "constant",
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.to_queries": "queries",
    "attn.to_keys_values": "keys_values",
    "attn.project": "merge",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
}
_ORIGINAL_HEADS = 8  # fixed in the authors' code, and not to be read from shapes


def read_original(
    path: Path, *, normalize: bool | None = None, heads: int | None = None, lm_size: int | None = None
) -> OriginalCheckpoint:
    """Read a checkpoint of the authors' code, inferring every size from the shapes.

    Args:
        path: a `.pt` file: a state dict with `clip_project.*` and, usually, `gpt.*`. It may be one entry of what the
            file holds (`{"state_dict": ...}`), and its names may begin with what a trainer or a wrapper puts in front
            (`module.`, `model.`).
        normalize: whether it was trained with the authors' --normalize_prefix, which the file does not say. Unless
            given it is guessed, with a warning: yes for a Transformer, no for an MLP, as in the weights that the
            authors published.
        heads: of the mapping Transformer, which shapes do not show; the authors' code has 8.
        lm_size: D, which the shapes of an MLP do not show where the file has no `gpt.*`; then it is this one if that
            divides the MLP's outputs, otherwise that of the smallest published GPT-2 that does.

    Raises:
        CheckpointError: the file is missing, damaged or no such checkpoint.
    """
    try:
        with path.open("rb") as stream:  # by its content: given a path, torch goes by the file's name
            _refuse_bomb(stream, path)
            state = torch.load(stream, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({error.strerror or error}); check the path"
        ) from error
    except Exception as error:  # pickle, zip and torch each have their own
        raise CheckpointError(
            f"checkpoint {path} is damaged or truncated, or contains something other than tensors; "
            f"it is not unpickled further ({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
            f"save it with torch.save(model.state_dict(), path)"
        ) from error
    state = _state_dict(state, path)
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_complex():
            raise CheckpointError(
                f"checkpoint {path} contains something other than plain weights: {name}; export it again"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"checkpoint {path} is malformed: {name} is larger than its stored data; "
                f"save it with torch.save(model.state_dict(), path)"
            )
    mapper_state = {
        n.removeprefix("clip_project."): t.float() for n, t in state.items() if n.startswith("clip_project.")
    }
    gpt2 = {n.removeprefix("gpt."): t.float() for n, t in state.items() if n.startswith("gpt.")}
    try:
        config = _original_config(mapper_state, gpt2, normalize, heads or _ORIGINAL_HEADS, lm_size)
    except (KeyError, ValueError, IndexError, ArithmeticError) as error:
        raise CheckpointError(
            f"checkpoint {path} holds no mapping network of the authors' ClipCap code that could be made out "
            f"({error}); its tensors begin with {sorted(state)[:3]}"
        ) from error
    if normalize is None:
        log.warning(
            "%s does not record whether it was trained on embeddings divided by their norm; it is taken for trained on "
            "embeddings %s, as the authors' own %s are; if that is wrong, pass normalize=%s",
            path.name,
            as_trained(config.normalize),
            "MLPs" if config.kind == "mlp" else "Transformers",
            not config.normalize,
        )
    return OriginalCheckpoint(filled_mapper(config, {_our_name(n): t for n, t in mapper_state.items()}, path), gpt2)


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """The authors' module's tensors by their names, wherever in what the file holds they are.

    Raises:
        CheckpointError: there are none, or several modules'.
    """
    modules = []
    for part in [content, *content.values()] if isinstance(content, dict) else []:
        names = [name for name in part if isinstance(name, str)] if isinstance(part, dict) else []
        fronts = {match[1] for name in names if (match := re.match(r"((?:.*?\.)?)clip_project\.", name))}
        modules += [{n.removeprefix(front): part[n] for n in names if n.startswith(front)} for front in fronts]
    if len(modules) != 1:
        raise CheckpointError(
            f"checkpoint {path} holds {len(modules) or 'no'} mapping network{'s' if modules else ''} of the authors' "
            f"ClipCap code (clip_project.*), and one is needed; save it with torch.save(model.state_dict(), path)"
        )
    (module,) = modules
    if not all(isinstance(tensor, Tensor) for tensor in module.values()):
        raise CheckpointError(
            f"checkpoint {path} is not a state dict of the authors' ClipCap code; export model.state_dict()"
        )
    return module


def _refuse_bomb(stream: BinaryIO, path: Path) -> None:
    """A zip that is larger when unpacked is none of torch's, which stores tensors as they are."""
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:
            raise CheckpointError(
                f"checkpoint {path} is compressed, as torch.save never does ({unpacked:,} bytes unpacked); "
                f"save it with torch.save(model.state_dict(), path)"
            )
    stream.seek(0)


def _original_config(
    state: Mapping[str, Tensor], gpt2: Mapping[str, Tensor], normalize: bool | None, heads: int, wanted: int | None
) -> MapperConfig:
    if "prefix_const" in state:
        prefix_length, lm_size = state["prefix_const"].shape
        out, embedding_size = state["linear.weight"].shape
        layers = 1 + max(int(n.split(".")[2]) for n in state if n.startswith("transformer.layers."))
        return MapperConfig(
            "transformer",
            embedding_size=embedding_size,
            lm_size=lm_size,
            prefix_length=prefix_length,
            normalize=True if normalize is None else normalize,
            clip_length=out // lm_size,
            layers=layers,
            heads=heads,
            mlp_ratio=len(state["transformer.layers.0.mlp.fc1.weight"]) / lm_size,
            stop_text=".",
        )
    hidden, embedding_size = state["model.0.weight"].shape
    out = len(state["model.2.weight"])
    if "transformer.wte.weight" in gpt2:
        lm_size = gpt2["transformer.wte.weight"].shape[1]
    else:
        lm_size = next((size for size in (wanted or out + 1, 768, 1024, 1280, 1600) if out % size == 0), 0)
        if not lm_size:
            raise ValueError(f"the MLP's {out} outputs do not match any GPT-2, and the file contains none")
    return MapperConfig(
        "mlp",
        embedding_size=embedding_size,
        lm_size=lm_size,
        prefix_length=out // lm_size,
        normalize=False if normalize is None else normalize,
        hidden_size=hidden,
        stop_text=".",
    )


def _our_name(original: str) -> str:
    match = re.fullmatch(r"(?:transformer\.layers\.(\d+)\.)?(.+?)(?:\.(weight|bias))?", original)
    if match is None:
        return original
    layer, part, kind = match.groups()
    name = _ORIGINAL_NAMES.get(part, part)
    return (f"blocks.{layer}." if layer else "") + name + (f".{kind}" if kind else "")
