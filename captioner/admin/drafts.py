"""Comparisons of versions in the admin."""

from __future__ import annotations

import uuid
from itertools import combinations

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern

from captioner import services
from captioner.admin.base import VERSIONS, BigTable, Empty, OwnPage
from captioner.admin.scores import standing
from captioner.models import DraftRequest, MapperVersion


@admin.register(DraftRequest)
class DraftRequestAdmin(BigTable, OwnPage):
    """Drafts of versions: comparisons on photos, and regenerated captions of a style. Updated live."""

    when_empty = Empty("No comparisons yet: [choose two versions] and have them caption the same photos.", VERSIONS)
    list_display = ("__str__", "style", "person", "created_at")

    def get_urls(self) -> list[URLPattern]:
        """With the live part of a page and its button."""
        change = "captioner.change_draftrequest"
        return [
            self.route("<uuid:pk>/live/", self.live, "live", "captioner.view_draftrequest"),
            self.route("<uuid:pk>/cancel/", self.cancel, "cancel", change, "POST"),
            *super().get_urls(),
        ]

    def show(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
        """Photos and what each version writes about them, or how far a style's captions are."""
        drafts = self.viewed(request, pk)
        title = f"Captions of {drafts.style}, regenerated" if drafts.style else "Versions compared on photos"
        found = standing(drafts)
        return self.page(
            request,
            "admin/captioner/drafts.html",
            title,
            up=drafts.style,
            contests=contests(found.get("versions", [])),
            **found,
        )

    def live(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
        """How it stands now, to be swapped in."""
        return self.page(request, "admin/captioner/drafts_live.html", "", **standing(self.viewed(request, pk)))

    def cancel(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
        """Cancel what is not written yet."""
        drafts = self.viewed(request, pk)
        return self.done(request, drafts, f"{services.cancel_drafts(drafts):,} unfinished captions were canceled")


def contests(versions: list[MapperVersion]) -> list[tuple[MapperVersion, MapperVersion]]:
    """Which of the versions can be voted between: each newer one against each older one of its style."""
    return [
        (newer, older)
        for older, newer in combinations(sorted(versions, key=lambda version: version.number), 2)
        if newer.style_id == older.style_id
    ]
