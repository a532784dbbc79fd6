"""`./run manage check_storage`: find files without a row and rows without a file."""

from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandError

from captioner import services
from captioner.errors import Refused
from captioner.management.command import SiteCommand


class Command(SiteCommand):
    """Compare the storage with the database: report rows whose file is missing, files without a row, and temporary
    files of interrupted uploads. The exit code is 1 if a file is missing."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--sweep", action="store_true", help="delete the files without a row")
        parser.add_argument(
            "--older-than",
            type=_hours,
            default=timedelta(days=1),
            metavar="HOURS",
            help="minimum age in hours of files without a row, at least 1; 24 if not given. Newer files are left "
            "alone: they may belong to uploads in progress",
        )

    def handle(self, *args: Any, sweep: bool, older_than: timedelta, **options: Any) -> None:
        try:
            found = services.check_storage(older_than, sweep=sweep)
        except Refused:
            raise
        except Exception as error:  # every storage raises its own kinds
            raise CommandError(f"the storage cannot be checked: {error}") from error
        say = self.stdout.write
        say(f"{found.files} files belong to rows, {len(found.missing)} of them are missing")
        for name in found.missing:
            say(f"  {name}")
        swept = ", swept" if sweep else ""
        say(f"{len(found.orphans)} files have no row{swept}")
        for name in found.orphans:
            say(f"  {name}")
        say(f"{len(found.temporary)} temporary files were left behind{swept}")
        for path in found.temporary:
            say(f"  {path}")
        say(f"{len(found.waiting)} deleted files are still there; prune tries again")
        for row in found.waiting:
            say(f"  {row.name} (tried {row.attempts} times, {row.error or 'interrupted'})")
        if found.missing:
            raise CommandError("restore the missing files from a backup, or delete the rows that refer to them")


def _hours(text: str) -> timedelta:
    try:
        return timedelta(hours=float(text))
    except (ValueError, OverflowError) as error:
        raise ArgumentTypeError(f"{text!r} is not a number of hours") from error
