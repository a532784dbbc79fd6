"""Trains one mapping network with the language model frozen (ClipCap, section 3.2 and 3.3), on cached embeddings.

What is not in the paper: the captions of an image stand behind one prefix (`training.packing`), batches are made of
rows of like length, the loss is masked by length and never by token id, and a caption's end is the LM's end-of-text
token. A run can be canceled at any step and resumed from its folder; in float32 it then ends with the same bytes as
one that was never interrupted.

Legend: N images, A augmented views of each, E size of a CLIP embedding, K prefix length, D size of a token embedding.
"""

import copy
import dataclasses
import hashlib
import io
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipcap.checkpoint import MapperCheckpoint, save_mapper
from clipcap.device import multiplies_bfloat16
from clipcap.language_model import LanguageModel
from clipcap.mapper import Mapper, MapperConfig, build_mapper
from training.packing import PackedBatch, pack


class TrainingError(ValueError):
    """A dataset or options that cannot be trained with; the message says why and what to do."""


class ForeignState(TrainingError):
    """The folder holds the state of a run with other examples or options, or a damaged one."""


class TrainingCanceled(Exception):
    """The callback asked to stop; the folder holds all that is needed to resume."""


@dataclass(frozen=True)
class CaptionedImages:
    """A dataset: N images by name, their embeddings (N, A, E) and their captions.

    The first view is the image itself; training draws one of the A views each time, validation reads the first.
    """

    names: Sequence[str]
    embeddings: Tensor
    captions: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 3 or not self.embeddings.shape[1]:
            raise TrainingError(
                f"embeddings must be (images, at least one view, size), not {tuple(self.embeddings.shape)}"
            )
        if not len(self.names) == len(self.embeddings) == len(self.captions):
            raise TrainingError(
                f"{len(self.names)} names, {len(self.embeddings)} embeddings and captions of {len(self.captions)} "
                f"images do not belong together"
            )

    def split(self, validation_share: float = 0.1) -> tuple["CaptionedImages", "CaptionedImages"]:
        """Training and validation part, told by each image's name alone, so that an image stays in its part when
        others come and go."""

        def is_validation(name: str) -> bool:
            return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < validation_share * 2**64

        chosen = [is_validation(name) for name in self.names]
        return self._take([i for i, v in enumerate(chosen) if not v]), self._take(
            [i for i, v in enumerate(chosen) if v]
        )

    def _take(self, rows: list[int]) -> "CaptionedImages":
        return CaptionedImages([self.names[i] for i in rows], self.embeddings[rows], [self.captions[i] for i in rows])


@dataclass(frozen=True)
class TrainingOptions:
    """How a mapper is trained.

    epochs: at most; early stopping may end sooner.
    batch_size: captions a step; fewer of those that are far longer than captions are, so that memory does not depend
        on what a tokenizer makes of a script.
    learning_rate: the peak, reached after `warmup` (a share of all steps) and then decayed to nothing by a cosine.
    weight_decay, clip: of AdamW, and of the gradient's norm.
    patience: epochs without a better validation loss before the run ends.
    noise: standard deviation of the noise added to training embeddings, in units of each dimension's own deviation.
    precision: float32, bfloat16 (autocast), or auto: bfloat16 where the hardware multiplies it.
    seed: of the weights' initialisation, the order of batches, views and noise.
    """

    epochs: int = 10
    batch_size: int = 40
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    patience: int = 3
    noise: float = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise TrainingError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise TrainingError(f"warmup is a share of all steps, from 0 to below 1, not {self.warmup}")
        if self.weight_decay < 0 or self.noise < 0:
            raise TrainingError("weight_decay and noise cannot be negative")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise TrainingError(f"precision must be auto, float32 or bfloat16, not {self.precision!r}")


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


