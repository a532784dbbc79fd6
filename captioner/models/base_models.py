"""Base models: an encoder with a language model, which versions are trained for, and the pair in service."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import IntegrityError, models, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from clipcap.fingerprint import same_weights


class BaseModelsQuerySet(models.QuerySet["BaseModels"]):
    """Base models, found by what a worker has loaded."""

    def loaded(self, encoder: str, language_model: str) -> BaseModels | None:
        """The row of these identities; None if no worker has recorded it."""
        return next((base for base in self.order_by("pk") if base.is_loaded_by(encoder, language_model)), None)


class BaseModels(models.Model):
    """An encoder and a language model. Versions and training runs belong to one; an image's embeddings are those of an
    encoder's identity, so that pairs with the same encoder share them. Exactly one pair is in service: that of the
    newest `CutOver`."""

    class Status(models.TextChoices):
        PREPARING = "preparing"
        IN_SERVICE = "in_service", "in service"
        RETIRED = "retired", "not in use"

    SOURCES = ("encoder_source", "language_model_source")

    encoder_source = models.CharField(max_length=500, help_text="as CLIPCAP_ENCODER names it")
    language_model_source = models.CharField(max_length=500, help_text="as CLIPCAP_LANGUAGE_MODEL names it")
    encoder = models.CharField(
        max_length=200, blank=True, editable=False, help_text="its identity, as a worker reported it"
    )
    language_model = models.CharField(
        max_length=200, blank=True, editable=False, help_text="its identity, as a worker reported it"
    )
    preparing = models.BooleanField(default=False, editable=False, help_text="styles are being retrained for it")
    person = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+", editable=False
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = BaseModelsQuerySet.as_manager()

    class Meta:
        ordering = ("-pk",)
        verbose_name_plural = "base models"
        constraints = (
            models.UniqueConstraint(
                fields=["encoder", "language_model"], condition=~Q(encoder=""), name="base_models_are_unique"
            ),
        )

    def __str__(self) -> str:
        return f"{self.encoder or self.encoder_source} with {self.language_model or self.language_model_source}"

    @classmethod
    def in_service(cls) -> BaseModels | None:
        """The pair in service; None before any worker has recorded its own."""
        newest = CutOver.objects.select_related("base").order_by("-number").first()
        return newest.base if newest else None

    @classmethod
    def record(
        cls, *, encoder: str, language_model: str, encoder_source: str, language_model_source: str
    ) -> BaseModels:
        """The row of what a worker has loaded, by the identities; sources are what the settings name. The first pair
        on record comes into service, with the versions there are."""
        while True:
            try:
                with transaction.atomic():
                    base = cls._recorded(encoder, language_model, encoder_source, language_model_source)
                    if not CutOver.objects.exists():
                        CutOver.objects.create(number=1, base=base, reason="the first models on record")
                    base.adopt()
                    return base
            except IntegrityError:  # another worker did so at the same time, and has committed
                continue

    @classmethod
    def _recorded(cls, encoder: str, language_model: str, *sources: str) -> BaseModels:
        known = cls.objects.loaded(encoder, language_model)
        if known:
            return known
        named = dict(zip(cls.SOURCES, sources, strict=True))
        asked_for = cls.objects.filter(**named, encoder="").first() or cls(**named)
        asked_for.encoder, asked_for.language_model = encoder, language_model
        asked_for.save()
        return asked_for

    def is_loaded_by(self, encoder: str, language_model: str) -> bool:
        """Whether models of these identities are these."""
        return bool(self.encoder) and self._fits(encoder, language_model)

    @property
    def is_in_service(self) -> bool:
        """Whether it is the pair in service."""
        return self == BaseModels.in_service()

    @property
    def status(self) -> BaseModels.Status:
        """In service, preparing, or retired: it was in service, or nobody prepares it."""
        if self.is_in_service:
            return self.Status.IN_SERVICE
        return self.Status.PREPARING if self.preparing else self.Status.RETIRED

    def adopt(self) -> None:
        """Take the versions that were filed before these models were on record. One whose file does not say what it
        was trained for is taken for one of those in service."""
        unclear = self.is_in_service
        versions: QuerySet[Any] = self.versions.model._default_manager.filter(base_models=None)
        for version in versions.only("encoder", "language_model"):
            identified = bool(version.encoder and version.language_model)
            if (identified or unclear) and self._fits(version.encoder, version.language_model):
                versions.filter(pk=version.pk).update(base_models=self)

    @classmethod
    def of(cls, encoder: str, language_model: str) -> BaseModels | None:
        """Which models a version of these identities belongs to: "" is what its file does not say, and those in
        service come first. None if they are not on record."""
        in_service = cls.in_service()
        known = [*([in_service] if in_service else []), *(cls.objects.all() if encoder and language_model else ())]
        return next((base for base in known if base.encoder and base._fits(encoder, language_model)), None)

    def _fits(self, encoder: str, language_model: str) -> bool:
        pairs = ((encoder, self.encoder), (language_model, self.language_model))
        return all(not needed or same_weights(needed, own) for needed, own in pairs)


class CutOver(models.Model):
    """Who put which base models in service, when and why. The newest counts; history is never rewritten."""

    number = models.PositiveIntegerField(unique=True, help_text="one at a time: of two at once, the second finds it")
    base = models.ForeignKey(BaseModels, on_delete=models.PROTECT, related_name="cut_overs")
    left_out = models.JSONField(default=list, help_text="slugs of the styles that went out of service with it")
    person = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    reason = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ("-number",)

    def __str__(self) -> str:
        return f"to {self.base} on {self.created_at:%Y-%m-%d %H:%M}"


def belonging_to(base: BaseModels | None = None, field: str = "base_models") -> Q:
    """The rows that belong, by that field, to these models; to those in service if none are given. A row without any
    was written before they were on record or by an older release, and belongs to those in service."""
    in_service = CutOver.objects.order_by("-number").values("base")[:1]
    mine = Q(**{field: models.Subquery(in_service) if base is None else base})
    return mine | Q(**{f"{field}__isnull": True}) if base is None or base.is_in_service else mine
