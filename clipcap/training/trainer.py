"""Trains one style (ClipCap, sections 3.2 and 3.3) on cached embeddings: a mapping network, and with it nothing else,
adapters of the language model, or a copy of it. The loaded language model is never trained.

What is not in the paper: the captions of an image stand behind one prefix (`clipcap.training.packing`), batches are
made of rows of like length, the loss is masked by length and never by token id, and a caption's end is the LM's
end-of-text token. A run can be canceled at any step and resumed from its folder; in float32 it then ends with the same
bytes as one that was never interrupted.

Legend: N images, E size of a CLIP embedding.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipcap.adapters import Adapters, Mixture
from clipcap.checkpoint import MapperCheckpoint, save_mapper
from clipcap.device import autocast
from clipcap.language_model import LanguageModel
from clipcap.mapper import Mapper, MapperConfig, build_mapper
from clipcap.model import ClipCaptionModel
from clipcap.options import TrainingChoices
from clipcap.training.data import CaptionedImages, Row, batches_of, draw_embeddings, tokenized_rows
from clipcap.training.errors import TrainingCanceled, TrainingError
from clipcap.training.loss import caption_loss, validation_loss
from clipcap.training.options import TrainingOptions
from clipcap.training.state import STATE, State, restore_state, run_identity, save_state, trained_weights

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


@dataclass(frozen=True)
class TrainingResult:
    """`model` is the best one by validation loss, as stored in `path`; `history` has (training, validation) loss by
    epoch; `left_out` counts the captions that could not be trained, by reason."""

    model: ClipCaptionModel
    path: Path
    best_validation_loss: float
    history: list[tuple[float, float]]
    trainable_parameters: int
    left_out: dict[str, int]


def new_mapper(config: MapperConfig, images: CaptionedImages, seed: int) -> Mapper:
    """A mapper to start from, scaled for these images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mapper = build_mapper(config)
    standardize(mapper, images.embeddings[:, 0].float())
    return mapper


def trainable(
    model: ClipCaptionModel, lm: LanguageModel, choices: TrainingChoices, *, further: bool
) -> ClipCaptionModel:
    """The model that is to be trained: with adapters, or a copy of the language model, where they are chosen and it has
    none yet, and with the gradients that its training needs.

    Args:
        model: a new mapper, or what an earlier training made, for nobody else to use meanwhile.
        further: whether it has been trained before.
    """
    before = "finetuned" if model.language_model else "adapters" if model.adapters else "frozen"
    chosen = choices.learning(model.mapper.config.kind, before if further else None)
    own, adapters = model.language_model, model.adapters
    if chosen == "finetuned":  # in float32: in bfloat16, steps as small as these would be lost
        own = lm.with_weights((own or lm).weights, dtype=torch.float32)
        own.model.requires_grad_(True)
    elif chosen == "adapters":
        adapters = (adapters or Adapters.new(own or lm, choices.rank, choices.seed)).requires_grad_(True)
    return ClipCaptionModel(model.mapper, own, adapters)


def standardize(mapper: Mapper, embeddings: Tensor) -> None:
    """Let the first layer of a new mapper see standardised embeddings.

    CLIP embeddings share a large common offset; folding mean and deviation of the (N, E) embeddings into the layer
    spares the optimizer from finding them.
    """
    x = F.normalize(embeddings, dim=-1) if mapper.config.normalize else embeddings
    deviation = x.std(0, unbiased=False).clamp(min=1e-4)
    layer = mapper.first_layer
    with torch.no_grad():
        layer.weight.div_(deviation)
        layer.bias.sub_(layer.weight @ x.mean(0))


