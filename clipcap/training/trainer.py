"""Trains one mapping network with the language model frozen (ClipCap, section 3.2 and 3.3), on cached embeddings.

What is not in the paper: the captions of an image stand behind one prefix (`clipcap.training.packing`), batches are
made of rows of like length, the loss is masked by length and never by token id, and a caption's end is the LM's
end-of-text token. A run can be canceled at any step and resumed from its folder; in float32 it then ends with the same
bytes as one that was never interrupted.

Legend: N images, E size of a CLIP embedding.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipcap.checkpoint import MapperCheckpoint, save_mapper
from clipcap.device import autocast
from clipcap.language_model import LanguageModel
from clipcap.mapper import Mapper, MapperConfig, build_mapper
from clipcap.training.data import CaptionedImages, batches_of, draw_embeddings, tokenized_rows
from clipcap.training.errors import TrainingCanceled, TrainingError
from clipcap.training.loss import caption_loss, validation_loss
from clipcap.training.options import TrainingOptions
from clipcap.training.state import STATE, State, restore_state, run_identity, save_state


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
    """`mapper` is the best one by validation loss, as stored in `path`; `history` has (training, validation) loss by
    epoch; `left_out` counts the captions that could not be trained, by reason."""

    mapper: Mapper
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
    mapper: Mapper,
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
    """Train `mapper` in place with `lm` frozen; go on from `folder` if it holds an interrupted run, from the weights
    stored there whatever `mapper` has now.

    Args:
        mapper: with the weights to start from, new (see `new_mapper`) or those of an earlier version.
        encoder_identity: of the encoder that made the embeddings, for the checkpoint.
        on_progress: called after every step, and again while validating; a false answer cancels.
        on_tokens: called while tokenizing with how many of how many images are done; a false answer cancels.
        on_epoch: called after every epoch, before its state is stored, so after a crash it may be called again for the
            same one; `mapper` may be run but not changed.
        state_every: steps between the states that an interrupted run resumes from.

    Raises:
        TrainingError: nothing to train on.
        ForeignState: the folder has the state of a different run.
        TrainingCanceled: a callback said so; call again with the same arguments to resume.
        OSError: the disk is full; the folder keeps the last whole state and the best mapper so far.
    """
    # What is trained here learns to end with the LM's own token, whatever its authors' mapper stopped at before.
    mapper.config = dataclasses.replace(mapper.config, stop_text="")
    rows, left_out = tokenized_rows(training, mapper, lm, options, "training", on_tokens)
    checked, _ = tokenized_rows(validation, mapper, lm, options, "validation", on_tokens)
    device, end_id = lm.device, lm.end_id
    mapper.to(device).train().requires_grad_(True)
    parameters = [p for p in mapper.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
    deviation = training.embeddings[:, 0].std(0, unbiased=False)
    per_epoch = len(batches_of(rows, options, epoch=0))
    steps = per_epoch * options.epochs
    state = State()
    state_path, best_path = folder / STATE, folder / "mapper.safetensors"
    run = run_identity(mapper, lm, encoder_identity, training, validation, options)
    best_weights = copy.deepcopy(mapper.state_dict())
    if state_path.exists():
        state, best_weights = restore_state(state_path, run, mapper, optimizer)
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
                learning_rate=_learning_rate(max(0, state.step - 1), steps, options),
                samples_per_second=samples / elapsed,
                eta_seconds=elapsed / max(1, state.step - first_step) * (steps - state.step),
            )
        )
        if not go_on:
            save_state(state_path, run, state, mapper, optimizer, best_weights)
            raise TrainingCanceled(f"canceled at step {state.step} of {steps}; call again to resume")

    def save_best(loss: float) -> None:
        save_mapper(MapperCheckpoint(mapper, encoder_identity, lm.identity, {"validation_loss": loss}), best_path)

    while state.epoch < options.epochs and state.bad_epochs < options.patience:
        batches = batches_of(rows, options, state.epoch)
        while state.batch < len(batches):
            batch = batches[state.batch]
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(state.step, steps, options)
            embeddings = draw_embeddings(training.embeddings, batch, deviation, options, state.step)
            with computed:
                loss = caption_loss(mapper, lm, embeddings, [captions for _, captions in batch], end_id)
            if not loss.isfinite():
                raise TrainingError(f"the loss is not a number at step {state.step}; lower the learning rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, options.clip)
            optimizer.step()
            tokens = sum(len(c) + 1 for _, captions in batch for c in captions)
            state.step, state.batch = state.step + 1, state.batch + 1
            last_loss = loss.item()
            state.epoch_loss += last_loss * tokens
            state.epoch_tokens += tokens
            samples += sum(len(captions) for _, captions in batch)
            go_on_or_stop()
            if state.step % state_every == 0:
                save_state(state_path, run, state, mapper, optimizer, best_weights)
        loss_now = validation_loss(mapper, lm, validation, checked, options, computed, on_batch=go_on_or_stop)
        if not math.isfinite(loss_now):
            raise TrainingError(f"the validation loss is not a number at step {state.step}; lower the learning rate")
        state.history.append((state.epoch_loss / state.epoch_tokens, loss_now))
        state.epoch, state.batch, state.epoch_loss, state.epoch_tokens = state.epoch + 1, 0, 0.0, 0
        if loss_now < state.best:
            state.best, state.bad_epochs = loss_now, 0
            best_weights = copy.deepcopy(mapper.state_dict())
            save_best(loss_now)
        else:
            state.bad_epochs += 1
        on_epoch(EpochEnd(state.epoch, state.step, state.history[-1][0], loss_now))
        save_state(state_path, run, state, mapper, optimizer, best_weights)
    mapper.load_state_dict(best_weights)
    mapper.eval().requires_grad_(False)
    # Once more: the file may have vanished since, or a worker whose lease had run out may have replaced it.
    save_best(state.best)
    count = sum(p.numel() for p in parameters)
    return TrainingResult(mapper, best_path, state.best, state.history, count, left_out)


def _learning_rate(step: int, steps: int, options: TrainingOptions) -> float:
    warmup = max(1, round(steps * options.warmup))
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
