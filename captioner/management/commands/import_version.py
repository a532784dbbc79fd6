"""`./run manage import_version STYLE FILE`: file a mapper from elsewhere as a version of a style."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.files import File
from django.core.management.base import CommandError

from captioner import services
from captioner.management.arguments import add_style, add_user, named_style, named_user
from captioner.management.command import SiteCommand
from captioner.management.commands.check_mapper import add_unrecorded


class Command(SiteCommand):
    """File a mapper, with its language model if it has one of its own, as the next version of a style. It is not used
    until it is promoted."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_style(parser)
        parser.add_argument(
            "file",
            type=Path,
            metavar="FILE",
            help="a mapper file (*.safetensors) or a checkpoint of the ClipCap authors' code (*.pt)",
        )
        add_unrecorded(parser)
        parser.add_argument(
            "--base", type=int, metavar="N", help="number of the base models it is for; those in service if left out"
        )
        add_user(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        style = named_style(options["style"])
        person = named_user(options["user"])
        path: Path = options["file"]
        try:
            with path.open("rb") as file:
                version = services.import_version(
                    style=style,
                    file=File(file),
                    name=path.name,
                    person=person,
                    base=None if options["base"] is None else services.find_base_models(options["base"]),
                    **{name: options[name] for name in ("normalize", "heads", "encoder")},
                )
        except OSError as error:
            raise CommandError(f"{path} cannot be read: {error.strerror}") from error
        trained_on = version.mapper.trained_on
        self.stdout.write(
            f"filed as {version}: {version.brings}{f'; trained on {trained_on}' if trained_on else ''}. Promote it to "
            "put it in service"
        )
