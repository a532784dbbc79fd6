"""What the commands that call services have in common."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from captioner.errors import Refused


class ServiceCommand(BaseCommand):
    """A command that calls services: what they refuse ends it, with their words as its error."""

    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            return super().execute(*args, **options)
        except Refused as error:
            raise CommandError(error.detail) from error
