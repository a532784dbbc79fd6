"""`./run manage train_style STYLE`: queue a retraining and follow it."""

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from captioner.management.arguments import add_style, add_user, named_style, named_user
from captioner.management.command import SiteCommand
from captioner.models import Worker
from clipcap.choices import add_arguments, chosen
from clipcap.progress import ProgressBar
from training import services
from training.options import RunOptions
from training.reports import RunProgress


class Command(SiteCommand):
    """Retrain a style on its examples; a training worker does it. Ctrl-C leaves the run going."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_style(parser)
        add_arguments(parser, RunOptions)
        add_user(parser)
        parser.add_argument("--no-wait", action="store_true", help="queue the run and exit")

    def handle(self, *args: Any, **options: Any) -> None:
        style = named_style(options["style"])
        person = named_user(options["user"])
        run = services.start_run(style=style, person=person, options=chosen(RunOptions, options))
        self.stdout.write(f"{run} is queued")
        if options["no_wait"]:
            return
        if not Worker.objects.alive("training").exists():
            self.stderr.write("no training worker is running; start one with ./run worker training")
        with ProgressBar("step", file=self.stderr) as progress:
            while not run.finished:
                time.sleep(1)
                run.refresh_from_db()
                now = RunProgress.read(run.progress)
                progress.show(now.step or 0, now.steps, now.phase or run.status)
        if run.error_code:
            raise CommandError(run.error_detail)
        self.stdout.write(f"{run} {run.status}: {run.verdict} ({run.version})")
