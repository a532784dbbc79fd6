"""Imports in the admin."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern

from captioner import audit
from captioner.admin.base import STYLES, Empty, OwnPage
from captioner.jobs.job import Status
from training import services
from training.datasets.importer import rejected_csv
from training.models import Import

REJECTED_SHOWN = 50


@admin.register(Import)
class ImportAdmin(OwnPage):
    """Imports of examples, live."""

    when_empty = Empty("No files were imported yet: [choose a style] and import its examples.", STYLES)
    list_display = ("name", "style", "status", "rows", "accepted", "duplicates", "person", "created_at")
    list_filter = ("status", "style")

    def get_urls(self) -> list[URLPattern]:
        """With the live part of an import's page and its rejected rows."""
        view = "training.view_import"
        return [
            self.route("<int:pk>/live/", self.live, "live", view),
            self.route("<int:pk>/refused.csv", self.rejected, "rejected", view),  # released at this address
            self.route("<int:pk>/cancel/", self.cancel, "cancel", "training.change_import", "POST"),
            self.route("<int:pk>/resume/", self.resume, "resume", "training.change_import", "POST"),
            *super().get_urls(),
        ]

    def resume(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Queue a stopped import again, to go on behind its last row."""
        return self.done(request, services.resume_import(self.viewed(request, pk)), "the import was queued again")

    def show(self, request: HttpRequest, pk: int) -> HttpResponse:
        """How far an import is, and what of it was rejected."""
        batch = self.viewed(request, pk)
        return self.page(request, "admin/training/import.html", str(batch), up=batch.style, **self._standing(batch))

    def live(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """How far it is now, to be swapped in."""
        services.rescue_stale()
        return self.page(request, "admin/training/import_live.html", "", **self._standing(self.viewed(request, pk)))

    def rejected(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """The rows that were rejected, as CSV."""
        batch = self.viewed(request, pk)
        audit.record(audit.Action.EXPORTED, f"rejected rows of {batch}")
        response = StreamingHttpResponse(rejected_csv(batch), content_type="text/csv; charset=utf-8")
        response["Content-Disposition"] = f'attachment; filename="rejected-{batch.pk}.csv"'
        return response

    def cancel(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Cancel an unfinished import; what came in stays."""
        batch = self.viewed(request, pk)
        services.cancel_import(batch)
        return self.done(request, batch, "the import was canceled; examples already imported stay")

    def _standing(self, batch: Import) -> dict[str, Any]:
        stopped = batch.status in (Status.FAILED, Status.CANCELED)
        return {
            "batch": batch,
            "stopped": stopped,
            "there": stopped and services.is_there(batch),
            "rejected_count": batch.rejected.count(),
            "rejected_rows": batch.rejected.all()[:REJECTED_SHOWN],
        }
