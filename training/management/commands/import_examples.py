"""`./run manage import_examples STYLE FILE_OR_FOLDER`: add captioned images to a style's dataset, here and now."""

import signal
import time
from argparse import ArgumentParser
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.core.files import File
from django.core.management.base import CommandError

from captioner import services as captioner_services
from captioner.jobs.job import Claim, Status
from captioner.management.arguments import add_user, named_style, named_user
from captioner.management.command import SiteCommand
from clipcap.progress import ProgressBar
from training import services
from training.datasets.annotations import ACCEPTED
from training.datasets.importer import rejected_csv, run_import
from training.datasets.keys import Keys
from training.lengths import too_long
from training.models import Import

HOLDER = "command"
LOOK, BEAT = 0.5, 5.0  # seconds between two looks at the progress, and two renewals of the lease


class Command(SiteCommand):
    """Add captioned images to a style's dataset. Ctrl-C stops between two rows, and --resume continues from there."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("style", metavar="STYLE", nargs="?", help="slug of the style")
        parser.add_argument(
            "path",
            metavar="FILE_OR_FOLDER",
            nargs="?",
            type=Path,
            help=f"a zip or folder with the images, or a file alone about images stored already; {ACCEPTED}",
        )
        parser.add_argument("--picture-column", metavar="NAME", default="", help="column or key of the file name")
        parser.add_argument("--caption-column", metavar="NAME", default="", help="column or key of the caption")
        add_user(parser)
        parser.add_argument("--resume", metavar="IMPORT_ID", type=int, help="resume a stopped import")
        # --refused is what 0.2.0 called it.
        parser.add_argument("--rejected", "--refused", metavar="FILE.csv", type=Path, help="CSV file for rejected rows")

    def handle(self, *args: Any, **options: Any) -> None:
        batch = _resumed(options["resume"]) if options["resume"] is not None else _started(options)
        with ProgressBar("row", done=batch.rows, file=self.stderr) as progress:
            follower = _Follower(batch, progress)
            before = signal.signal(signal.SIGINT, follower.interrupt)
            try:
                run_import(batch, follower.stopping, self._unfit(batch))
            finally:
                signal.signal(signal.SIGINT, before)
        batch.refresh_from_db()
        rejected = batch.rejected.count()
        self.stdout.write(
            f"{batch.rows} rows: {batch.accepted} new examples, {batch.duplicates} already present, {rejected} rejected"
        )
        if rejected and options["rejected"]:
            with options["rejected"].open("w", encoding="utf-8", newline="") as file:
                file.writelines(rejected_csv(batch))
            self.stdout.write(f"the rejected rows are in {options['rejected']}")
        elif rejected:
            self.stdout.write(
                f"the first rejected row is {batch.rejected.first()}; --rejected FILE.csv writes them all"
            )
        again = f"to resume: import_examples --resume {batch.pk}"
        if batch.status == Status.FAILED:
            raise CommandError(f"{batch.error_detail}\n{again}")
        if batch.status != Status.SUCCEEDED:
            raise CommandError(f"the import is {batch.status}; {again}")

    def _unfit(self, batch: Import) -> Callable[[str], str]:
        # Imported late: what loads tokenizers loads torch, and a mistyped option should not wait for that.
        from clipcap.language_model import LanguageModelError, load_tokenizer

        try:
            return too_long(batch.style, *load_tokenizer(captioner_services.sources_here()[1]))
        except LanguageModelError as error:
            self.stderr.write(f"captions that are too long are reported when the style is trained, not here: {error}")
            return lambda text: ""


class _Follower:
    """Keeps the lease and reports the progress of the import that is running, whenever it is asked whether to stop."""

    def __init__(self, batch: Import, progress: ProgressBar) -> None:
        assert batch.lease_token is not None
        self.batch, self.progress = batch, progress
        self.claim = Claim(Import.objects.all(), batch.lease_token, timedelta(days=7))
        self.looked = self.renewed = time.monotonic()
        self.interrupted = False

    def interrupt(self, *_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def stopping(self) -> bool:
        if self.interrupted:
            # Canceled, not handed back: a worker would take it up at once, and it was to stop.
            Import.objects.filter(pk=self.batch.pk).cancel()
            return True
        now = time.monotonic()
        if now - self.looked > LOOK:
            self.looked = now
            rows, total = Import.objects.values_list("rows", "total").get(pk=self.batch.pk)
            self.progress.show(rows, total)
            if now - self.renewed > BEAT:
                self.renewed = now
                self.claim.renew()
        return False  # whoever interrupts from here on is heard the next time, with what belongs to it


def _started(options: dict[str, Any]) -> Import:
    path = options["path"]
    if path is None:
        raise CommandError("name a style and a file or folder, or an import with --resume")
    style = named_style(options["style"])
    person = named_user(options["user"])
    keys = Keys(options["picture_column"], options["caption_column"])
    given: dict[str, Any] = {"style": style, "keys": keys, "person": person, "holder": HOLDER}
    if path.is_dir():
        return services.start_folder_import(folder=path, **given)
    try:
        with path.open("rb") as file:
            return services.start_import(file=File(file), name=path.name, **given)
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror or error}") from error


def _resumed(number: int) -> Import:
    Import.objects.reap()
    batch = Import.objects.filter(pk=number).first()
    if batch is None:
        raise CommandError(f"there is no import {number}")
    if batch.finished:
        return services.resume_import(batch, holder=HOLDER)
    claimed: list[Import] = Import.objects.filter(pk=batch.pk).claim(HOLDER, 1)
    if not claimed:
        raise CommandError(f"import {batch.pk} is in progress; if its process was killed, try again in half a minute")
    return claimed[0]
