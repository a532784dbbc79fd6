"""The task of a style: its mapper, perhaps with weights of the language model, on captions of images."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipcap.adapters import Mixture
from clipcap.checkpoint import MapperCheckpoint, save_mapper
from clipcap.device import autocast, training_attention
from clipcap.language_model import LanguageModel
from clipcap.model import ClipCaptionModel
from clipcap.training.data import Row, batches_of, count_tokens, draw_embeddings
from clipcap.training.group import Group
from clipcap.training.loop import Computed, EpochEnd, Progress, train
from clipcap.training.loss import caption_loss, validation_loss
from clipcap.training.options import TrainingOptions
from clipcap.training.recomputing import recomputed
from clipcap.training.state import STATE, State, trained_weights

ADAPTERS_RATE, FINE_TUNING_RATE = 5e-4, 2e-5  # peaks of the learning rate; the second is the paper's


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
    """Train from the stored state, if there is one, to the end (`clipcap.training.loop.train`).

    Returns:
        The last state, and the best weights by validation loss.

    Raises:
        As `train_mapper`.
    """
    return train(
        _Style(job),
        job.options.schedule,
        job.folder / STATE,
        state_every=job.state_every,
        on_progress=on_progress,
        on_epoch=on_epoch,
    )


class _Style:
    """The task of the loop."""

    def __init__(self, job: TrainingSetup) -> None:
        self.job, self.identity, self.group = job, job.run, Group()
        model, options, device = job.model, job.options, job.lm.device
        model.weights.to(device)
        model.mapper.train().requires_grad_(True)
        self.weights = self.validated = trained_weights(model)
        self.optimizer = torch.optim.AdamW(_peaks(model, options), weight_decay=options.weight_decay)
        self.deviation = job.training[:, 0].std(0, unbiased=False)
        self.autocast = autocast(device, options.precision)
        self.losses = self.group.wrapped(_Losses(model, job.speaker, self.autocast))

    def batches(self, epoch: int) -> list[list[Row]]:
        return batches_of(self.job.rows, self.job.options, epoch)

    def compute_gradients(self, batch: list[Row], step: int) -> Computed:
        job, options, group = self.job, self.job.options, self.group
        embeddings = draw_embeddings(job.training, batch, self.deviation, options, step)
        loss = 0.0
        parts = _parts(batch, options.accumulation, group)
        for number, (part, share) in enumerate(parts, start=1):
            captions = [captions for _, captions in batch[part]]
            with (
                self._adapted(),
                training_attention(job.lm.device, options.precision),
                recomputed(job.speaker) if options.recompute else nullcontext(),
                group.apart(self.losses, really=number < len(parts)),
            ):
                part_loss = self.losses(embeddings[part], captions)
                (part_loss * share * group.size).backward()  # of which the group takes the mean
            loss += part_loss.item() * share
        (loss,) = group.total([loss], job.lm.device)
        return Computed(loss, sum(len(captions) for _, captions in batch), weight=count_tokens(batch))

    def validate(self, on_batch: Callable[[], None]) -> float:
        job = self.job
        with self._adapted():
            return validation_loss(
                job.model.mapper,
                job.speaker,
                job.validation,
                job.checked,
                job.options,
                self.autocast,
                self.group,
                on_batch,
            )

    def keep(self, loss: float) -> None:
        save_mapper(self.job.checkpoint(loss), self.job.best_path)

    def _adapted(self) -> AbstractContextManager[None]:
        adapters = self.job.model.adapters
        return Mixture(self.job.speaker, [adapters]).applied() if adapters else nullcontext()


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
