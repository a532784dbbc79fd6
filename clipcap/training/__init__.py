"""Training of mapping networks, the language model frozen."""

from clipcap.training.data import CaptionedImages
from clipcap.training.errors import ForeignState, TrainingCanceled, TrainingError
from clipcap.training.options import TrainingOptions
from clipcap.training.state import STATE
from clipcap.training.trainer import EpochEnd, Progress, TrainingResult, new_mapper, standardize, train_mapper

__all__ = [
    "STATE",
    "CaptionedImages",
    "EpochEnd",
    "ForeignState",
    "Progress",
    "TrainingCanceled",
    "TrainingError",
    "TrainingOptions",
    "TrainingResult",
    "new_mapper",
    "standardize",
    "train_mapper",
]
