"""API tokens, and identities at another site."""

from __future__ import annotations

from django.conf import settings
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


class Identity(models.Model):
    """Whom an account belongs to at the site through which people sign in."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="identities")
    issuer = models.CharField(max_length=300, help_text="the address of the other site, CLIPCAP_OIDC_ISSUER")
    subject = models.CharField(max_length=255, help_text="its unchanging name for the person, `sub`")

    class Meta:
        verbose_name_plural = "identities"
        constraints = (models.UniqueConstraint(fields=["issuer", "subject"], name="one_account_of_an_identity"),)

    def __str__(self) -> str:
        return f"{self.subject} at {self.issuer}"
