"""A mapper in a safetensors file, whose header carries, as JSON, all that is needed to use it.

The header names the format, the mapper's config, the encoder and the LM it was trained for, and the SHA-256 of its
tensors. The file is written beside its place and then renamed, so nobody ever reads half of one.

A mapper alone is stored under its own names, as it always was. With language-model weights, each name says which part
it belongs to, and the format is another, which earlier versions refuse.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipcap.adapters import Adapters
from clipcap.checkpoint.base import CheckpointError, MapperCheckpoint, check_finite, filled_mapper
from clipcap.mapper import MapperConfig
from clipcap.tensor_file import HEADER, save_tensors, tensors_sha256

FORMAT = "clipcap-mapper-1"
FORMAT_OF_PARTS = "clipcap-model-1"
PARTS = ("mapper.", "adapters.", "language_model.")  # what the names in each begin with


def save_mapper(checkpoint: MapperCheckpoint, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write the mapper to `path` in one step: the file is the old one or the new one, never a part.

    Args:
        dtype: of mapper and adapters; language-model weights are stored in the type that the checkpoint has them in.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is then as it was.
    """
    tensors = {name: tensor.to(dtype) for name, tensor in checkpoint.mapper.state_dict().items()}
    adapters = checkpoint.adapters.weights if checkpoint.adapters else {}
    alone = not adapters and not checkpoint.weights
    if not alone:
        parts = (tensors, {name: tensor.to(dtype) for name, tensor in adapters.items()}, checkpoint.weights)
        tensors = {part + n: tensor for part, of in zip(PARTS, parts, strict=True) for n, tensor in of.items()}
    header = {
        "format": FORMAT if alone else FORMAT_OF_PARTS,
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
    adapters = None
    if header["format"] == FORMAT_OF_PARTS:
        if odd := sorted(name for name in tensors if not name.startswith(PARTS)):
            raise CheckpointError(
                f"mapper file {path} contains {odd[0]}, which belongs neither to a mapper nor to a language model; "
                f"export it again"
            )
        tensors, added, weights = (
            {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
            for part in PARTS
        )
        check_finite(added, path)
        check_finite(weights, path)
        try:
            adapters = Adapters({name: tensor.float() for name, tensor in added.items()}) if added else None
        except ValueError as error:
            raise CheckpointError(f"mapper file {path} is malformed: {error}; export it again") from error
    mapper = filled_mapper(config, {name: tensor.float() for name, tensor in tensors.items()}, path)
    if adapters:
        adapters.eval().requires_grad_(False)
    return MapperCheckpoint(mapper, encoder, language_model, notes, weights, adapters)
