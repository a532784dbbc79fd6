"""`./run manage rebuild_index`: make the index of photos on this machine anew."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from captioner import services


class Command(BaseCommand):
    help = (
        "Make the index by which photos are found by what they show, anew: without what deleted photos have left in "
        "it, and without those of other encoders. Searches go on with the old one meanwhile."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            count = services.rebuild_index()
        except OSError as error:
            raise CommandError(f"the index cannot be written: {error}") from error
        self.stdout.write(f"{count} photos are in the index")
