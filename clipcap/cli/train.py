"""`clipcap train CAPTIONS.jsonl --out FILE`: train a style."""

import argparse
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clipcap import choices
from clipcap.cli.captioned_photos import add_data, embedded, read_captions
from clipcap.cli.models import add_models, set_threads, style_files
from clipcap.options import TrainingChoices
from clipcap.progress import ProgressBar

if TYPE_CHECKING:
    from clipcap.captioner import Captioner
    from clipcap.model import ClipCaptionModel
    from clipcap.training import CaptionedImages
    from clipcap.training import Progress as Step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `clipcap train` takes."""
    add_data(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="output file of the style")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for the state of an interrupted training run")
    parser.add_argument("--start", metavar="SLUG", help="start from this style's mapper (factual, if available)")
    parser.add_argument("--scratch", action="store_true", help="start from a new mapper")
    choices.add_arguments(parser, TrainingChoices, epochs=10, layers=8)
    parser.add_argument("--validation", type=float, default=0.1, metavar="P", help="share of photos held out (0.1)")
    add_models(parser)


def run(options: argparse.Namespace) -> int:
    """Train on captioned photos and write the mapper. Ctrl+C stops after the step at hand.

    Returns:
        0, or 130 if it was stopped.

    Raises:
        ValueError: what was named cannot be trained on; the message names the cause and the remedy.
    """
    from clipcap.captioner import Captioner
    from clipcap.checkpoint import MapperCheckpoint, save_mapper
    from clipcap.training import CaptionedImages, TrainingCanceled, for_trainer, train_mapper, trainable

    set_threads(options)
    if options.out.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors, not {options.out.name!r}")
    chosen = TrainingChoices(**choices.chosen(TrainingChoices, vars(options)))
    captions = read_captions(options.captions, options.photos)
    captioner = Captioner.load(options.models, device=options.device)
    embeddings = embedded(captioner, list(captions))
    images = CaptionedImages([path.name for path in captions], embeddings[:, None], list(captions.values()))
    training, validation = images.split(options.validation)
    model, further = _start(captioner, images, options, chosen)
    stopping = threading.Event()
    with (
        tempfile.TemporaryDirectory() as temporary,
        ProgressBar("step") as bar,
        _interrupting(stopping),
    ):

        def show(step: "Step") -> bool:
            bar.show(step.step, step.steps, f"training, loss {step.train_loss:.2f}")
            return not stopping.is_set()

        try:
            result = train_mapper(
                trainable(model, captioner.language_model, chosen, further=further),
                captioner.language_model,
                captioner.encoder.identity,
                training,
                validation,
                for_trainer(chosen, captions=sum(map(len, training.captions)), further=further),
                options.work or Path(temporary),
                show,
            )
        except TrainingCanceled:
            go_on = f"the same command continues from {options.work}" if options.work else "use --work to keep progress"
            print(f"stopped; {go_on}", file=sys.stderr)
            return 130
    notes = {"captions": sum(map(len, captions.values())), "validation_loss": result.best_validation_loss}
    identities = captioner.encoder.identity, captioner.language_model.identity
    save_mapper(MapperCheckpoint.of(result.model, *identities, notes), options.out)
    for epoch, (learned, held_out) in enumerate(result.history, start=1):
        print(f"epoch {epoch}: training loss {learned:.3f}, validation loss {held_out:.3f}")
    print(f"{options.out}: trained on {len(training.names)} photos, held out {len(validation.names)}")
    return 0


@contextmanager
def _interrupting(stopping: threading.Event) -> Iterator[None]:
    """Let Ctrl+C set the event, until the block ends."""
    before = signal.signal(signal.SIGINT, lambda *_: stopping.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start(
    captioner: "Captioner", images: "CaptionedImages", options: argparse.Namespace, chosen: TrainingChoices
) -> "tuple[ClipCaptionModel, bool]":
    """The model to begin with, and whether it has been trained before."""
    from clipcap.mapper import MapperConfig
    from clipcap.model import ClipCaptionModel
    from clipcap.training import new_mapper

    slug = options.start or (None if options.scratch else "factual")
    if options.start and options.scratch:
        raise ValueError("--start and --scratch cannot be used together")
    if slug and (options.start or (options.models / "styles" / f"{slug}.safetensors").is_file()):
        return captioner.load_model(style_files(options.models, [slug])[slug]), True
    config = MapperConfig(
        chosen.mapper,
        embedding_size=captioner.encoder.embedding_size,
        lm_size=captioner.language_model.size,
        prefix_length=chosen.prefix_length,
        layers=chosen.layers,
    )
    return ClipCaptionModel(new_mapper(config, images, chosen.seed)), False
