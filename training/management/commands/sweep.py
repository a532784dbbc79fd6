"""`./run manage sweep STYLE`: score against prefix length, kind of mapper and what becomes of the
language model (ClipCap, figure 5 and its ablation)."""

import tempfile
import time
from argparse import ArgumentParser
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from captioner.management.arguments import add_style, named_style
from captioner.management.command import SiteCommand
from clipcap.choices import OptionError, add_arguments, chosen, options_of
from clipcap.options import TrainingChoices

KINDS, LEARNING = (tuple(options_of(TrainingChoices)[name].choices) for name in ("mapper", "language_model"))
TAKEN = (
    *("epochs", "learning_rate", "language_model_learning_rate", "batch_size", "noise", "seed"),
    *("layers", "rank", "targets"),
)
# What is drawn, and what its file is called behind the name given.
DRAWN = {
    "CIDEr by prefix length": "",
    "CIDEr by million parameters": "-parameters",
    "CIDEr by seconds of training": "-seconds",
}


class Command(SiteCommand):
    """Train mappers of several kinds and prefix lengths, with a language model that is frozen, adapted or fine-tuned,
    on a style's examples; print and draw how they score."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_style(parser)
        parser.add_argument("--prefix-lengths", nargs="+", type=int, default=[1, 5, 10, 20], metavar="K")
        parser.add_argument("--mappers", nargs="+", choices=KINDS, default=KINDS)
        parser.add_argument(
            "--language-models",
            nargs="+",
            choices=LEARNING,
            default=["frozen"],
            metavar="WHAT",
            help=f"what becomes of the language model: {', '.join(LEARNING)} (frozen); all of them, with a single "
            "prefix length, are the paper's ablation",
        )
        add_arguments(parser, TrainingChoices, only=TAKEN, epochs=5)
        parser.add_argument("--plot", type=Path, default=Path("sweep.svg"), metavar="FILE", help="(sweep.svg)")

    def handle(self, *args: Any, **options: Any) -> None:
        # Imported late: a mistyped option should not wait for torch.
        from captioner.admin.plots import as_file, lines
        from captioner.inference.engine import CaptionEngine
        from clipcap.evaluation.metrics import evaluate
        from clipcap.model import ClipCaptionModel
        from clipcap.training import TrainingError, for_trainer, new_mapper, train_mapper, trainable
        from training.examples import captioned_images, captions_of, mapper_config

        style = named_style(options["style"])
        try:
            choices = TrainingChoices(**chosen(TrainingChoices, options))
        except OptionError as error:
            raise CommandError(str(error)) from error
        plot: Path = options["plot"]
        if not plot.parent.is_dir():  # better told now than after hours
            raise CommandError(f"{plot.parent} is not a directory; give a file in an existing one with --plot")
        try:
            models = CaptionEngine.load("sweep")
            captioner = models.captioner
            training, held_out, _ = captioned_images(
                models, style.examples.all(), lambda what, done, total: self.stderr.write(f"{what} {done}/{total}")
            )
            references = dict(zip(held_out.names, held_out.captions, strict=True))
            points: dict[str, dict[str, list[tuple[float, float]]]] = {title: {} for title in DRAWN}
            self.stdout.write(
                f"{'mapper':<12} {'language model':<14} {'prefix':>6} {'parameters':>11} {'seconds':>8} {'CIDEr':>6} "
                f"{'loss':>6}"
            )
            several = len(options["language_models"]) > 1
            for kind, learning in product(options["mappers"], options["language_models"]):
                chosen_now = replace(choices, language_model=learning)
                line = f"{kind}, {learning}" if several else kind
                for length in options["prefix_lengths"]:
                    config = mapper_config(captioner, kind, length, choices.layers)
                    started = time.monotonic()
                    with tempfile.TemporaryDirectory() as folder:
                        result = train_mapper(
                            trainable(
                                ClipCaptionModel(new_mapper(config, training, choices.seed)),
                                captioner.language_model,
                                chosen_now,
                                further=False,
                            ),
                            captioner.language_model,
                            captioner.encoder.identity,
                            training,
                            held_out,
                            for_trainer(chosen_now, captions=sum(map(len, training.captions)), further=False),
                            Path(folder),
                        )
                    seconds = time.monotonic() - started
                    texts = captions_of(captioner, result.model, held_out.embeddings[:, 0])
                    found = evaluate(dict(zip(held_out.names, texts, strict=True)), references, java_metrics=False)
                    cider = found.scores["CIDEr"]
                    sizes = (length, result.trainable_parameters / 1e6, seconds)
                    for title, size in zip(DRAWN, sizes, strict=True):
                        points[title].setdefault(line, []).append((size, cider))
                    self.stdout.write(
                        f"{kind:<12} {learning:<14} {length:>6} {result.trainable_parameters:>11,} {seconds:>8.1f} "
                        f"{cider:>6.3f} {result.best_validation_loss:>6.3f}"
                    )
            for title, name in DRAWN.items():
                path = plot.with_stem(f"{plot.stem}{name}")
                path.write_text(as_file(lines(points[title], title)), encoding="utf-8")
                self.stdout.write(f"{title}: drawn in {path}")
        except (TrainingError, ValueError, OSError) as error:
            raise CommandError(str(error)) from error
