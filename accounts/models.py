"""API tokens."""

from __future__ import annotations

from django.db import models
from django.utils import timezone
from knox.models import AuthToken, AuthTokenManager

from captioner.api.permissions import Scope


def all_scopes() -> list[str]:
    """What tokens were good for before they had scopes."""
    return list(Scope.values)


class Token(AuthToken):
    """A token of an account: knox keeps its hash and its expiry."""

    name = models.CharField(max_length=80, blank=True, help_text="what it is for")
    scopes = models.JSONField(default=all_scopes, help_text="what a program may do with it")
    last_used_at = models.DateTimeField(null=True, editable=False)

    objects = AuthTokenManager()

    class Meta:
        ordering = ("-created",)

    def __str__(self) -> str:
        return self.name or f"{self.token_key}…"

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expiry is not None and self.expiry <= timezone.now()

    def scope_labels(self) -> list[str]:
        """What it is good for, for people."""
        return [scope.label for scope in Scope if scope in self.scopes]
