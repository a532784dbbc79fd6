"""What staff and trainers did; only added to."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.utils import timezone


class AuditEntries(models.QuerySet["AuditEntry"]):
    """Entries can be read and added."""

    def update(self, **_: Any) -> int:
        """Refused: history is never rewritten."""
        raise TypeError("the audit log cannot be changed")

    def delete(self) -> tuple[int, dict[str, int]]:
        """Refused: history is never rewritten."""
        raise TypeError("the audit log cannot be changed")


class AuditEntry(models.Model):
    """An action of a privileged user. It has no foreign keys, so that it outlives the rows."""

    class Action(models.TextChoices):
        PROMOTED = "promoted"
        DELETED = "deleted"
        PERMISSIONS = "permissions", "changed permissions"
        EXPORTED = "exported"
        IMPORTED = "imported"
        TRAINED = "trained", "started, stopped or resumed training"
        SERVICE = "service", "changed what is served"
        VOTE = "vote", "started or ended a blind vote"

    created_at = models.DateTimeField(default=timezone.now)
    who = models.CharField(max_length=150, blank=True, help_text="their user name then; empty: a command or a policy")
    user_id = models.BigIntegerField(null=True)
    address = models.CharField(max_length=45, blank=True, help_text="where they were")
    action = models.CharField(max_length=20, choices=Action)
    subject = models.CharField(max_length=200)
    detail = models.TextField(blank=True)

    objects = AuditEntries.as_manager()

    class Meta:
        ordering = ("-created_at", "-pk")
        verbose_name_plural = "audit log"
        indexes = (
            models.Index(fields=["-created_at", "-id"], name="audit_newest"),
            models.Index(fields=["action", "-created_at", "-id"], name="audit_by_action"),
        )

    def __str__(self) -> str:
        return f"{self.who or 'the server'} {self.get_action_display()}: {self.subject}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Add it.

        Raises:
            TypeError: it is there already.
        """
        if not self._state.adding:
            raise TypeError("the audit log cannot be changed")
        super().save(*args, **kwargs)

    def delete(self, *_: Any, **__: Any) -> tuple[int, dict[str, int]]:
        """Refused: history is never rewritten."""
        raise TypeError("the audit log cannot be changed")
