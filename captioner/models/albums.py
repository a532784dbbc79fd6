"""Albums: photos that somebody has put together under a name."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from captioner.models.images import Image


class Album(models.Model):
    """Photos under a name, of a user or of a browser's visitor; nobody else sees it. A photo may be in several."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE, related_name="+", editable=False
    )
    visitor = models.CharField(max_length=40, blank=True, default="", db_default="", editable=False)
    name = models.CharField(max_length=100)
    photos = models.ManyToManyField(Image, related_name="albums")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ("-created_at", "-id")
        constraints = (
            models.UniqueConstraint(fields=["owner", "name"], condition=Q(owner__isnull=False), name="albums_of_owner"),
            models.UniqueConstraint(fields=["visitor", "name"], condition=Q(owner=None), name="albums_of_visitor"),
        )

    def __str__(self) -> str:
        return self.name
