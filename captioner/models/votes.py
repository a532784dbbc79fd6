"""Blind votes: which of two versions' captions of a photo do people prefer?"""

from __future__ import annotations

import hashlib
import secrets
import uuid

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from captioner.models.images import Image
from captioner.models.styles import MapperVersion


def _secret() -> str:
    return secrets.token_hex(16)


class Poll(models.Model):
    """Blind votes between two versions of a style, until enough is known or somebody ends it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    candidate = models.ForeignKey(MapperVersion, on_delete=models.CASCADE, related_name="polls")
    opponent = models.ForeignKey(MapperVersion, on_delete=models.CASCADE, related_name="polls_against")
    secret = models.CharField(max_length=32, default=_secret, editable=False, help_text="shuffles photos and sides")
    person = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+", editable=False
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    ended_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering = ("-created_at", "-id")
        constraints = (
            models.CheckConstraint(condition=~Q(candidate=F("opponent")), name="a_poll_has_two_versions"),
            models.UniqueConstraint(
                fields=["candidate", "opponent"], condition=Q(ended_at=None), name="one_open_poll_of_two_versions"
            ),
        )

    def __str__(self) -> str:
        return f"{self.candidate} against v{self.opponent.number}"

    def coin(self, *what: object) -> bytes:
        """Bytes that are random to whoever does not know the secret, and the same each time."""
        return hashlib.sha256(":".join(map(str, (self.secret, *what))).encode()).digest()

    def candidate_left(self, image: uuid.UUID, person: int) -> bool:
        """On which side a person sees the candidate's caption of a photo."""
        return bool(self.coin("side", image, person)[0] & 1)


class Vote(models.Model):
    """What one person said about one photo; of a photo, no more than one vote counts."""

    class Choice(models.TextChoices):
        CANDIDATE = "candidate"
        OPPONENT = "opponent"
        EQUAL = "equal"
        SKIPPED = "skipped"

    choice = models.CharField(max_length=9, choices=Choice)
    poll = models.ForeignKey(Poll, on_delete=models.CASCADE, related_name="votes")
    # The vote stays when the photo goes: what was found out is not to change afterwards.
    image = models.ForeignKey(Image, null=True, on_delete=models.SET_NULL, related_name="+")
    person = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    candidate_left = models.BooleanField(help_text="the side on which the candidate's caption was shown")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ("pk",)
        constraints = (
            models.UniqueConstraint(fields=["poll", "image"], condition=~Q(choice="skipped"), name="one_vote_a_photo"),
            models.UniqueConstraint(fields=["poll", "image", "person"], name="asked_once"),
        )

    def __str__(self) -> str:
        return f"{self.choice} in {self.poll_id}"
