"""`./run manage rebuild_index`: rebuild the index of photos on this machine."""

from typing import Any

from django.core.management.base import CommandError

from captioner import services
from captioner.management.command import SiteCommand


class Command(SiteCommand):
    """Rebuild the index for searching photos by meaning, without deleted photos and without those of other encoders.
    Searches use the old index in the meantime."""

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            count = services.rebuild_index()
        except OSError as error:
            raise CommandError(f"the index cannot be written: {error}") from error
        self.stdout.write(f"{count} photos are in the index")
