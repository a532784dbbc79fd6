"""`./run manage check_mapper FILE`: whether a file is a mapper that fits the models that workers load, and writes; as
JSON. With --write one of the authors' is stored in this software's format, which says how a mapper was trained."""

import json
from argparse import ArgumentParser, BooleanOptionalAction
from dataclasses import replace
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Print as JSON what a mapper file contains, or why it cannot be used here."
    requires_system_checks = ()  # it touches neither the database nor the site

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "file", type=Path, help="a mapper file (*.safetensors) or a checkpoint of the ClipCap authors' code (*.pt)"
        )
        parser.add_argument(
            "--normalize",
            action=BooleanOptionalAction,
            help="whether it was trained on embeddings divided by their norm, which the authors' files do not record "
            "(guessed: yes for a Transformer, no for an MLP)",
        )
        parser.add_argument("--write", type=Path, metavar="FILE", help="output file (*.safetensors)")

    def handle(self, *args: Any, **options: Any) -> None:
        # Imported late: they load torch, which `manage.py help` should not wait for.
        import torch

        from clipcap.captioner import Captioner
        from clipcap.checkpoint import is_original, load_mapper, save_mapper
        from clipcap.encoder import Encoder
        from clipcap.language_model import LanguageModel

        torch.set_num_threads(settings.THREADS)
        try:
            encoder = Encoder.load(settings.ENCODER, device="cpu")
            lm = LanguageModel.load(settings.LANGUAGE_MODEL, device="cpu")
            checkpoint = load_mapper(options["file"], lm_size=lm.size, normalize=options["normalize"])
            model = Captioner(encoder, lm).adopt(checkpoint)
            if checkpoint.weights:  # they are those of the LM that is loaded, or became what they are from there
                own = checkpoint.weights if model.language_model else {}
                checkpoint = replace(checkpoint, language_model=lm.identity, weights=own)
            if options["write"] and is_original(options["file"]):
                save_mapper(checkpoint, options["write"])
        except (ValueError, OSError) as error:
            found: dict[str, Any] = {"error": str(error)}
        else:
            found = checkpoint.described()
        self.stdout.write(json.dumps(found))
