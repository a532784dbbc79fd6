"""The loop of every training: learning rates, steps, epochs, and the state that an interrupted run goes on from.

What is trained, and on what, is the task's affair: that of a style is in `clipcap.training.steps`, those of the models
that ship are in the recipes.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from clipcap.training.errors import TrainingCanceled, TrainingError
from clipcap.training.group import Group
from clipcap.training.options import Schedule
from clipcap.training.state import State, read_state, restore_state, save_state

B = TypeVar("B")


@dataclass(frozen=True)
class Progress:
    """One step's report. `validation_loss` is that of the last epoch's end; `samples_per_second` counts captions."""

    step: int
    steps: int
    epoch: int
    train_loss: float
    validation_loss: float | None
    learning_rate: float
    samples_per_second: float
    eta_seconds: float


@dataclass(frozen=True)
class EpochEnd:
    """What an epoch came to; `step` counts those done so far."""

    epoch: int
    step: int
    training_loss: float
    validation_loss: float


class Optimizer(Protocol):
    """What the loop asks of torch's optimizers; each of the groups has the `peak` of its learning rate."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters with their options."""

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def step(self) -> Any:
        """One step down the gradients."""

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


@dataclass(frozen=True)
class Computed:
    """A batch's mean loss, how many captions it has, and how much it counts in the mean of its epoch."""

    loss: float
    captions: int
    weight: int


class Task(Protocol[B]):
    """What is trained, and on what."""

    @property
    def identity(self) -> str:
        """A state file with another identity belongs to another run."""

    @property
    def optimizer(self) -> Optimizer:
        """It changes the weights that are trained."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """Those that are trained, by name."""

    @property
    def validated(self) -> dict[str, Tensor]:
        """What is validated, and kept when it is better than before: the same, or their running average."""

    def batches(self, epoch: int) -> Sequence[B]:
        """The batches of an epoch, the same ones at every call; every epoch has about as many."""

    def compute_gradients(self, batch: B, step: int) -> Computed:
        """Add the gradients of a batch's mean loss to the weights'."""

    def validate(self, on_batch: Callable[[], None]) -> float:
        """The loss on what is not trained on; `on_batch` is called before each of its batches and may raise."""

    def keep(self, loss: float) -> None:
        """Called in the first process of the group when what is validated is better than ever before."""


def train(
    task: Task[B],
    schedule: Schedule,
    state_path: Path,
    *,
    state_every: int,
    on_progress: Callable[[Progress], bool] = lambda progress: True,
    on_epoch: Callable[[EpochEnd], None] = lambda epoch: None,
) -> tuple[State, dict[str, Tensor]]:
    """Take the steps from the stored state, if there is one, to the last; together with the other processes, if this
    one belongs to a group: `on_progress` and `on_epoch` are called in the first.

    Args:
        state_path: a file that need not be there; a run that has ended leaves its last state in it.
        state_every: steps between two states that are stored, besides those of each epoch's end.
        on_progress: called after every step, and again while validating; a false answer cancels.

    Returns:
        The last state, and what was validated best.

    Raises:
        TrainingError: a loss is not a number.
        ForeignState: the file has the state of a different run.
        TrainingCanceled: a callback said so; call again with the same arguments to resume.
        OSError: the disk is full; the file has the last whole state.
    """
    group, optimizer, weights = Group(), task.optimizer, task.weights
    parameters = [parameter for each in optimizer.param_groups for parameter in each["params"]]
    steps = len(task.batches(0)) * schedule.epochs
    state, best = State(), _copied(task.validated)
    stored = group.first(lambda: read_state(state_path, task.identity) if state_path.exists() else None)
    if stored:
        state, best = restore_state(stored, weights)
        optimizer.load_state_dict(stored["optimizer"])
    started, first_step, samples, last_loss = time.monotonic(), state.step, 0, 0.0

    def save() -> None:
        group.first(lambda: save_state(state_path, task.identity, state, weights, optimizer.state_dict(), best))

    def go_on_or_stop() -> None:
        elapsed = max(time.monotonic() - started, 1e-9)
        progress = Progress(
            step=state.step,
            steps=steps,
            epoch=state.epoch,
            train_loss=last_loss,
            validation_loss=state.history[-1][1] if state.history else None,
            learning_rate=schedule.learning_rate * _rate(max(0, state.step - 1), steps, schedule),
            samples_per_second=samples / elapsed,
            eta_seconds=elapsed / max(1, state.step - first_step) * (steps - state.step),
        )
        if not group.first(lambda: on_progress(progress)):
            save()
            raise TrainingCanceled(f"canceled at step {state.step} of {steps}; call again to resume")

    while state.epoch < schedule.epochs and state.bad_epochs < schedule.patience:
        batches = task.batches(state.epoch)
        while state.batch < len(batches):
            for each in optimizer.param_groups:
                each["lr"] = each["peak"] * _rate(state.step, steps, schedule)
            optimizer.zero_grad()
            computed = task.compute_gradients(batches[state.batch], state.step)
            last_loss = computed.loss
            if not math.isfinite(last_loss):
                raise TrainingError(f"the loss is not a number at step {state.step}; lower the learning rate")
            nn.utils.clip_grad_norm_(parameters, schedule.clip)
            optimizer.step()
            state.step, state.batch = state.step + 1, state.batch + 1
            state.epoch_loss += last_loss * computed.weight
            state.epoch_tokens += computed.weight
            samples += computed.captions
            go_on_or_stop()
            if state.step % state_every == 0:
                save()
        loss = task.validate(go_on_or_stop)
        if not math.isfinite(loss):
            raise TrainingError(f"the validation loss is not a number at step {state.step}; lower the learning rate")
        state.history.append((state.epoch_loss / state.epoch_tokens, loss))
        state.epoch, state.batch, state.epoch_loss, state.epoch_tokens = state.epoch + 1, 0, 0.0, 0
        if loss < state.best:
            state.best, state.bad_epochs = loss, 0
            best = _copied(task.validated)
            group.first(lambda: task.keep(state.best))
        else:
            state.bad_epochs += 1
        group.first(lambda: on_epoch(EpochEnd(state.epoch, state.step, *state.history[-1])))
        save()
    return state, best


def _copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}


def _rate(step: int, steps: int, schedule: Schedule) -> float:
    """The learning rate of a step, as a share of its peak: a linear warm-up, then a cosine to nothing."""
    warmup = max(1, round(steps * schedule.warmup))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
