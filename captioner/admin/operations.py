"""Promotions, workers, webhook deliveries and the audit log in the admin."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.text import Truncator

from captioner import services
from captioner.admin.base import VERSIONS, BigTable, Empty, ReadOnly, duration, since
from captioner.admin.dashboard import tell_duties
from captioner.models import AuditEntry, DeliveryAttempt, Promotion, WebhookDelivery, WebhookHost, Worker


@admin.register(Promotion)
class PromotionAdmin(ReadOnly):
    """The history of what was in service. It is never rewritten."""

    when_empty = Empty("No version is in service yet: [open one] and promote it.", VERSIONS)
    list_display = ("version", "style", "person", "reason", "created_at")
    list_filter = ("style",)
    list_select_related = ("version__style", "style", "person")


class WorkerList(ChangeList):
    """The list of workers: what each has loaded is looked up once for all."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = tell_duties(self.result_list)


@admin.register(Worker)
class WorkerAdmin(ReadOnly):
    """Worker processes."""

    when_empty = Empty(
        "No worker has reported yet: start one with “./run worker captions”, and [the dashboard] shows what waits for "
        "it.",
        "admin:index",
    )
    list_display = ("name", "queue", "device", "models_loaded", "duty", "memory", "running_for", "heard_from")
    readonly_fields = ("duty",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list with what each does."""
        return WorkerList

    @admin.display(description="base models")
    def duty(self, worker: Worker) -> str:
        if not hasattr(worker, "duty"):  # on its own page
            tell_duties([worker])
        return str(worker.duty)  # type: ignore[attr-defined]

    @admin.display(description="memory")
    def memory(self, worker: Worker) -> str:
        return f"{worker.memory_mb:,} MB"

    @admin.display(description="uptime")
    def running_for(self, worker: Worker) -> str:
        return duration((worker.seen_at - worker.started_at).total_seconds())

    @admin.display(description="last seen")
    def heard_from(self, worker: Worker) -> str:
        return since(worker.seen_at)


class AttemptInline(admin.TabularInline):  # type: ignore[type-arg]  # generic for type checkers only
    """Each attempt to deliver a message."""

    model = DeliveryAttempt
    template = "admin/captioner/attempts.html"
    fields = readonly_fields = ("at", "status", "error", "ms")
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """What happened is not written by hand."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever may see the message may."""
        return True


@admin.register(WebhookDelivery)
class WebhookDeliveryAdmin(BigTable, ReadOnly):
    """Messages to clients, with the result of each attempt."""

    when_empty = Empty(
        "No webhooks yet: a request for captions with “webhook_url” has its result sent there, as [the documents of "
        "the API] describe.",
        "v1:docs",
    )
    list_display = ("url", "status", "failed_tries", "error_detail", "created_at")
    list_filter = ("status",)
    exclude = ("secret", "previous_secret")
    readonly_fields = ("request", "url")
    inlines = (AttemptInline,)
    actions = ("send_again",)

    def has_send_permission(self, request: HttpRequest) -> bool:
        """Nobody writes a message by hand; the permission to change is that to send it again."""
        return bool(request.user.has_perm("captioner.change_webhookdelivery"))

    @admin.action(description="Send again", permissions=["send"])
    def send_again(self, request: HttpRequest, queryset: QuerySet[WebhookDelivery]) -> None:
        messages.success(request, f"{services.redeliver_all(queryset):,} webhooks were queued to be sent again.")


@admin.register(WebhookHost)
class WebhookHostAdmin(ReadOnly):
    """Hosts that did not respond recently, and how long they are skipped."""

    when_empty = Empty(
        "All hosts respond; see [the deliveries] for what was sent.", "admin:captioner_webhookdelivery_changelist"
    )
    list_display = ("host", "failures", "open_until", "error")


@admin.register(AuditEntry)
class AuditEntryAdmin(BigTable, ReadOnly):
    """What staff and trainers did."""

    when_empty = Empty(
        "Nothing was recorded yet: [promote a version], for example: this list then shows who did it and why.", VERSIONS
    )
    list_display = ("created_at", "who", "action", "subject", "shortened", "address")
    list_filter = ("action",)
    search_fields = ("who", "subject", "detail")
    search_help_text = "Searches user names, actions and objects."

    @admin.display(description="detail")
    def shortened(self, entry: AuditEntry) -> str:
        return Truncator(entry.detail).chars(100)
