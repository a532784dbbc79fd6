"""Training of styles: mapping networks, and with them adapters or copies of the language model."""

from clipcap.training.data import CaptionedImages
from clipcap.training.errors import ForeignState, TrainingCanceled, TrainingError
from clipcap.training.loop import EpochEnd, Progress
from clipcap.training.machines import Machines
from clipcap.training.options import TrainingOptions, for_trainer
from clipcap.training.state import STATE
from clipcap.training.trainer import (
    TrainingResult,
    new_mapper,
    standardize,
    train_mapper,
    trainable,
)

__all__ = [
    "STATE",
    "CaptionedImages",
    "EpochEnd",
    "ForeignState",
    "Machines",
    "Progress",
    "TrainingCanceled",
    "TrainingError",
    "TrainingOptions",
    "TrainingResult",
    "for_trainer",
    "new_mapper",
    "standardize",
    "train_mapper",
    "trainable",
]
