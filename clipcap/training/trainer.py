"""Trains one style (ClipCap, sections 3.2 and 3.3) on cached embeddings: a mapping network, and with it nothing else,
adapters of the language model, or a copy of it. The loaded language model is never trained.

What is not in the paper: the captions of an image stand behind one prefix (`clipcap.training.packing`), batches are
made of rows of like length, the loss is masked by length and never by token id, and a caption's end is the LM's
end-of-text token. A run can be canceled at any step and resumed from its folder; in float32 it then ends with the same
bytes as one that was never interrupted.

Legend: N images, E size of a CLIP embedding.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.adapters import Adapters
from clipcap.checkpoint import save_mapper
from clipcap.language_model import LanguageModel
from clipcap.mapper import Mapper, MapperConfig, build_mapper
from clipcap.model import ClipCaptionModel
from clipcap.options import TrainingChoices
from clipcap.training.data import CaptionedImages, tokenized_rows
from clipcap.training.group import Group
from clipcap.training.loop import EpochEnd, Progress
from clipcap.training.machines import Machines
from clipcap.training.options import TrainingOptions
from clipcap.training.processes import in_processes
from clipcap.training.state import run_identity, trained_weights
from clipcap.training.steps import TrainingSetup, take_steps


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

    Raises:
        ValueError: the language model has no such parts as adapters are wanted for.
    """
    before = "finetuned" if model.language_model else "adapters" if model.adapters else "frozen"
    chosen = choices.learning(model.mapper.config.kind, before if further else None)
    own, adapters = model.language_model, model.adapters
    if chosen == "finetuned":  # in float32: in bfloat16, steps as small as these would be lost
        own = lm.with_weights((own or lm).weights, dtype=torch.float32)
        own.model.requires_grad_(True)
    elif chosen == "adapters":
        new = adapters or Adapters.new(own or lm, choices.rank, choices.seed, choices.targets)
        adapters = new.requires_grad_(True)
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
    on_message: Callable[[str], None] = lambda message: None,
    on_wait: Callable[[], bool] = lambda: True,
    state_every: int = 200,
    processes: int = 1,
    machines: Machines | None = None,
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
        on_message: told which machines train together, and what became of those that don't any more.
        on_wait: called about once a second while processes start or none of them says anything; a false answer cancels.
        processes: of this machine that compute each step together, on GPUs one each; they take the same steps as one
            does, but for rounding. The callbacks are called here.
        machines: those that are there when the steps begin compute a part of each, too.

    Raises:
        TrainingError: nothing to train on.
        ForeignState: the folder has the state of a different run.
        TrainingCanceled: a callback said so; call again with the same arguments to resume.
        OSError: the disk is full; the folder keeps the last whole state and the best mapper so far.
        RuntimeError: the processes keep ending, for reasons that they have written to standard error.
    """
    mapper = model.mapper
    # What is trained here learns to end with the LM's own token, whatever its authors' mapper stopped at before.
    mapper.config = dataclasses.replace(mapper.config, stop_text="")
    rows, left_out = tokenized_rows(training, mapper, lm, options, "training", on_tokens)
    checked, _ = tokenized_rows(validation, mapper, lm, options, "validation", on_tokens)
    mapper.requires_grad_(True)
    job = TrainingSetup(
        run=run_identity(model, options, (lm.identity, encoder_identity), training, validation),
        model=model,
        lm=lm,
        encoder_identity=encoder_identity,
        training=training.embeddings,
        validation=validation.embeddings,
        rows=rows,
        checked=checked,
        options=options,
        folder=folder,
        state_every=state_every,
    )
    if processes > 1 or (machines and machines.waiting()):
        # To the last state, after which no step is left to take.
        in_processes(job, processes, machines, on_progress, on_epoch, on_message, on_wait)
    state, best_weights = take_steps(job, on_progress, on_epoch)
    for name, tensor in trained_weights(model).items():
        tensor.copy_(best_weights[name])
    count = sum(tensor.numel() for tensor in best_weights.values())
    model.weights.eval().requires_grad_(False)
    # Once more: the file may have vanished since, or a worker whose lease had run out may have replaced it.
    stored = job.checkpoint(state.best)
    Group().first(partial(save_mapper, stored, job.best_path))
    if stored.weights:  # as whoever loads the file will have it
        model = dataclasses.replace(model, language_model=lm.with_weights(stored.weights))
    return TrainingResult(model, job.best_path, state.best, state.history, count, left_out)
