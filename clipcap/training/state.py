"""What an interrupted run goes on from: one file, written in one step."""

import dataclasses
import hashlib
import io
import math
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipcap.model import ClipCaptionModel
from clipcap.training.data import CaptionedImages
from clipcap.training.errors import ForeignState
from clipcap.training.options import TrainingOptions

STATE = "state.pt"  # in a run's folder


@dataclass
class State:
    """What resuming needs besides the weights; all of it goes into the state file."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    epoch_loss: float = 0.0
    epoch_tokens: int = 0
    bad_epochs: int = 0
    best: float = math.inf
    history: list[tuple[float, float]] = field(default_factory=list)


def run_identity(
    model: ClipCaptionModel, options: TrainingOptions, models: tuple[str, str], *parts: CaptionedImages
) -> str:
    """What a state file and a run must agree on to belong together.

    Args:
        models: the identities of the language model and the encoder.
        parts: the training and the validation set.
    """
    trained = [(name, tuple(weights.shape)) for name, weights in trained_weights(model).items()]
    options = dataclasses.replace(options, recompute=False)  # which changes no result
    described = (model.mapper.config, trained, options, *models)
    digest = hashlib.sha256(repr(described).encode())
    for part in parts:
        for name, captions in zip(part.names, part.captions, strict=True):
            digest.update(repr((name, list(captions))).encode())
        digest.update(part.embeddings.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def trained_weights(model: ClipCaptionModel) -> dict[str, Tensor]:
    """A model's weights that require a gradient, by name."""
    return {name: weights.data for name, weights in model.weights.named_parameters() if weights.requires_grad}


def save_state(
    path: Path,
    run: str,
    state: State,
    weights: dict[str, Tensor],
    optimizer: dict[str, Any],
    best: dict[str, Tensor],
) -> None:
    """Write a run's state and weights to `path`, in one file that is there whole or not at all.

    Args:
        weights: those that are trained.
        optimizer: its `state_dict()`.
        best: those that were best so far.
    """
    stored = {
        "run": run,
        "state": dataclasses.asdict(state),
        "weights": weights,
        "optimizer": optimizer,
        "best": best,
    }
    buffer = io.BytesIO()
    torch.save(stored, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(buffer.getbuffer())
            stream.flush()
            os.fsync(stream.fileno())
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)


def read_state(path: Path, run: str) -> dict[str, Any]:
    """A stored state of this very run.

    Raises:
        ForeignState: it is another run's, or damaged.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ForeignState(f"{path} cannot be read ({error}); delete it to restart the run") from error
    if not isinstance(stored, dict) or not {"run", "state", "weights", "optimizer", "best"} <= stored.keys():
        raise ForeignState(
            f"{path} is not the state of a training run; choose another folder, or delete it to start over"
        )
    if stored["run"] != run:
        raise ForeignState(
            f"{path} belongs to a run with other options or examples; choose another folder, or delete it to start over"
        )
    return stored


def restore_state(stored: dict[str, Any], weights: dict[str, Tensor]) -> tuple[State, dict[str, Tensor]]:
    """Put a stored state's weights in place.

    Returns:
        The rest of the state, and the best weights so far.
    """
    for name, tensor in weights.items():
        tensor.copy_(stored["weights"][name])
    state = State(**stored["state"])
    state.history = [(training, validation) for training, validation in state.history]
    return state, stored["best"]
