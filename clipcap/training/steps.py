"""The steps of a training: gradients, learning rates, epochs, and the state that an interrupted run goes on from."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipcap.adapters import Adapters, Mixture
from clipcap.checkpoint import MapperCheckpoint, save_mapper
from clipcap.device import autocast
from clipcap.language_model import LanguageModel
from clipcap.model import ClipCaptionModel
from clipcap.training.data import Row, batches_of, count_tokens, draw_embeddings
from clipcap.training.errors import TrainingCanceled, TrainingError
from clipcap.training.group import Group
from clipcap.training.loss import caption_loss, validation_loss
from clipcap.training.options import TrainingOptions
from clipcap.training.recomputing import recomputed
from clipcap.training.state import STATE, State, read_state, restore_state, save_state, trained_weights

ADAPTERS_RATE, FINE_TUNING_RATE = 5e-4, 2e-5  # peaks of the learning rate; the second is the paper's


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


@dataclass(frozen=True, eq=False)
class TrainingSetup:
    """What the steps need: models, tokenized data, options, and the folder of state and checkpoint.

    run: the identity of this run, which its state carries (`run_identity`).
    training, validation: (N, A, E) embeddings; `rows` and `checked` are their captions.
    """

    run: str
    model: ClipCaptionModel
    lm: LanguageModel
    encoder_identity: str
    training: Tensor
    validation: Tensor
    rows: list[Row]
    checked: list[Row]
    options: TrainingOptions
    folder: Path
    state_every: int

    @property
    def speaker(self) -> LanguageModel:
        """The language model that writes its captions."""
        return self.model.language_model or self.lm

    @property
    def best_path(self) -> Path:
        """Of the best mapper so far."""
        return self.folder / "mapper.safetensors"

    def checkpoint(self, loss: float) -> MapperCheckpoint:
        """The model as it is now, with its validation loss."""
        notes = {"validation_loss": loss}
        return MapperCheckpoint.of(self.model, self.encoder_identity, self.lm.identity, notes)


def take_steps(
    job: TrainingSetup, on_progress: Callable[[Progress], bool], on_epoch: Callable[[EpochEnd], None]
) -> tuple[State, dict[str, Tensor]]:
    """Train from the stored state, if there is one, to the end; together with the other processes, if this one belongs
    to a group: `on_progress` and `on_epoch` are called in the first.

    Returns:
        The last state, and the best weights by validation loss.

    Raises:
        As `train_mapper`.
    """
    group, options, model, speaker = Group(), job.options, job.model, job.speaker
    mapper, device = model.mapper, job.lm.device
    model.weights.to(device)
    mapper.train().requires_grad_(True)
    weights = trained_weights(model)
    optimizer = torch.optim.AdamW(_peaks(model, options), weight_decay=options.weight_decay)
    parameters = [parameter for each in optimizer.param_groups for parameter in each["params"]]
    deviation = job.training[:, 0].std(0, unbiased=False)
    per_epoch = len(batches_of(job.rows, options, epoch=0))
    steps = per_epoch * options.epochs
    state = State()
    state_path = job.folder / STATE
    best_weights = _copied(weights)
    stored = group.first(lambda: read_state(state_path, job.run) if state_path.exists() else None)
    if stored:
        state, best_weights = restore_state(stored, weights, optimizer)
    computed = autocast(device, options.precision)
    losses = group.wrapped(_Losses(model, speaker, computed))
    started, first_step, samples, last_loss = time.monotonic(), state.step, 0, 0.0

    def save() -> None:
        group.first(lambda: save_state(state_path, job.run, state, weights, optimizer, best_weights))

    def go_on_or_stop() -> None:
        elapsed = max(time.monotonic() - started, 1e-9)
        progress = Progress(
            step=state.step,
            steps=steps,
            epoch=state.epoch,
            train_loss=last_loss,
            validation_loss=state.history[-1][1] if state.history else None,
            learning_rate=options.learning_rate * _schedule(max(0, state.step - 1), steps, options),
            samples_per_second=samples / elapsed,
            eta_seconds=elapsed / max(1, state.step - first_step) * (steps - state.step),
        )
        if not group.first(lambda: on_progress(progress)):
            save()
            raise TrainingCanceled(f"canceled at step {state.step} of {steps}; call again to resume")

    while state.epoch < options.epochs and state.bad_epochs < options.patience:
        batches = batches_of(job.rows, options, state.epoch)
        while state.batch < len(batches):
            batch = batches[state.batch]
            for each in optimizer.param_groups:
                each["lr"] = each["peak"] * _schedule(state.step, steps, options)
            embeddings = draw_embeddings(job.training, batch, deviation, options, state.step)
            optimizer.zero_grad(set_to_none=True)
            loss = 0.0
            parts = _parts(batch, options.accumulation, group)
            for number, (part, share) in enumerate(parts, start=1):
                captions = [captions for _, captions in batch[part]]
                with (
                    _adapted(speaker, model.adapters),
                    recomputed(speaker) if options.recompute else nullcontext(),
                    group.apart(losses, really=number < len(parts)),
                ):
                    part_loss = losses(embeddings[part], captions)
                    (part_loss * share * group.size).backward()  # of which the group takes the mean
                loss += part_loss.item() * share
            (last_loss,) = group.total([loss], device)
            if not math.isfinite(last_loss):
                raise TrainingError(f"the loss is not a number at step {state.step}; lower the learning rate")
            nn.utils.clip_grad_norm_(parameters, options.clip)
            optimizer.step()
            state.step, state.batch = state.step + 1, state.batch + 1
            tokens = count_tokens(batch)
            state.epoch_loss += last_loss * tokens
            state.epoch_tokens += tokens
            samples += sum(len(captions) for _, captions in batch)
            go_on_or_stop()
            if state.step % job.state_every == 0:
                save()
        with _adapted(speaker, model.adapters):
            loss_now = validation_loss(
                mapper, speaker, job.validation, job.checked, options, computed, group, go_on_or_stop
            )
        if not math.isfinite(loss_now):
            raise TrainingError(f"the validation loss is not a number at step {state.step}; lower the learning rate")
        state.history.append((state.epoch_loss / state.epoch_tokens, loss_now))
        state.epoch, state.batch, state.epoch_loss, state.epoch_tokens = state.epoch + 1, 0, 0.0, 0
        if loss_now < state.best:
            state.best, state.bad_epochs = loss_now, 0
            best_weights = _copied(weights)
            group.first(partial(save_mapper, job.checkpoint(loss_now), job.best_path))
        else:
            state.bad_epochs += 1
        group.first(partial(on_epoch, EpochEnd(state.epoch, state.step, *state.history[-1])))
        save()
    return state, best_weights


class _Losses(nn.Module):
    """The loss of some rows as a module, which is what a group wraps."""

    def __init__(self, model: ClipCaptionModel, speaker: LanguageModel, computed: AbstractContextManager[Any]) -> None:
        super().__init__()
        self.weights = model.weights
        self.mapper, self.speaker, self.computed = model.mapper, speaker, computed

    def forward(self, embeddings: Tensor, captions: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        with self.computed:
            return caption_loss(self.mapper, self.speaker, embeddings, captions, self.speaker.end_id)


def _parts(batch: list[Row], accumulation: int, group: Group) -> list[tuple[slice, float]]:
    """The rows of a batch that this process computes, part by part, each with its share of the batch's loss."""
    size, tokens = math.ceil(len(batch) / (accumulation * group.size)), count_tokens(batch)
    parts = [slice(first, first + size) for first in range(0, len(batch), size)]
    mine = [(part, count_tokens(batch[part]) / tokens) for part in parts[group.rank :: group.size]]
    return mine or [(slice(0, 1), 0.0)]  # the others wait for gradients, if only for zeros


def _peaks(model: ClipCaptionModel, options: TrainingOptions) -> list[dict[str, Any]]:
    """What the optimizer trains, with the peaks of its learning rates."""
    named = [(name, weights) for name, weights in model.weights.named_parameters() if weights.requires_grad]
    groups = [{"params": [w for name, w in named if name.startswith("mapper.")], "peak": options.learning_rate}]
    for part, automatic in (("adapters.", ADAPTERS_RATE), ("language_model.", FINE_TUNING_RATE)):
        if trained := [weights for name, weights in named if name.startswith(part)]:
            groups.append({"params": trained, "peak": options.language_model_learning_rate or automatic})
    return groups


def _adapted(lm: LanguageModel, adapters: Adapters | None) -> AbstractContextManager[None]:
    return Mixture(lm, [adapters]).applied() if adapters else nullcontext()


def _copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}


def _schedule(step: int, steps: int, options: TrainingOptions) -> float:
    """The learning rate of a step, as a share of its peak."""
    warmup = max(1, round(steps * options.warmup))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
