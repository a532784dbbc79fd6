"""`./run manage prefixes STYLE PHOTO...`: what a mapper tells the language model (ClipCap, section 4)."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from captioner.management.arguments import add_style, named_style
from captioner.management.command import SiteCommand


class Command(SiteCommand):
    """Print the vocabulary's words nearest to each vector of the photos' prefixes, and how far they differ. With a
    frozen language model they are hardly readable: the mapper steers it along directions, not words."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_style(parser)
        parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
        parser.add_argument("--number", type=int, help="version number; the one in service if left out")
        parser.add_argument("--words", type=int, default=5, help="number of words per vector (5)")

    def handle(self, *args: Any, **options: Any) -> None:
        import torch

        from captioner.inference.engine import CaptionEngine
        from clipcap.prefixes import mean_distance

        style = named_style(options["style"])
        version = (
            style.versions.filter(number=options["number"]).first() if options["number"] else style.version_in_service
        )
        if version is None:
            raise CommandError(f"{style.name} has no such version")
        try:
            models = CaptionEngine.load("prefixes")
            mapper = models.mappers.load(version).mapper
            embeddings = models.captioner.encoder.encode([str(photo) for photo in options["photos"]])
        except (ValueError, OSError) as error:
            raise CommandError(str(error)) from error
        lm = models.captioner.language_model
        with torch.inference_mode():
            prefixes = mapper(embeddings.to(lm.device))
        for photo, prefix in zip(options["photos"], prefixes, strict=True):
            self.stdout.write(f"{photo} ({version})")
            for place, words in enumerate(lm.nearest_words(prefix, options["words"]), start=1):
                self.stdout.write(f"  {place:>2}  " + "  ".join(f"{word!r} {likeness:.2f}" for word, likeness in words))
        if len(prefixes) > 1:
            apart = mean_distance(prefixes.float().cpu().numpy())
            self.stdout.write(f"mean distance of two photos' prefixes: {apart:.3f} (0 same, 1 unrelated)")
