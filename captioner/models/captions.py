"""Requests and their captions, and what people corrected."""

from __future__ import annotations

import uuid
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from captioner.jobs.job import JobQuerySet, OrderedJob, Status
from captioner.models.fields import FiniteField, ProbabilityField
from captioner.models.images import Image
from captioner.models.styles import MapperVersion, Style
from captioner.reports import Alternative
from clipcap.options import is_unsure


class CaptionRequest(models.Model):
    """The captions requested in one call, with their own URL."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE, related_name="+")
    visitor = models.CharField(max_length=40, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    idempotency_scope = models.CharField(max_length=80, blank=True, help_text="owner of the key")
    idempotency_key = models.CharField(max_length=255, null=True)
    body_sha256 = models.CharField(max_length=64, blank=True)
    answer = models.JSONField(default=dict, help_text="the response; returned again for the same key")

    class Meta:
        ordering = ("-created_at", "-id")
        constraints = (
            models.UniqueConstraint(
                fields=["idempotency_scope", "idempotency_key"],
                condition=Q(idempotency_key__isnull=False),
                name="idempotency_keys_are_unique",
            ),
        )
        indexes = (models.Index(fields=["owner", "-created_at"], name="request_of_owner"),)

    def __str__(self) -> str:
        return str(self.id)

    @property
    def status(self) -> str:
        """`queued`, `running` while anything is unfinished; then `succeeded`, or `failed` or `canceled` if any is."""
        statuses = {caption.status for caption in self.captions.all()}
        order = (Status.RUNNING, Status.QUEUED, Status.FAILED, Status.CANCELED)
        if Status.QUEUED in statuses and statuses & {Status.SUCCEEDED, Status.FAILED}:
            return Status.RUNNING
        return next((status for status in order if status in statuses), Status.SUCCEEDED)


class CaptionQuerySet(JobQuerySet["Caption"]):
    """Captions, claimed by turn."""

    order = ("turn", "rank_at", "pk")


class Caption(OrderedJob):
    """A caption asked for, and its result."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    request = models.ForeignKey(CaptionRequest, on_delete=models.CASCADE, related_name="captions")
    image = models.ForeignKey(Image, on_delete=models.PROTECT, related_name="captions")
    style = models.ForeignKey(Style, on_delete=models.PROTECT, related_name="captions", db_index=False)
    # The request's, once more: lists of a million captions are filtered and ordered by one index.
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE, related_name="+", db_index=False
    )
    visitor = models.CharField(max_length=40, blank=True)
    flow = models.CharField(
        max_length=50,
        blank=True,
        db_default="",
        editable=False,
        help_text="the owner whose captions it takes turns with",
    )
    bulk = models.BooleanField(
        default=False, db_default=False, editable=False, help_text="low priority: others go first"
    )
    turn = models.BigIntegerField(
        default=0,
        db_default=0,
        editable=False,
        help_text="lower values are claimed first",
    )
    name = models.CharField(max_length=255, blank=True, help_text="name of the uploaded file")
    # The order in which a request's captions were asked for; unknown of those from before it was kept.
    index = models.PositiveSmallIntegerField(
        null=True, help_text="index of the image in its request: files, ids, base64"
    )
    place = models.PositiveSmallIntegerField(null=True, help_text="index of the style among those requested")
    options = models.JSONField(default=dict, help_text="DecodingOptions")
    min_confidence = models.FloatField(null=True, help_text="a caption with a lower confidence is stored without text")
    version = models.ForeignKey(MapperVersion, null=True, on_delete=models.PROTECT, related_name="captions")
    text = models.TextField(blank=True)
    confidence = ProbabilityField(null=True, help_text="estimated probability that it is right; null if unknown")
    log_probability = FiniteField(null=True, help_text="mean log-probability per token; 0 is the maximum")
    alternatives = models.JSONField(default=list, help_text='[{"text", "confidence", "log_probability"}], best first')
    labelled = models.BooleanField(
        default=False, db_default=False, editable=False, help_text="nobody needs to confirm or correct it any more"
    )
    encode_ms = models.FloatField(null=True, help_text="0 if the embedding was cached")
    decode_ms = models.FloatField(null=True, help_text="of the whole batch it was in")

    objects = CaptionQuerySet.as_manager()

    class Meta(OrderedJob.Meta):
        ordering = ("-created_at", "index", "place", "-id")
        indexes = [
            *OrderedJob.Meta.indexes,
            # Not of the queued ones alone: SQLite would rather sort what another index of the status gives it.
            models.Index(fields=["status", "turn", "rank_at", "id"], name="caption_turns"),
            models.Index(fields=["flow", "bulk", "turn"], condition=Q(status="queued"), name="caption_flows"),
            models.Index(fields=["-created_at", "-id"], name="caption_newest"),
            models.Index(fields=["owner", "-created_at", "-id"], name="caption_of_owner"),
            models.Index(fields=["owner", "status"], name="caption_of_owner_by_status"),
            models.Index(fields=["visitor", "-created_at", "-id"], name="caption_of_visitor"),
            # All images that somebody's captions are of, from the index alone.
            models.Index(fields=["owner", "image"], name="caption_image_of_owner"),
            models.Index(fields=["visitor", "image"], name="caption_image_of_visitor"),
            # Ordered to the end: else a status or style that is rare is looked for in the whole table.
            models.Index(fields=["status", "-created_at", "-id"], name="caption_by_status"),
            models.Index(fields=["style", "-created_at", "-id"], name="caption_by_style"),
            models.Index(fields=["version", "-created_at", "-id"], name="caption_by_version"),
            # The next one to label, everybody's and one's own; counted from the index alone.
            models.Index(fields=["style", "status", "labelled", "confidence", "id"], name="caption_to_label"),
            models.Index(
                fields=["owner", "style", "status", "labelled", "confidence", "id"], name="caption_of_owner_to_label"
            ),
        ]

    def __str__(self) -> str:
        return self.text or f"{self.status} {self.id}"

    @property
    def correction(self) -> Correction | None:
        """The newest, if there is any. Lists fetch corrections together with their captions."""
        corrections = list(self.corrections.all())
        return corrections[-1] if corrections else None

    @property
    def best_text(self) -> str:
        """A person's correction, or what the model wrote."""
        correction = self.correction
        return correction.text if correction else self.text

    @property
    def shown_confidence(self) -> float | None:
        """The machine's, as long as no person has judged the words or written others."""
        return None if self.correction else self.confidence

    @property
    def unsure(self) -> bool:
        """Whether it is less likely to be right than the setting says; where nobody can tell, it is not."""
        return is_unsure(self.shown_confidence, settings.UNSURE_BELOW)

    @classmethod
    def doubtful(cls) -> Q:
        """The captions that are `unsure`."""
        corrected = Exists(Correction.objects.filter(caption=OuterRef("pk")))
        return Q(confidence__gte=0, confidence__lt=settings.UNSURE_BELOW) & ~Q(corrected)

    @property
    def others(self) -> list[Alternative]:
        """What else the models considered, best first."""
        return [Alternative.read(other) for other in self.alternatives]

    @property
    def withheld(self) -> dict[str, str] | None:
        """Code and sentence of why a finished caption has no words; None where nothing was withheld."""
        if self.status != Status.SUCCEEDED or not self._withholds(self.confidence):
            return None
        if self.confidence is None:
            return {
                "code": "unknown_confidence",
                "detail": "the models cannot estimate its confidence, and a minimum confidence was requested",
            }
        return {"code": "low_confidence", "detail": "its confidence is below the requested minimum"}

    def kept(self, written: dict[str, Any]) -> dict[str, Any]:
        """What is kept of what a worker has `written`: no words, where these are less sure than the request wants."""
        return {**written, "text": "", "alternatives": []} if self._withholds(written["confidence"]) else written

    def _withholds(self, confidence: float | None) -> bool:
        least = self.min_confidence or 0.0
        return least > 0 and (confidence is None or confidence < least)


