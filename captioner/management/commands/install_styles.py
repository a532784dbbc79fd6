"""`./run manage install_styles`: file the mappers of a folder as styles and put them in service."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from captioner import services
from captioner.errors import Refused
from captioner.models import MapperVersion, Style
from clipcap.fingerprint import file_sha256

DESCRIPTIONS = {
    "factual": "What the photo shows, in plain words.",
    "humorous": "What the photo shows, with a wink.",
    "romantic": "What the photo shows, with feeling.",
}


class Command(BaseCommand):
    help = (
        "File each mapper of a folder as a style of its name and put it in service; styles that exist are left alone."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", nargs="?", type=Path, default=settings.MODELS / "styles")

    def handle(self, *args: Any, **options: Any) -> None:
        paths = sorted(options["folder"].glob("*.safetensors"))
        if not paths:
            raise CommandError(
                f"there is no mapper (*.safetensors) in {options['folder']}; choose a folder that has some"
            )
        for path in paths:
            style, _ = Style.objects.get_or_create(
                slug=path.stem,
                defaults={
                    "name": path.stem.replace("-", " ").capitalize(),
                    "description": DESCRIPTIONS.get(path.stem, ""),
                    "is_default": not Style.objects.filter(is_default=True).exists(),
                },
            )
            active = style.active_version
            # A shipped version in service gives way to a newer one: it would not fit newly shipped models. What was
            # trained or imported here stays.
            outdated = active is not None and active.origin == MapperVersion.Origin.SHIPPED
            known = style.versions.filter(sha256=file_sha256(path)).exists()
            if active is None or (outdated and not known):
                if options["folder"] != settings.MODELS / "styles":  # the software's own were tried by its tests
                    try:
                        services.check_mapper(path, str(path))
                    except Refused as error:
                        raise CommandError(error.detail) from error
                version = services.register_version(style=style, path=path, origin=MapperVersion.Origin.SHIPPED)
                services.promote(version=version, reason="shipped with the software")
                self.stdout.write(f"{version} is in service")
