"""A CLIP model in a folder of small files: open_clip's two towers in 8 bits, of which the text tower may be missing.

    open_clip_config.json                         as open_clip has it, and perhaps `identity`, see `claimed_identity`
    open_clip_image-00001-of-00002.safetensors    the image tower, in as many files as git's hosts ask for
    open_clip_text.safetensors                    the text tower
    tokenizer.json, tokenizer_config.json         its tokenizer

Names of tensors are those of open_clip's `visual` and `text`. A tensor NAME of 8-bit integers stands for NAME times
NAME.scale, which is float32 and broadcasts over it: one scale a row, or one a column. Every other tensor
is what it is. Each file's header names the format and the SHA-256 of the file's tensors.
"""

import clipcap.torchvision_schemas  # noqa: F401 (before open_clip is imported)

# isort: split
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip import CustomTextCLIP
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from clipcap.tensor_file import HEADER, not_finite, save_tensors, tensors_sha256, unlike

FORMAT = "clipcap-clip-1"
CONFIG, TEXT = "open_clip_config.json", "open_clip_text.safetensors"
SCALE = ".scale"
LARGEST = 48_000_000  # bytes of a file's tensors
NO_TEXT = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}  # a text_cfg, which has to be
_SHARD = re.compile(r"open_clip_image-(\d{5})-of-(\d{5})\.safetensors")


class ClipFolderError(ValueError):
    """A folder that cannot be used; the message names the file, the cause and the remedy."""


