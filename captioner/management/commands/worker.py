"""`./run worker captions`: a worker in the foreground, with the settings of the environment."""

from argparse import ArgumentParser
from typing import Any

from celery.bin.celery import celery
from django.core.management.base import BaseCommand

from captioner.checks import TAG
from captioner.jobs.registry import QUEUES


class Command(BaseCommand):
    help = "Process a queue until SIGTERM or Ctrl-C; work in progress is finished first. One process per GPU."
    requires_system_checks = (TAG,)  # the others load the web process's modules

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("queue", choices=sorted(QUEUES))
        parser.add_argument(
            "--name", help="name of the worker; must be unique on a machine; the queue's name if left out"
        )

    def handle(self, *args: Any, queue: str, name: str | None, **options: Any) -> None:
        # The models live in this very process: nothing is forked, and threads of its own do the work.
        # Mingling and gossip are messages between workers, which have nothing to tell each other.
        worker = ["worker", "--pool", "solo", "--without-mingle", "--without-gossip"]
        celery.main(["-A", "clipcap_site", *worker, "--queues", queue, "--hostname", f"{name or queue}@%h"])