class Correction(models.Model):
    """What a person says a caption should be; the newest counts, the others are kept."""

    caption = models.ForeignKey(Caption, on_delete=models.CASCADE, related_name="corrections")
    text = models.TextField()
    confirms = models.BooleanField(
        default=False, db_default=False, editable=False, help_text="the person found the caption right as it was"
    )
    author = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+", db_index=False
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    considered_at = models.DateTimeField(
        null=True, editable=False, help_text="when it was added to the examples, or left out"
    )

    class Meta:
        ordering = ("pk",)
        indexes = (
            models.Index(fields=["caption"], condition=Q(considered_at=None), name="correction_open"),
            models.Index(fields=["-created_at", "-id"], name="correction_newest"),
            models.Index(fields=["author", "-created_at", "-id"], name="correction_of_author"),
        )

    def __str__(self) -> str:
        return self.text


class Skip(models.Model):
    """A caption that a person does not want to label; others are still asked."""

    caption = models.ForeignKey(Caption, on_delete=models.CASCADE, related_name="skips")
    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+", db_index=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ("pk",)
        constraints = (models.UniqueConstraint(fields=["caption", "person"], name="skipped_once"),)
        indexes = (models.Index(fields=["person", "-created_at", "-id"], name="skip_of_person"),)

    def __str__(self) -> str:
        return f"{self.person} skipped caption {self.caption_id}"
