"""`./run manage check_mapper FILE`: whether a file is a mapper that fits the models that workers load, as JSON."""

import json
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Say as JSON what a mapper's file holds, or why it cannot be used here."
    requires_system_checks = ()  # it touches neither the database nor the site

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="ours (*.safetensors) or the authors' (*.pt)")

    def handle(self, *args: Any, **options: Any) -> None:
        # Imported late: they load torch, which `manage.py help` should not wait for.
        import torch

        from clipcap.captioner import Captioner
        from clipcap.checkpoint import load_mapper
        from clipcap.encoder import Encoder
        from clipcap.language_model import LanguageModel

        torch.set_num_threads(settings.THREADS)
        try:
            encoder = Encoder.load(settings.ENCODER, device="cpu")
            lm = LanguageModel.load(settings.LANGUAGE_MODEL, device="cpu")
            checkpoint = load_mapper(options["file"], lm_size=lm.size)
            Captioner(encoder, lm).adopt(checkpoint)
        except ValueError as error:
            found: dict[str, Any] = {"error": str(error)}
        else:
            found = {
                "config": asdict(checkpoint.mapper.config),
                "encoder": checkpoint.encoder or "",
                "language_model": checkpoint.language_model or "",
            }
        self.stdout.write(json.dumps(found))
