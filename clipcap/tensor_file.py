"""Safetensors files that are written in one step and know the SHA-256 of what they hold."""

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

HEADER = "clipcap"  # the entry of the file's metadata that holds our JSON


def save_tensors(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, Any]) -> None:
    """Write tensors with a JSON header, which gets their digest as `sha256`; nobody ever reads half of the file.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is then as it was.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(descriptor)
    try:
        save_file(tensors, partial, metadata={HEADER: json.dumps({**header, "sha256": tensors_sha256(tensors)})})
        with Path(partial).open("rb") as stream:
            os.fsync(stream.fileno())
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except SafetensorError as error:  # what the library makes of a full disk
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error
    finally:
        Path(partial).unlink(missing_ok=True)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The hexadecimal SHA-256 of the tensors' names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().contiguous().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def unlike(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Where weights are not those that are wanted: the first name, with the shape that it should have and has; "" if
    they are."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in (wanted, found)]
    for name in sorted(shapes[0] | shapes[1]):
        should, has = (state.get(name, "absent") for state in shapes)
        if should != has:
            return f"{name} should be {should} and is {has}"
    return ""


def not_finite(state: Mapping[str, Tensor]) -> str:
    """The name of the first weights with a value that is NaN or infinite; "" if there are none."""
    return next((name for name, tensor in state.items() if not bool(tensor.isfinite().all())), "")
