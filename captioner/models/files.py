"""Files of the storage that no row names any more."""

from __future__ import annotations

from django.db import models
from django.utils import timezone


class DiscardedFile(models.Model):
    """A file of the storage whose row is gone and which has to go too; deleted with it."""

    name = models.CharField(max_length=200, help_text="in the storage")
    attempts = models.PositiveIntegerField(default=0, db_default=0)
    error = models.CharField(max_length=300, blank=True, db_default="", help_text="why it could not be deleted")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return self.name
