"""Webhook deliveries, every try, and hosts that do not answer."""

from __future__ import annotations

import logging
import uuid
from datetime import datetime
from typing import Any, Self

from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from captioner.jobs.job import QUEUED_AGAIN, UNFINISHED, Job, JobQuerySet, Status
from captioner.models.captions import Caption, CaptionRequest

log = logging.getLogger(__name__)


class WebhookHost(models.Model):
    """A host that did not respond recently: the circuit breaker of its deliveries. A host that responds has no row."""

    host = models.CharField(max_length=300, unique=True)
    failures = models.PositiveIntegerField(default=0, help_text="consecutive failures")
    open_until = models.DateTimeField(help_text="no attempts before this time")
    error = models.TextField(blank=True)

    class Meta:
        ordering = ("-open_until",)

    def __str__(self) -> str:
        return self.host


class DeliveryQuerySet(JobQuerySet["WebhookDelivery"]):
    """Deliveries, claimed by when they are due."""

    order = ("not_before", "pk")

    def ready(self, now: datetime) -> DeliveryQuerySet:
        """Deliveries whose time has come, of requests in which nothing is left to do, one of each host at a time.

        That a request is finished is looked up rather than announced: no way of finishing can forget to tell.
        """
        unfinished = Caption.objects.filter(request=OuterRef("request"), status__in=UNFINISHED)
        busy = WebhookDelivery.objects.filter(status=Status.RUNNING).exclude(host="").filter(host=OuterRef("host"))
        return super().ready(now).filter(~Exists(unfinished), ~Exists(busy), not_before__lte=now)

    def to_steady_hosts(self) -> Self:
        """Those to hosts that have answered when they were last called, or were not yet."""
        return self.exclude(host__in=WebhookHost.objects.values("host"))

    def send_again(self, now: datetime, until: datetime, **changes: Any) -> int:
        """Queue deliveries again, whatever their result; except those that are being sent right now."""
        return self.exclude(status=Status.RUNNING).update(
            status=Status.QUEUED,
            not_before=now,
            deadline_at=until,
            attempts=0,
            failed_tries=0,
            started_at=None,
            finished_at=None,
            error_code="",
            error_detail="",
            **changes,
        )


class WebhookDelivery(Job):
    """The message to a client that its request is finished; retried with increasing delays."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    request = models.OneToOneField(CaptionRequest, on_delete=models.CASCADE, related_name="webhook")
    url = models.URLField(max_length=2000)
    host = models.CharField(max_length=300, blank=True, db_default="", editable=False)
    secret = models.CharField(max_length=100, help_text="whsec_ and the key in base64, which signs the message")
    previous_secret = models.CharField(
        max_length=100, blank=True, db_default="", help_text="a second secret, while the receiver changes secrets"
    )
    # The column keeps its name: deliveries are also made and sent by the release before, beside this one's schema.
    not_before = models.DateTimeField(
        default=timezone.now, editable=False, db_column="rank_at", help_text="time of the next attempt"
    )
    failed_tries = models.PositiveSmallIntegerField(default=0, db_default=0, editable=False)
    log = models.JSONField(default=list, editable=False, help_text="attempts of earlier releases; see DeliveryAttempt")

    objects = DeliveryQuerySet.as_manager()

    class Meta(Job.Meta):
        verbose_name_plural = "webhook deliveries"
        indexes = [
            models.Index(fields=["not_before", "id"], condition=Q(status="queued"), name="webhookdelivery_ready"),
            *Job.Meta.indexes,
            models.Index(fields=["-created_at", "-id"], name="delivery_newest"),
            models.Index(fields=["status", "-created_at", "-id"], name="delivery_by_status"),
            models.Index(fields=["host", "status"], name="delivery_by_host"),
        ]

    def __str__(self) -> str:
        return f"{self.status}: {self.url}"

    def postpone(self, until: datetime, **changes: Any) -> bool:
        """Put a claimed delivery back into the queue for a later time.

        Returns:
            As `succeed` does.
        """
        return self._record(**{**QUEUED_AGAIN, "attempts": 0, "not_before": until, **changes})

    @property
    def every_try(self) -> list[dict[str, Any]]:
        """The result of each attempt, oldest first: `at`, `status`, `error` and `ms`."""
        return [*self.log, *self.tries.values("at", "status", "error", "ms")]


class DeliveryAttempt(models.Model):
    """One try to deliver a message. It is written down before it is made: a worker that is lost leaves a trace."""

    delivery = models.ForeignKey(WebhookDelivery, on_delete=models.CASCADE, related_name="tries")
    at = models.DateTimeField()
    status = models.PositiveSmallIntegerField(null=True, help_text="HTTP status of the response")
    error = models.TextField(blank=True, default="there is no result: it is being made, or its worker was lost")
    ms = models.PositiveIntegerField(null=True, help_text="null while it is in progress, or if its worker was lost")

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S}: {self.status or ''} {self.error}"
