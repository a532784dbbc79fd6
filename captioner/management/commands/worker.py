"""`./run worker captions`: a worker in the foreground, with the settings of the environment."""

import logging
from argparse import ArgumentParser
from typing import Any

from celery.bin.celery import celery
from django.conf import settings

from captioner import services
from captioner.checks import TAG
from captioner.jobs.registry import QUEUES
from captioner.management.command import SiteCommand

log = logging.getLogger(__name__)


class Command(SiteCommand):
    """Process a queue until SIGTERM or Ctrl-C; work in progress is finished first. One process per GPU."""

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
            help="number of the base models to load, as the admin shows it; those in service if left out",
        )

    def handle(self, *args: Any, queue: str, name: str | None, base: int | None, **options: Any) -> None:
        self._choose(base)
        # The models live in this very process: nothing is forked, and threads of its own do the work.
        # Mingling and gossip are messages between workers, which have nothing to tell each other.
        worker = ["worker", "--pool", "solo", "--without-mingle", "--without-gossip"]
        celery.main(["-A", "clipcap_site", *worker, "--queues", queue, "--hostname", f"{name or queue}@%h"])

    def _choose(self, base: int | None) -> None:
        """Load these base models, or those in service, in place of what the settings name."""
        from captioner.workers.worker_process import retry_on_lost_database  # which loads torch: `--help` needs none

        named = settings.ENCODER, settings.LANGUAGE_MODEL
        if base is None:
            chosen = retry_on_lost_database(services.sources_here, seconds=300)
        else:
            models = services.find_base_models(base)
            chosen = models.encoder_source, models.language_model_source
        settings.ENCODER, settings.LANGUAGE_MODEL = chosen
        if base is None and chosen != named:
            log.warning(
                "the settings name other base models than those in service, which this worker loads; "
                "docs/guide/base-models.md says how to change to others",
                extra={"settings": ", ".join(named), "loads": ", ".join(chosen)},
            )
