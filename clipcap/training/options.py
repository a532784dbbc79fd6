"""How a style is trained."""

import math
from dataclasses import dataclass
from typing import Literal

from clipcap.options import MOST_CAPTIONS, TrainingChoices
from clipcap.training.errors import TrainingError

AUTOMATIC_EPOCHS = 30  # at most; early stopping ends sooner
LEAST_CAPTIONS = 4  # of an automatic batch: smaller ones differ too much from one another
LEAST_STEPS = 10  # of an epoch: with one step each, training ends long before a style is learned from 20 captions


@dataclass(frozen=True)
class Schedule:
    """What the loop of a training needs to know; `TrainingOptions` says what each means."""

    epochs: int
    learning_rate: float
    warmup: float
    clip: float
    patience: int


@dataclass(frozen=True)
class TrainingOptions:
    """How a style is trained.

    epochs: at most; early stopping may end sooner.
    batch_size: captions a step; fewer of those that are far longer than captions are, so that memory does not depend
        on what a tokenizer makes of a script.
    accumulation: parts that a step is computed in, one after the other, whose gradients are added up: less memory, the
        same step but for rounding.
    recompute: whether a step keeps only what goes into the language model's layers and computes the rest again when it
        is needed (gradient checkpointing): less memory, the same step to the last bit.
    learning_rate: the mapper's peak, reached after `warmup` (a share of all steps) and then decayed to nothing by a
        cosine.
    language_model_learning_rate: the same of adapters or a language model that are trained along; None is 0.0005 for
        adapters, and for a language model the paper's 0.00002.
    weight_decay, clip: of AdamW, and of the gradient's norm.
    patience: epochs without a better validation loss before the run ends.
    noise: standard deviation of the noise added to training embeddings, in units of each dimension's own deviation.
    precision: float32, bfloat16 (autocast), or auto: bfloat16 where the hardware multiplies it.
    seed: of the weights' initialisation, the order of batches, views and noise.
    """

    epochs: int = 10
    batch_size: int = 40
    accumulation: int = 1
    recompute: bool = False
    learning_rate: float = 1e-3
    language_model_learning_rate: float | None = None
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    patience: int = 3
    noise: float = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation", "patience"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "language_model_learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise TrainingError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise TrainingError(f"warmup is a share of all steps, from 0 to below 1, not {self.warmup}")
        if self.weight_decay < 0 or self.noise < 0:
            raise TrainingError("weight_decay and noise cannot be negative")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise TrainingError(f"precision must be auto, float32 or bfloat16, not {self.precision!r}")

    @property
    def schedule(self) -> Schedule:
        """The part of the loop."""
        return Schedule(self.epochs, self.learning_rate, self.warmup, self.clip, self.patience)


def for_trainer(choices: TrainingChoices, *, captions: int, further: bool, short: bool = False) -> TrainingOptions:
    """The trainer's options, with what is automatic decided.

    Args:
        captions: how many are trained on.
        further: whether the mapper has been trained before; it then takes a lower learning rate.
        short: whether memory would not suffice for keeping all that a step computes.
    """
    return TrainingOptions(
        epochs=choices.epochs or AUTOMATIC_EPOCHS,
        batch_size=choices.batch_size or max(LEAST_CAPTIONS, min(MOST_CAPTIONS, captions // LEAST_STEPS)),
        accumulation=choices.accumulation,
        recompute=choices.recompute == "yes" or (choices.recompute is None and short),
        learning_rate=choices.learning_rate or (3e-4 if further else 1e-3),
        language_model_learning_rate=choices.language_model_learning_rate,
        noise=choices.noise,
        seed=choices.seed,
    )