@dataclass
class _State:
    """What resuming needs besides the weights; all of it goes into the state file."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    epoch_loss: float = 0.0
    epoch_tokens: int = 0
    bad_epochs: int = 0
    best: float = math.inf
    history: list[tuple[float, float]] = field(default_factory=list)


STATE = "state.pt"  # in a run's folder: what it goes on from

_Row = tuple[int, list[list[int]]]  # an image's index and the tokens of some of its captions
_LOOK = 1000  # images tokenized between two looks whether to go on
_CAPTION_TOKENS = 64  # for which a step has room, for each caption of a batch
_ROW_TOKENS = 160  # a row with more captions than fit is continued in another, behind the same prefix again


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
    rows, left_out = _prepare(training, mapper, lm, options, "training", on_tokens)
    checked, _ = _prepare(validation, mapper, lm, options, "validation", on_tokens)
    device, end_id = lm.device, lm.end_id
    mapper.to(device).train().requires_grad_(True)
    parameters = [p for p in mapper.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
    deviation = training.embeddings[:, 0].std(0, unbiased=False)
    per_epoch = len(_batches(rows, options, epoch=0))
    steps = per_epoch * options.epochs
    state = _State()
    state_path, best_path = folder / STATE, folder / "mapper.safetensors"
    run = _run_identity(mapper, lm, encoder_identity, training, validation, options)
    best_weights = copy.deepcopy(mapper.state_dict())
    if state_path.exists():
        state, best_weights = _restore(state_path, run, mapper, optimizer)
    autocast = _autocast(options.precision, device)
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
            _save(state_path, run, state, mapper, optimizer, best_weights)
            raise TrainingCanceled(f"canceled at step {state.step} of {steps}; call again to resume")

    def save_best(loss: float) -> None:
        save_mapper(MapperCheckpoint(mapper, encoder_identity, lm.identity, {"validation_loss": loss}), best_path)

    while state.epoch < options.epochs and state.bad_epochs < options.patience:
        batches = _batches(rows, options, state.epoch)
        while state.batch < len(batches):
            batch = batches[state.batch]
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(state.step, steps, options)
            embeddings = _draw(training.embeddings, batch, deviation, options, state.step)
            with autocast:
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
                _save(state_path, run, state, mapper, optimizer, best_weights)
        loss_now = validation_loss(mapper, lm, validation, checked, options, autocast, on_batch=go_on_or_stop)
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
        _save(state_path, run, state, mapper, optimizer, best_weights)
    mapper.load_state_dict(best_weights)
    mapper.eval().requires_grad_(False)
    # Once more: the file may have vanished since, or a worker whose lease had run out may have replaced it.
    save_best(state.best)
    count = sum(p.numel() for p in parameters)
    return TrainingResult(mapper, best_path, state.best, state.history, count, left_out)


def caption_loss(
    mapper: Mapper, lm: LanguageModel, embeddings: Tensor, captions: Sequence[Sequence[Sequence[int]]], end_id: int
) -> Tensor:
    """Mean cross-entropy over every caption token and every caption's end.

    Args:
        embeddings: (B, E), one a row.
        captions: the token ids of each row's captions.
    """
    length, packed = mapper.config.prefix_length, lm.heeds_masks
    if not packed:  # then a caption a row, which needs no mask: padding stands behind what could see it
        embeddings = embeddings.repeat_interleave(torch.tensor([len(row) for row in captions]), dim=0)
        captions = [[caption] for row in captions for caption in row]
    batch: PackedBatch = pack(captions, length, end_id).to(lm.device)
    prefix = mapper(embeddings.to(lm.device))
    embedded = torch.cat([prefix.to(lm.dtype), lm.embed(batch.tokens)], dim=1)
    keep = embedded.shape[1] - length + 1
    mask, positions = (batch.mask.to(embedded.dtype), batch.positions) if packed else (None, None)
    logits = lm.logits(embedded, mask=mask, positions=positions, keep=keep)
    return F.cross_entropy(logits.flatten(0, 1)[batch.source].float(), batch.target)


@torch.no_grad()
def validation_loss(
    mapper: Mapper,
    lm: LanguageModel,
    images: CaptionedImages,
    rows: list[_Row],
    options: TrainingOptions,
    autocast: AbstractContextManager[Any],
    on_batch: Callable[[], None] = lambda: None,
) -> float:
    """Mean cross-entropy per token over a whole dataset, on each image's first view; `on_batch` may raise to end it."""
    mapper.eval()
    total, count = 0.0, 0
    for batch in _batches(rows, options, epoch=0):
        on_batch()
        tokens = sum(len(c) + 1 for _, captions in batch for c in captions)
        embeddings = images.embeddings[[i for i, _ in batch], 0].float()
        with autocast:
            loss = caption_loss(mapper, lm, embeddings, [captions for _, captions in batch], lm.end_id)
        total += loss.item() * tokens
        count += tokens
    mapper.train()
    return total / count


