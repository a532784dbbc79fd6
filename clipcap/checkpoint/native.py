"""A mapper in a safetensors file, whose header carries, as JSON, all that is needed to use it.

The header names the format, the mapper's config, the encoder and the LM it was trained for, and the SHA-256 of its
tensors. The file is written beside its place and then renamed, so nobody ever reads half of one.

A mapper alone is stored under its own names, as it always was. With language-model weights, each name says which part
it belongs to, and the format is another, which earlier versions refuse.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipcap.checkpoint.base import CheckpointError, MapperCheckpoint, check_finite, filled_mapper
from clipcap.mapper import MapperConfig
from clipcap.tensor_file import HEADER, save_tensors, tensors_sha256

FORMAT = "clipcap-mapper-1"
FORMAT_OF_PARTS = "clipcap-model-1"
MAPPER, LANGUAGE_MODEL = "mapper.", "language_model."  # what the names of each part begin with


def save_mapper(checkpoint: MapperCheckpoint, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write the mapper to `path` in one step: the file is the old one or the new one, never a part.

    Args:
        dtype: of the mapper; language-model weights are stored in the type that the checkpoint has them in.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is then as it was.
    """
    tensors = {name: tensor.to(dtype) for name, tensor in checkpoint.mapper.state_dict().items()}
    if checkpoint.weights:
        tensors = _named(MAPPER, tensors) | _named(LANGUAGE_MODEL, checkpoint.weights)
    header = {
        "format": FORMAT_OF_PARTS if checkpoint.weights else FORMAT,
        "config": asdict(checkpoint.mapper.config),
        "encoder": checkpoint.encoder,
        "language_model": checkpoint.language_model,
        "notes": checkpoint.notes,
    }
    save_tensors(tensors, path, header)


def read_native(path: Path) -> MapperCheckpoint:
    """Read what `save_mapper` wrote.

    Raises:
        CheckpointError: the file is damaged, cut short, or something else than a mapper.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"mapper file {path} is damaged, truncated or not a safetensors file ({error}); copy it again"
        ) from error
    try:
        header = json.loads(metadata[HEADER])
        if header["format"] not in (FORMAT, FORMAT_OF_PARTS):
            raise CheckpointError(
                f"mapper file {path} has format {header['format']!r}, this version reads {FORMAT!r} and "
                f"{FORMAT_OF_PARTS!r}; use the version that wrote it, or export it again"
            )
        config = MapperConfig(**header["config"])
        encoder, language_model, notes, sha256 = (header[k] for k in ("encoder", "language_model", "notes", "sha256"))
        if not isinstance(notes, dict):
            raise TypeError(f"notes are {notes!r}")
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is a safetensors file but not a mapper written by this project ({error!r}); "
            f"choose a file that save_mapper or the trainer wrote"
        ) from error
    if any(not tensor.is_floating_point() for tensor in tensors.values()):
        raise CheckpointError(f"mapper file {path} contains something other than weights; export it again")
    if tensors_sha256(tensors) != sha256:
        raise CheckpointError(f"mapper file {path} is damaged: its weights do not match their SHA-256; copy it again")
    weights: dict[str, Tensor] = {}
    if header["format"] == FORMAT_OF_PARTS:
        tensors, weights, others = _parts(tensors)
        if others or not weights:
            raise CheckpointError(
                f"mapper file {path} should contain a mapper and language-model weights, and contains "
                f"{others[0] if others else 'only a mapper'}; export it again"
            )
        check_finite(weights, path)
    mapper = filled_mapper(config, {name: tensor.float() for name, tensor in tensors.items()}, path)
    return MapperCheckpoint(mapper, encoder, language_model, notes, weights)


def _named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {part + name: tensor for name, tensor in tensors.items()}


def _parts(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """The mapper's tensors, the language model's, and the names of what is neither."""
    found = [
        {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
        for part in (MAPPER, LANGUAGE_MODEL)
    ]
    return found[0], found[1], [name for name in tensors if not name.startswith((MAPPER, LANGUAGE_MODEL))]
