"""`./run manage install_styles`: file the mappers of a folder as styles and put them in service."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError

from captioner import services
from captioner.management.command import SiteCommand
from captioner.models import BaseModels, MapperVersion, Style, Worker
from clipcap.fingerprint import file_sha256

DESCRIPTIONS = {
    "factual": "What the photo shows, in plain words.",
    "humorous": "What the photo shows, with a wink.",
    "romantic": "What the photo shows, with feeling.",
}


class Command(SiteCommand):
    """File each mapper of a folder as a style of its name and put it in service.

    A style that exists keeps what was trained or imported here; a version that was shipped gives way to a newer one.
    """

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", nargs="?", type=Path, default=settings.MODELS / "styles")

    def handle(self, *args: Any, **options: Any) -> None:
        paths = sorted(options["folder"].glob("*.safetensors"))
        if not paths:
            raise CommandError(
                f"there is no mapper (*.safetensors) in {options['folder']}; choose a folder that has some"
            )
        own = options["folder"] == settings.MODELS / "styles"
        if own:
            self._record_those_before()
        for path in paths:
            style, _ = Style.objects.get_or_create(
                slug=path.stem,
                defaults={
                    "name": path.stem.replace("-", " ").capitalize(),
                    "description": DESCRIPTIONS.get(path.stem, ""),
                    "is_default": not Style.objects.filter(is_default=True).exists(),
                },
            )
            in_service = style.version_in_service
            # A shipped version in service gives way to a newer one: it would not fit newly shipped models. What was
            # trained or imported here stays.
            outdated = in_service is not None and in_service.origin == MapperVersion.Origin.SHIPPED
            filed = style.versions.filter(sha256=file_sha256(path)).last()
            promoted = filed is not None and filed.promotions.exists()  # it may be for base models out of service
            if (in_service is None or outdated) and not promoted:
                if not own:  # the software's own were tried by its tests
                    services.check_mapper(path, str(path))
                version = filed or services.register_version(
                    style=style, path=path, origin=MapperVersion.Origin.SHIPPED
                )
                if own:
                    self._record_models(version)
                services.promote(version=version, reason="shipped with the software")
                self.stdout.write(f"{version} is in service")
        if own:
            self._serve({file_sha256(path) for path in paths})

    def _record_those_before(self) -> None:
        """Releases up to 0.2 did not record base models: those in service are what all versions in service are for."""
        if BaseModels.in_service() is not None:
            return
        versions = MapperVersion.objects.in_service().exclude(encoder="").exclude(language_model="")
        pairs = set(versions.values_list("encoder", "language_model"))
        if len(pairs) == 1:
            self._record(*pairs.pop())

    def _record_models(self, version: MapperVersion) -> None:
        """A release with other base models brings mappers for these: they are on record before a worker loads them."""
        if version.base_models is None and version.encoder and version.language_model and BaseModels.in_service():
            version.base_models = self._record(version.encoder, version.language_model)

    def _record(self, encoder: str, language_model: str) -> BaseModels:
        return BaseModels.record(
            encoder=encoder,
            language_model=language_model,
            encoder_source=settings.ENCODER,
            language_model_source=settings.LANGUAGE_MODEL,
        )

    def _serve(self, shipped: set[str]) -> None:
        """Cut over to the base models of a new release, where nothing stands in the way; otherwise say what does."""
        version = MapperVersion.objects.filter(sha256__in=shipped).exclude(base_models=None).last()
        base = version.base_models if version else None
        if base is None or base.cut_overs.exists():  # what was in service once is for people to decide about
            return
        missing = ", ".join(style.slug for style in services.styles_without(base))
        if missing or Worker.objects.alive("captions").exists():
            without = f", without a version of {missing}" if missing else ""
            self.stdout.write(
                f"this release has other base models (number {base.pk}) than those in service{without}; "
                "docs/guide/base-models.md says how to change to them without a gap"
            )
        else:
            services.cut_over(base=base, reason="shipped with the software")
            self.stdout.write(f"{base} are in service")
