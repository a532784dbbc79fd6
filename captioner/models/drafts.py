"""Drafts of versions: comparisons and regenerated captions."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from captioner.jobs.job import JobQuerySet, OrderedJob, Status
from captioner.models.captions import Caption
from captioner.models.fields import FiniteField, ProbabilityField
from captioner.models.images import Image
from captioner.models.styles import MapperVersion, Style


class DraftRequest(models.Model):
    """Drafts requested by an administrator: a comparison on some photos, or the regeneration of a style's captions."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    person = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    style = models.ForeignKey(
        Style, null=True, on_delete=models.CASCADE, related_name="rewritings", help_text="whose captions are replaced"
    )
    version = models.ForeignKey(
        MapperVersion, null=True, on_delete=models.CASCADE, related_name="+", help_text="version that regenerates them"
    )
    # A style may have a million captions: workers look them up, the newest first, part by part.
    listing = models.BooleanField(default=False, db_default=False, help_text="some captions may not be queued yet")
    listed_to = models.DateTimeField(null=True, help_text="creation time of the last caption queued")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        verbose_name = "comparison"
        ordering = ("-created_at", "-id")
        indexes = (models.Index(fields=["-created_at", "-id"], name="draft_request_newest"),)

    def __str__(self) -> str:
        return f"{self.style or 'comparison'}, {self.created_at:%Y-%m-%d %H:%M}"


class Draft(OrderedJob):
    """What one version, in service or not, writes about one image. No list of captions shows it; where it was written
    for a caption, that caption takes it over whole, when it is finished."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    request = models.ForeignKey(DraftRequest, on_delete=models.CASCADE, related_name="drafts")
    image = models.ForeignKey(Image, on_delete=models.PROTECT, related_name="+")
    version = models.ForeignKey(MapperVersion, on_delete=models.CASCADE, related_name="drafts")
    caption = models.ForeignKey(
        Caption, null=True, on_delete=models.CASCADE, related_name="drafts", help_text="the caption that gets its text"
    )
    options = models.JSONField(default=dict, help_text="DecodingOptions")
    text = models.TextField(blank=True)
    confidence = ProbabilityField(null=True, help_text="estimated probability that it is right; null if unknown")
    log_probability = FiniteField(null=True, help_text="mean log-probability per token; 0 is the maximum")
    prefix_words = models.JSONField(
        default=list, help_text="the nearest vocabulary words of each prefix vector: [[[word, similarity]]]"
    )
    prefix = models.BinaryField(null=True, help_text="(K, D) float16, little-endian; of comparisons")

    objects = JobQuerySet.as_manager()

    class Meta(OrderedJob.Meta):
        constraints = [
            *OrderedJob.Meta.constraints,
            models.UniqueConstraint(
                fields=["caption"], condition=Q(status__in=("queued", "running")), name="one_draft_at_a_time"
            ),
        ]

    def __str__(self) -> str:
        return self.text or f"{self.status} {self.id}"

    def finish(self, at: datetime, written: dict[str, Any], **prefix: Any) -> None:
        """Record what a worker has `written`, in the caption too that was waiting for it. Call it in a transaction."""
        own = {name: written[name] for name in ("text", "confidence", "log_probability")}
        if self.succeed(at, **own, **prefix) and self.caption_id:
            waiting = Caption.objects.filter(pk=self.caption_id, status=Status.SUCCEEDED)
            if caption := waiting.first():
                waiting.update(**caption.kept(written))
