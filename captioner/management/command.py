"""What all commands of `manage.py` have in common."""

import inspect
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from captioner.errors import Refused


class SiteCommand(BaseCommand):
    """A command whose docstring is its help. What services refuse ends it, with their words as its error."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.help = inspect.cleandoc(cls.__doc__ or "")

    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            return super().execute(*args, **options)
        except Refused as error:
            raise CommandError(error.detail) from error
