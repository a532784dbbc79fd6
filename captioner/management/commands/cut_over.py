"""`./run manage cut_over N`: put other base models in service, or the previous ones again."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from captioner import services
from captioner.errors import Refused
from captioner.management.arguments import add_user, named_user
from captioner.management.command import SiteCommand


class Command(SiteCommand):
    """Put other base models in service. To go back, give the number of the previous base models."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("base", type=int, metavar="N", help="number of the base models, as the admin shows it")
        parser.add_argument(
            "--leave-out", nargs="*", default=[], metavar="STYLE", help="styles that may go out of service with it"
        )
        parser.add_argument("--reason", default="", help="recorded in the audit log")
        add_user(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        person = named_user(options["user"])
        base = services.find_base_models(options["base"])
        left_out = [services.find_style(slug) for slug in options["leave_out"]]
        try:
            services.cut_over(base=base, leave_out=left_out, person=person, reason=options["reason"])
        except Refused as error:
            if error.code == "styles_missing":
                raise CommandError(f"{error.detail} (--leave-out)") from error
            raise
        self.stdout.write(f"{base} are in service")
