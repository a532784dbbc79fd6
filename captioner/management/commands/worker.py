"""`./run worker captions`: a worker in the foreground, with the settings of the environment."""

from argparse import ArgumentParser
from typing import Any

from celery.bin.celery import celery
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from captioner import services
from captioner.checks import TAG
from captioner.errors import Refused
from captioner.jobs.registry import QUEUES


class Command(BaseCommand):
    help = "Process a queue until SIGTERM or Ctrl-C; work in progress is finished first. One process per GPU."
    requires_system_checks = (TAG,)  # the others load the web process's modules

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("queue", choices=sorted(QUEUES))
        parser.add_argument(
            "--name", help="name of the worker; must be unique on a machine; the queue's name if left out"
        )

        parser.add_argument(
            "--base",
            type=int,
            metavar="N",
            help="number of the base models to load, as prepare_base shows it; those of the settings if left out",
        )

    def handle(self, *args: Any, queue: str, name: str | None, base: int | None, **options: Any) -> None:
        if base is not None:
            self._choose(base)
        # The models live in this very process: nothing is forked, and threads of its own do the work.
        # Mingling and gossip are messages between workers, which have nothing to tell each other.
        worker = ["worker", "--pool", "solo", "--without-mingle", "--without-gossip"]
        celery.main(["-A", "clipcap_site", *worker, "--queues", queue, "--hostname", f"{name or queue}@%h"])

    def _choose(self, base: int) -> None:
        """Load these base models in place of those that the settings name."""
        try:
            models = services.find_base_models(base)
        except Refused as error:
            raise CommandError(error.detail) from error
        settings.ENCODER, settings.LANGUAGE_MODEL = models.encoder_source, models.language_model_source