def image_files(folder: Path) -> list[Path]:
    """The folder's files of an image tower in this format, in order; some may be missing."""
    return sorted(path for path in folder.iterdir() if _SHARD.fullmatch(path.name))


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's `open_clip_config.json`, of which `model_cfg` is certain to be there.

    Raises:
        ClipFolderError: it is missing, or no such file.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClipFolderError(f"{path} cannot be read ({error.strerror}); copy the complete folder again") from error
    except (ValueError, RecursionError) as error:
        raise ClipFolderError(
            f"{path} is damaged or not valid JSON ({error}); copy the complete folder again"
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise ClipFolderError(
            f"{path} has no model_cfg, so it does not describe a model; copy the complete folder again"
        )
    return config


def write_config(config: Mapping[str, Any], folder: Path) -> None:
    """Write `open_clip_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def claimed_identity(config: Mapping[str, Any]) -> str | None:
    """The published model (`ViT-B-16/openai`) whose image tower the folder's config says that it holds, None without.

    Whoever makes the folder claims it, because the weights are those of that model, however they are stored: then
    embeddings and mappers made with the one are good for the other.

    Raises:
        ClipFolderError: it is not a name.
    """
    claimed = config.get("identity")
    if claimed is not None and not (isinstance(claimed, str) and claimed.strip()):
        raise ClipFolderError(
            f"{CONFIG} has the identity {claimed!r}; write the name of a published model, as in ViT-B-16/openai, "
            f"or leave it out"
        )
    return claimed


def save_image_tower(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write an image tower, and remove the files of another.

    Args:
        state: `visual`'s tensors by name; those of 8-bit integers with their NAME.scale beside them.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        size += tensor.nbytes
        if size > LARGEST and parts[-1]:
            parts.append({})
            size = tensor.nbytes
        parts[-1][name] = tensor
    paths = [_shard(folder, number, len(parts)) for number in range(1, len(parts) + 1)]
    for part, path in zip(parts, paths, strict=True):
        save_tensors(part, path, {"format": FORMAT})
    for path in set(image_files(folder)) - set(paths):
        path.unlink()


def load_image_tower(folder: Path, config: Mapping[str, Any]) -> Any:
    """The image tower in float32 on the CPU, as open_clip has it: (B, 3, H, W) -> (B, E).

    Raises:
        ClipFolderError: a file is missing or damaged, or the files do not belong together.
    """
    stored: dict[str, Tensor] = {}
    for path in _complete(folder):
        tensors = _read(path)
        if again := stored.keys() & tensors.keys():
            raise ClipFolderError(f"{path} has {min(again)}, as an earlier file does; copy the complete folder again")
        stored |= tensors
    return _filled(_model(config).visual, _dequantised(stored, folder), folder)


def new_text_tower(config: Mapping[str, Any]) -> Any:
    """The text tower that `model_cfg` describes, its weights drawn at random: (N, T) token ids -> (N, E)."""
    return CustomTextCLIP(**_arguments(config) | {"vision_cfg": {"layers": 1, "width": 64}}).text


def save_text_tower(tower: nn.Module, folder: Path) -> None:
    """Write the text tower in one step: matrices in 8 bits with a scale a row, the rest in half precision.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in tower.state_dict().items():
        if tensor.ndim < 2:
            stored[name] = tensor.half()
            continue
        scale = tensor.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        stored |= {name: (tensor / scale).round().to(torch.int8), name + SCALE: scale}
    save_tensors(stored, folder / TEXT, {"format": FORMAT})


def load_text_tower(folder: Path, config: Mapping[str, Any]) -> Any:
    """The text tower in float32 on the CPU, see `new_text_tower`.

    Raises:
        ClipFolderError: its file is missing or damaged, or does not belong to the config.
    """
    tensors = _read(folder / TEXT)
    tower = _model(config).text
    if tower.attn_mask is not None:  # no weight, so it is in no file
        tower.attn_mask = tower.build_causal_mask()
    return _filled(tower, _dequantised(tensors, folder), folder)


def _shard(folder: Path, number: int, count: int) -> Path:
    return folder / f"open_clip_image-{number:05}-of-{count:05}.safetensors"


def _complete(folder: Path) -> list[Path]:
    """The files of the image tower, all that the first one's name tells of."""
    found = image_files(folder)
    count = int(found[0].stem[-5:]) if found else 1
    wanted = [_shard(folder, number, count) for number in range(1, count + 1)]
    if strangers := sorted(set(found) - set(wanted)):
        raise ClipFolderError(f"{strangers[0]} does not belong to {found[0].name}; copy the complete folder again")
    if missing := sorted(set(wanted) - set(found)):
        raise ClipFolderError(f"{missing[0]} is missing; copy the complete folder again")
    return wanted


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        raise ClipFolderError(f"{path} is missing; copy the complete folder again") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise ClipFolderError(f"{path} is damaged or truncated ({error}); copy it again") from error
    try:
        header = json.loads(metadata[HEADER])
        written_as, sha256 = header["format"], header["sha256"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ClipFolderError(
            f"{path} was not written by this project ({error!r}); create it with its recipe, or remove it"
        ) from error
    if written_as != FORMAT:
        raise ClipFolderError(
            f"{path} has format {written_as!r}, this version reads {FORMAT!r}; use the version that wrote it"
        )
    if tensors_sha256(tensors) != sha256:
        raise ClipFolderError(f"{path} is damaged: its tensors do not match their SHA-256; copy it again")
    return tensors


def _dequantised(stored: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    state = {}
    for name, tensor in stored.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in stored:
            continue
        if tensor.dtype != torch.int8:
            state[name] = tensor.float()
            continue
        scale = stored.get(name + SCALE)
        if (
            scale is None
            or scale.ndim != tensor.ndim
            or any(side not in (1, whole) for side, whole in zip(scale.shape, tensor.shape, strict=True))
        ):
            found = "is missing" if scale is None else f"has shape {tuple(scale.shape)}"
            raise ClipFolderError(
                f"{folder}: {name}{SCALE} {found}, so the 8-bit {name} of shape {tuple(tensor.shape)} cannot be read; "
                f"write the tower again"
            )
        state[name] = tensor * scale.float()
    return state


def _model(config: Mapping[str, Any]) -> Any:
    """The model as open_clip builds it, without memory: what a config asks for costs nothing until it is compared."""
    arguments = _arguments(config)
    try:
        with torch.device("meta"):
            return CustomTextCLIP(**arguments)
    except Exception as error:  # whatever open_clip and torch make of a config that is none
        cause = f"{type(error).__name__}: {error}"
        raise ClipFolderError(
            f"{CONFIG} does not describe a model that can be built ({cause}); copy it again"
        ) from error


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """What open_clip's model takes, so that it neither asks a hub nor fetches weights to begin with."""
    model = {name: value for name, value in config["model_cfg"].items() if name != "custom_text"}
    for half, other in (("text_cfg", "hf_model_name"), ("vision_cfg", "timm_model_name")):
        if not isinstance(model.get(half), dict) or other in model[half]:
            raise ClipFolderError(
                f"the {half} of {CONFIG} describes no tower of open_clip's own; store other models as open_clip does, "
                f"in one open_clip_model.safetensors"
            )
    return model


def _filled(tower: Any, state: Mapping[str, Tensor], folder: Path) -> Any:
    if problem := unlike(tower.state_dict(), state):
        raise ClipFolderError(
            f"the weights in {folder} are not those of its {CONFIG}: {problem}; copy the complete folder again"
        )
    if name := not_finite(state):
        raise ClipFolderError(
            f"{folder}: {name} contains values that are not finite (NaN or infinity); create the model again"
        )
    tower.load_state_dict(dict(state), assign=True)
    return tower.eval().requires_grad_(False)