def train_mapper(
    model: ClipCaptionModel,
    lm: LanguageModel,
    encoder_identity: str,
    training: CaptionedImages,
    validation: CaptionedImages,
    options: TrainingOptions,
    folder: Path,
    on_progress: Callable[[Progress], bool] = lambda progress: True,
    *,
    on_tokens: Callable[[int, int], bool] = lambda done, images: True,
    on_epoch: Callable[[EpochEnd], None] = lambda epoch: None,
    state_every: int = 200,
) -> TrainingResult:
    """Train the mapper of `model` in place, and of its adapters or its own language model those weights that require a
    gradient (see `trainable`); go on from `folder` if it holds an interrupted run, from the weights stored there
    whatever `model` has now.

    Args:
        model: with the weights to start from, new (see `new_mapper`) or those of an earlier version.
        lm: the loaded language model, which stays as it is.
        encoder_identity: of the encoder that made the embeddings, for the checkpoint.
        on_progress: called after every step, and again while validating; a false answer cancels.
        on_tokens: called while tokenizing with how many of how many images are done; a false answer cancels.
        on_epoch: called after every epoch, before its state is stored, so after a crash it may be called again for the
            same one; `model` may be run but not changed.
        state_every: steps between the states that an interrupted run resumes from.

    Raises:
        TrainingError: nothing to train on.
        ForeignState: the folder has the state of a different run.
        TrainingCanceled: a callback said so; call again with the same arguments to resume.
        OSError: the disk is full; the folder keeps the last whole state and the best mapper so far.
    """
    mapper, speaker = model.mapper, model.language_model or lm
    # What is trained here learns to end with the LM's own token, whatever its authors' mapper stopped at before.
    mapper.config = dataclasses.replace(mapper.config, stop_text="")
    rows, left_out = tokenized_rows(training, mapper, lm, options, "training", on_tokens)
    checked, _ = tokenized_rows(validation, mapper, lm, options, "validation", on_tokens)
    device, end_id = lm.device, lm.end_id
    model.weights.to(device)
    mapper.train().requires_grad_(True)
    weights = trained_weights(model)
    groups = _groups(model, options)
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=options.weight_decay)
    deviation = training.embeddings[:, 0].std(0, unbiased=False)
    per_epoch = len(batches_of(rows, options, epoch=0))
    steps = per_epoch * options.epochs
    state = State()
    state_path, best_path = folder / STATE, folder / "mapper.safetensors"
    run = run_identity(model, lm, encoder_identity, training, validation, options)
    best_weights = _copied(weights)
    if state_path.exists():
        state, best_weights = restore_state(state_path, run, weights, optimizer)
    computed = autocast(device, options.precision)
    started, first_step, samples, last_loss = time.monotonic(), state.step, 0, 0.0

    def go_on_or_stop() -> None:
        elapsed = max(time.monotonic() - started, 1e-9)
        go_on = on_progress(
            Progress(
                step=state.step,
                steps=steps,
                epoch=state.epoch,
                train_loss=last_loss,
                validation_loss=state.history[-1][1] if state.history else None,
                learning_rate=options.learning_rate * _schedule(max(0, state.step - 1), steps, options),
                samples_per_second=samples / elapsed,
                eta_seconds=elapsed / max(1, state.step - first_step) * (steps - state.step),
            )
        )
        if not go_on:
            save_state(state_path, run, state, weights, optimizer, best_weights)
            raise TrainingCanceled(f"canceled at step {state.step} of {steps}; call again to resume")

    def save_best(loss: float) -> MapperCheckpoint:
        checkpoint = MapperCheckpoint.of(model, encoder_identity, lm.identity, {"validation_loss": loss})
        save_mapper(checkpoint, best_path)
        return checkpoint

    while state.epoch < options.epochs and state.bad_epochs < options.patience:
        batches = batches_of(rows, options, state.epoch)
        while state.batch < len(batches):
            batch = batches[state.batch]
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _schedule(state.step, steps, options)
            embeddings = draw_embeddings(training.embeddings, batch, deviation, options, state.step)
            captions, tokens, last_loss = [captions for _, captions in batch], _tokens(batch), 0.0
            optimizer.zero_grad(set_to_none=True)
            size = math.ceil(len(batch) / options.accumulation)
            for part in (slice(first, first + size) for first in range(0, len(batch), size)):
                with _adapted(speaker, model.adapters):
                    with computed:
                        loss = caption_loss(mapper, speaker, embeddings[part], captions[part], end_id)
                    if not loss.isfinite():
                        raise TrainingError(f"the loss is not a number at step {state.step}; lower the learning rate")
                    share = _tokens(batch[part]) / tokens
                    (loss * share).backward()
                last_loss += loss.item() * share
            nn.utils.clip_grad_norm_(parameters, options.clip)
            optimizer.step()
            state.step, state.batch = state.step + 1, state.batch + 1
            state.epoch_loss += last_loss * tokens
            state.epoch_tokens += tokens
            samples += sum(len(captions) for _, captions in batch)
            go_on_or_stop()
            if state.step % state_every == 0:
                save_state(state_path, run, state, weights, optimizer, best_weights)
        with _adapted(speaker, model.adapters):
            loss_now = validation_loss(mapper, speaker, validation, checked, options, computed, on_batch=go_on_or_stop)
        if not math.isfinite(loss_now):
            raise TrainingError(f"the validation loss is not a number at step {state.step}; lower the learning rate")
        state.history.append((state.epoch_loss / state.epoch_tokens, loss_now))
        state.epoch, state.batch, state.epoch_loss, state.epoch_tokens = state.epoch + 1, 0, 0.0, 0
        if loss_now < state.best:
            state.best, state.bad_epochs = loss_now, 0
            best_weights = _copied(weights)
            save_best(loss_now)
        else:
            state.bad_epochs += 1
        on_epoch(EpochEnd(state.epoch, state.step, state.history[-1][0], loss_now))
        save_state(state_path, run, state, weights, optimizer, best_weights)
    for name, tensor in weights.items():
        tensor.copy_(best_weights[name])
    model.weights.eval().requires_grad_(False)
    # Once more: the file may have vanished since, or a worker whose lease had run out may have replaced it.
    stored = save_best(state.best)
    if stored.weights:  # as whoever loads the file will have it
        model = dataclasses.replace(model, language_model=lm.with_weights(stored.weights))
    count = sum(tensor.numel() for tensor in weights.values())
    return TrainingResult(model, best_path, state.best, state.history, count, left_out)


def _groups(model: ClipCaptionModel, options: TrainingOptions) -> list[dict[str, Any]]:
    """What the optimizer trains, with the peaks of the learning rates."""
    named = [(name, weights) for name, weights in model.weights.named_parameters() if weights.requires_grad]
    groups = [{"params": [w for name, w in named if name.startswith("mapper.")], "peak": options.learning_rate}]
    for part, automatic in (("adapters.", ADAPTERS_RATE), ("language_model.", FINE_TUNING_RATE)):
        if trained := [weights for name, weights in named if name.startswith(part)]:
            groups.append({"params": trained, "peak": options.language_model_learning_rate or automatic})
    return groups


def _tokens(batch: list[Row]) -> int:
    """What the loss is the mean of: every caption's tokens, and its end."""
    return sum(len(caption) + 1 for _, captions in batch for caption in captions)


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
