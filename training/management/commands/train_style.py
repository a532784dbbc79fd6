"""`./run manage train_style STYLE`: queue a retraining and follow it."""

import time
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError

from captioner.errors import Refused
from captioner.models import Style, Worker
from clipcap.progress import Progress
from training import services
from training.options import SOURCES, RunOptions
from training.reports import RunProgress

DEFAULTS = RunOptions()


class Command(BaseCommand):
    help = "Retrain a style on its examples; a training worker does it. Ctrl-C leaves the run going."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("style", metavar="STYLE", help="slug of the style")
        parser.add_argument("--start", choices=("active", "scratch"), default=DEFAULTS.start)
        parser.add_argument("--mapper", choices=("transformer", "mlp"), default=DEFAULTS.mapper)
        parser.add_argument("--prefix-length", type=int, default=DEFAULTS.prefix_length, metavar="N")
        parser.add_argument("--layers", type=int, default=DEFAULTS.layers, metavar="N")
        parser.add_argument("--epochs", type=int, default=DEFAULTS.epochs, metavar="N", help="0: automatic")
        parser.add_argument(
            "--learning-rate", type=float, default=DEFAULTS.learning_rate, metavar="X", help="0: automatic"
        )
        parser.add_argument("--batch-size", type=int, default=DEFAULTS.batch_size, metavar="N")
        parser.add_argument("--noise", type=float, default=DEFAULTS.noise, metavar="X")
        parser.add_argument("--seed", type=int, default=DEFAULTS.seed, metavar="N")
        parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
        parser.add_argument("--user", metavar="NAME", help="user name to record")
        parser.add_argument("--no-wait", action="store_true", help="queue the run and exit")

    def handle(self, *args: Any, **options: Any) -> None:
        style = Style.objects.filter(slug=options["style"]).first()
        if style is None:
            raise CommandError(f"there is no style {options['style']!r}; the styles are {', '.join(_slugs())}")
        person = None
        if options["user"]:
            person = get_user_model().objects.filter(username=options["user"]).first()
            if person is None:
                raise CommandError(f"there is no user {options['user']!r}")
        names = ("start", "mapper", "prefix_length", "layers", "epochs", "learning_rate", "batch_size", "noise", "seed")
        try:
            run = services.start_run(
                style=style,
                person=person,
                options={**{name: options[name] for name in names}, "sources": options["sources"]},
            )
        except Refused as error:
            raise CommandError(error.detail) from error
        self.stdout.write(f"{run} is queued")
        if options["no_wait"]:
            return
        if not Worker.objects.filter(queue="training").exists():
            self.stderr.write("no training worker is running; start one with ./run worker training")
        with Progress("step", file=self.stderr) as progress:
            while not run.finished:
                time.sleep(1)
                run.refresh_from_db()
                now = RunProgress.read(run.progress)
                progress.show(now.step or 0, now.steps, now.phase or run.status)
        if run.error_code:
            raise CommandError(run.error_detail)
        self.stdout.write(f"{run} {run.status}: {run.verdict} ({run.version})")


def _slugs() -> list[str]:
    return list(Style.objects.values_list("slug", flat=True))
