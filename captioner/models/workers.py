"""Queues and the workers that serve them."""

from __future__ import annotations

from datetime import timedelta
from typing import Self

from django.conf import settings
from django.db import models
from django.utils import timezone
from django.utils.functional import cached_property

from captioner.jobs.job import clock
from captioner.models.base_models import BaseModels

SILENCE = timedelta(seconds=30)  # after which a worker counts as lost


class Queue(models.Model):
    """A queue that can be paused: its workers finish what they hold and claim no more. One never paused has no row."""

    name = models.CharField(max_length=20, unique=True)
    paused = models.BooleanField(default=False)
    reason = models.CharField(max_length=200, blank=True)
    person = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return f"{self.name}: {'paused' if self.paused else 'open'}"

    @classmethod
    def is_paused(cls, name: str) -> bool:
        """Whether the workers of a queue are to claim nothing."""
        return cls.objects.filter(name=name, paused=True).exists()


class WorkerQuerySet(models.QuerySet["Worker"]):
    """Workers, and those of them that live."""

    def alive(self, queue: str = "") -> Self:
        """Those heard from within the last `SILENCE`, of one queue if it is named. They report once models are
        loaded."""
        heard = self.filter(seen_at__gt=clock("default") - SILENCE)
        return heard.filter(queue=queue) if queue else heard

    def writing(self) -> list[Worker]:
        """The caption workers alive that have loaded the base models in service."""
        in_service = BaseModels.in_service()
        return [worker for worker in self.alive("captions") if in_service is None or worker.has_loaded(in_service)]


class Worker(models.Model):
    """A worker process and when it was last heard from."""

    name = models.CharField(max_length=100, unique=True)
    queue = models.CharField(max_length=40)
    device = models.CharField(max_length=40, blank=True)
    models_loaded = models.CharField(max_length=400, blank=True, help_text="identities of encoder and LM")
    encoder = models.CharField(max_length=200, blank=True, db_default="", help_text="the encoder's identity")
    text_encoder = models.CharField(
        max_length=200, blank=True, db_default="", help_text="that of its text half, where it has one"
    )
    memory_mb = models.PositiveIntegerField(default=0)
    capacity = models.JSONField(
        default=dict,
        db_default=models.Value({}, models.JSONField()),
        help_text="memory_mb of its device, and the sizes of its models",
    )
    trouble = models.CharField(
        max_length=500, blank=True, db_default="", help_text="the repeated error for which it is paused"
    )
    tries_again_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(default=timezone.now)
    seen_at = models.DateTimeField(default=timezone.now)

    objects = WorkerQuerySet.as_manager()

    class Meta:
        ordering = ("-seen_at",)

    def __str__(self) -> str:
        return self.name

    def has_loaded(self, base: BaseModels) -> bool:
        """Whether it has loaded these; one that does not tell, of an older release, is taken to have."""
        return not self.models_loaded or base.is_loaded_by(self.encoder, self.language_model)

    @cached_property
    def base(self) -> BaseModels | None:
        """Those it has loaded; None if it does not tell."""
        return BaseModels.objects.loaded(self.encoder, self.language_model)

    @property
    def language_model(self) -> str:
        """The LM's identity."""
        return self.models_loaded.rpartition(", ")[2]
