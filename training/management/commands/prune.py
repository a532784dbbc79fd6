"""`./run manage prune`: delete what is older than it has to be kept."""

from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from typing import Any

from django.conf import settings

from captioner import services
from captioner.management.command import SiteCommand
from training import services as training_services


class Command(SiteCommand):
    """Delete finished requests with their captions, except corrected ones; then images that nothing refers to, expired
    Idempotency-Keys, and the saved state of failed imports and training runs. Run it daily."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--older-than",
            type=_days,
            metavar="DAYS",
            help="default: CLIPCAP_KEEP_DAYS; 0 there keeps all requests",
        )

    def handle(self, *args: Any, older_than: timedelta | None, **options: Any) -> None:
        counts = services.prune(older_than)
        if keep := older_than or settings.KEEP_RESULTS:
            counts |= training_services.prune(keep)
        self.stdout.write(", ".join(f"{count} {what}" for what, count in counts.items()) + " deleted")


def _days(text: str) -> timedelta:
    try:
        days = timedelta(days=float(text))
    except (ValueError, OverflowError) as error:
        raise ArgumentTypeError(f"{text!r} is not a number of days") from error
    if days <= timedelta():
        raise ArgumentTypeError("it must be more than 0 days; 0.001 is about a minute and a half")
    return days
