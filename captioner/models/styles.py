"""Styles, their mapper versions, and which version is in service."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from django.conf import settings
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import OuterRef, Q, Subquery
from django.utils import timezone

from captioner.models.base_models import BaseModels, belonging_to
from captioner.reports import MapperReport, Stored, VersionReport
from clipcap.fingerprint import file_sha256


class Style(models.Model):
    """A way of captioning."""

    class Status(models.TextChoices):
        AVAILABLE = "available"
        WITHDRAWN = "withdrawn"  # no new requests
        ARCHIVED = "archived"  # nor imports, training runs and promotions

    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=80)
    description = models.TextField(blank=True)
    is_default = models.BooleanField(default=False, help_text="used when a request names no style")
    status = models.CharField(
        max_length=10, choices=Status, default=Status.AVAILABLE, db_default=Status.AVAILABLE.value, editable=False
    )
    starts_from = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        help_text="while this style has no version in service, training starts from the one of that style",
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ("-is_default", "slug")
        constraints = (
            models.UniqueConstraint(fields=["is_default"], condition=Q(is_default=True), name="one_default_style"),
        )

    def __str__(self) -> str:
        return self.name

    @property
    def version_in_service(self) -> MapperVersion | None:
        """The version in service: that of the newest promotion on the base models in service."""
        return self.version_on(None)

    def version_on(self, base: BaseModels | None) -> MapperVersion | None:
        """The one in service whenever these base models are; None: those in service now."""
        return MapperVersion.objects.in_service(base).filter(style=self).first()

    @property
    def starting_version(self) -> MapperVersion | None:
        """The version that the next run trains further: the one in service or, while there is none, that of the style
        which this one starts from. None: the run has to start from scratch."""
        return self.starting_version_on(None)

    def starting_version_on(self, base: BaseModels | None) -> MapperVersion | None:
        """The same of a run for these base models; None: for those in service."""
        return self.version_on(base) or (self.starts_from.version_on(base) if self.starts_from else None)


# What a version brings along, by what became of the language model when it was trained.
BRINGS = {
    "frozen": "a mapper for the shared language model",
    "adapters": "a mapper, and adapters for the shared language model",
    "finetuned": "a mapper and a language model of its own",
}


class MapperVersionQuerySet(models.QuerySet["MapperVersion"]):
    """Versions, and those of them in service."""

    def on(self, base: BaseModels | None = None) -> Self:
        """Those for these base models; for those in service if none are given."""
        return self.filter(belonging_to(base))

    def in_service(self, base: BaseModels | None = None) -> Self:
        """The version of each style in service whenever these base models are, those in service now unless others are
        given: that of its newest promotion on them."""
        newest = Promotion.objects.on(base).filter(style=OuterRef("style")).order_by("-pk").values("version")[:1]
        return self.filter(pk=Subquery(newest))


class MapperVersion(models.Model):
    """One trained mapper of a style. Immutable but for notes on it."""

    class Origin(models.TextChoices):
        SHIPPED = "shipped"
        TRAINED = "trained"
        IMPORTED = "imported"

    style = models.ForeignKey(Style, on_delete=models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField(editable=False)
    file = models.FileField(upload_to="mappers/", max_length=200)
    size = models.PositiveBigIntegerField(default=0, db_default=0, editable=False, help_text="of the file, in bytes")
    sha256 = models.CharField(max_length=64, validators=[RegexValidator(r"^[0-9a-f]{64}$")], editable=False)
    config = models.JSONField(default=dict, editable=False)  # MapperReport
    encoder = models.CharField(max_length=200, blank=True, editable=False, help_text="the encoder it fits")
    language_model = models.CharField(max_length=200, blank=True, editable=False, help_text="the LM it fits")
    base_models = models.ForeignKey(
        BaseModels, null=True, on_delete=models.PROTECT, related_name="versions", editable=False
    )
    metrics = models.JSONField(default=dict, blank=True, editable=False)  # VersionReport
    origin = models.CharField(max_length=10, choices=Origin, editable=False)
    load_error = models.TextField(blank=True, editable=False, help_text="why a worker could not load it")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", editable=False
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = MapperVersionQuerySet.as_manager()
    report = Stored(VersionReport.read, "metrics")
    """How good it was found to be."""
    mapper = Stored(MapperReport.read, "config")
    """What its network is, and what it does with the loaded language model."""

    class Meta:
        ordering = ("style", "-number")
        constraints = (models.UniqueConstraint(fields=["style", "number"], name="version_numbers_are_unique"),)

    def __str__(self) -> str:
        return f"{self.style.slug} v{self.number}"

    @property
    def brings(self) -> str:
        """What it does with the loaded language model, in words."""
        return BRINGS[self.mapper.language_model]

    def copied_to(self, folder: Path) -> Path:
        """A copy of its file, the same byte for byte.

        Raises:
            ValueError: the stored file is another than was filed.
            OSError: the storage cannot give it, or the folder not take it.
        """
        path = folder / Path(self.file.name or "mapper").name
        with self.file.storage.open(str(self.file.name), "rb") as source, path.open("wb") as copy:
            while chunk := source.read(1 << 20):
                copy.write(chunk)
        if file_sha256(path) != self.sha256:
            raise ValueError(f"the stored file of {self} is damaged: its SHA-256 does not match")
        return path


class PromotionQuerySet(models.QuerySet["Promotion"]):
    """Promotions, and those on some base models."""

    def on(self, base: BaseModels | None = None) -> Self:
        """Those of versions for these base models; for those in service if none are given."""
        return self.filter(belonging_to(base, "version__base_models"))


class Promotion(models.Model):
    """Who put which version in service, when and why. The newest on the base models in service counts; history is
    never rewritten."""

    style = models.ForeignKey(Style, on_delete=models.PROTECT, related_name="promotions")
    version = models.ForeignKey(MapperVersion, on_delete=models.PROTECT, related_name="promotions")
    person = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    reason = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = PromotionQuerySet.as_manager()

    class Meta:
        ordering = ("-pk",)
        indexes = (models.Index(fields=["style", "-id"], name="newest_promotion"),)

    def __str__(self) -> str:
        return f"{self.version} on {self.created_at:%Y-%m-%d %H:%M}"