def _prepare(
    images: CaptionedImages,
    mapper: Mapper,
    lm: LanguageModel,
    options: TrainingOptions,
    what: str,
    on_tokens: Callable[[int, int], bool],
) -> tuple[list[_Row], dict[str, int]]:
    """Tokenize, and refuse early what would fail late."""
    config = mapper.config
    if len(images.names) == 0:
        raise TrainingError(f"the {what} part has no images; add examples, or choose another validation share")
    if images.embeddings.shape[2] != config.embedding_size:
        raise TrainingError(
            f"the embeddings have size {images.embeddings.shape[2]}, the mapper expects {config.embedding_size}; "
            f"compute them with the encoder the mapper is for"
        )
    if not bool(images.embeddings.isfinite().all()):
        raise TrainingError(f"embeddings of the {what} part are not all numbers; compute them again")
    if config.lm_size != lm.size:
        raise TrainingError(f"the mapper writes prefixes of size {config.lm_size}, the language model reads {lm.size}")
    if lm.dtype == torch.float16:
        raise TrainingError(
            f"{lm.identity} is loaded in float16, in which gradients vanish; load it in float32 or bfloat16 to train"
        )
    longest = lm.max_length - config.prefix_length
    if longest < 1:
        raise TrainingError(
            f"a prefix of {config.prefix_length} leaves no room for a caption in the {lm.max_length} positions of "
            f"{lm.identity}; choose a shorter prefix"
        )
    left_out = {"empty": 0, "duplicate": 0, "too long": 0}
    rows: list[_Row] = []
    for index, captions in enumerate(images.captions):
        if index % _LOOK == 0 and not on_tokens(index, len(images.captions)):
            raise TrainingCanceled("canceled before the first step; call again to begin anew")
        seen: set[str] = set()
        packed: list[list[int]] = []
        for caption in captions:
            text = " ".join(caption.split())
            tokens = lm.encode(text) if text and text not in seen else []
            reason = (
                "empty" if not text else "duplicate" if text in seen else "too long" if len(tokens) > longest else ""
            )
            if reason:
                left_out[reason] += 1
                continue
            seen.add(text)
            if packed and sum(map(len, packed)) + len(tokens) > _ROW_TOKENS:
                rows.append((index, packed))
                packed = []
            packed.append(tokens)
        if packed:
            rows.append((index, packed))
    if not rows:
        raise TrainingError(
            f"the {what} part has no caption that can be trained: "
            + ", ".join(f"{count} {reason}" for reason, count in left_out.items())
            + f" (at most {longest} tokens fit); mend the captions"
        )
    return rows, left_out


def _batches(rows: list[_Row], options: TrainingOptions, epoch: int) -> list[list[_Row]]:
    """The batches of an epoch: rows of like length together, all in an order that seed and epoch decide."""
    rng = random.Random(f"{options.seed} {epoch}")
    order = rng.sample(rows, len(rows))
    pool = 50 * options.batch_size  # sorting within pools keeps batches random but for their lengths
    batches: list[list[_Row]] = []
    for first in range(0, len(order), pool):
        batch: list[_Row] = []
        for row in sorted(order[first : first + pool], key=_length):  # so this one is its batch's longest
            if batch and (
                sum(len(c) for _, c in batch) + len(row[1]) > options.batch_size
                or (len(batch) + 1) * _length(row) > _CAPTION_TOKENS * options.batch_size
            ):
                batches.append(batch)
                batch = []
            batch.append(row)
        batches.append(batch)
    rng.shuffle(batches)
    return batches


def _length(row: _Row) -> int:
    return sum(map(len, row[1]))


def _draw(embeddings: Tensor, batch: list[_Row], deviation: Tensor, options: TrainingOptions, step: int) -> Tensor:
    """(B, E) embeddings of a training batch: a random view of each, with noise."""
    rng = random.Random(f"{options.seed} view {step}")
    drawn = torch.stack([embeddings[i, rng.randrange(embeddings.shape[1])] for i, _ in batch]).float()
    if options.noise:
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        drawn = drawn + options.noise * deviation * torch.randn(drawn.shape, generator=generator)
    return drawn


def _learning_rate(step: int, steps: int, options: TrainingOptions) -> float:
    warmup = max(1, round(steps * options.warmup))
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    if precision == "bfloat16" or (precision == "auto" and multiplies_bfloat16(device)):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def _run_identity(
    mapper: Mapper,
    lm: LanguageModel,
    encoder_identity: str,
    training: CaptionedImages,
    validation: CaptionedImages,
    options: TrainingOptions,
) -> str:
    """Tells whether a state file belongs to this very run."""
    digest = hashlib.sha256(repr((mapper.config, options, lm.identity, encoder_identity)).encode())
    for part in (training, validation):
        digest.update(repr((list(part.names), [list(c) for c in part.captions])).encode())
        digest.update(part.embeddings.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _save(
    path: Path, run: str, state: _State, mapper: Mapper, optimizer: torch.optim.Optimizer, best: dict[str, Tensor]
) -> None:
    stored = {
        "run": run,
        "state": dataclasses.asdict(state),
        "mapper": mapper.state_dict(),
        "optimizer": optimizer.state_dict(),
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


def _restore(
    path: Path, run: str, mapper: Mapper, optimizer: torch.optim.Optimizer
) -> tuple[_State, dict[str, Tensor]]:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ForeignState(f"{path} cannot be read ({error}); delete it to start the run anew") from error
    if not isinstance(stored, dict) or not {"run", "state", "mapper", "optimizer", "best"} <= stored.keys():
        raise ForeignState(f"{path} is no state of a training run; choose another folder, or delete it to start anew")
    if stored["run"] != run:
        raise ForeignState(
            f"{path} belongs to a run with other options or examples; choose another folder, or delete it to start anew"
        )
    mapper.load_state_dict(stored["mapper"])
    optimizer.load_state_dict(stored["optimizer"])
    state = _State(**stored["state"])
    state.history = [(training, validation) for training, validation in state.history]
    return state, stored["best"]
