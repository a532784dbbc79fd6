"""Captions in the admin."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern
from django.utils.safestring import SafeString

from captioner import services
from captioner.admin.base import BigTable, Empty, OwnPage, ReadOnly, each, thumbnail
from captioner.jobs.job import Status
from captioner.models import Caption, CaptionQuerySet, Viewer
from captioner.templatetags.captions import percent


class UnsureFilter(admin.SimpleListFilter):
    """Narrows captions to those that the models are not sure about, or to the others."""

    title = "confidence"
    parameter_name = "unsure"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("true", "Not sure"), ("false", "Others")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Caption]) -> QuerySet[Caption]:
        conditions = {"true": Caption.doubtful(), "false": ~Caption.doubtful()}
        condition = conditions.get(self.value() or "")
        return queryset if condition is None else queryset.filter(condition)


@admin.register(Caption)
class CaptionAdmin(BigTable, OwnPage):
    """Captions, with what a person can do about them."""

    when_empty = Empty("No captions yet: [upload photos] on the site, and workers write them.", "home")
    list_display = ("picture", "words", "style", "status", "sure", "by", "created_at")
    list_display_links = ("words",)
    list_filter = ("status", "style", UnsureFilter)
    list_select_related = ("image", "style", "version__style")
    search_fields = ("text", "name")
    search_help_text = "Searches the caption and the file name."
    actions = ("retry_chosen", "cancel_chosen")

    @admin.display(description="photo")
    def picture(self, caption: Caption) -> SafeString:
        return thumbnail(caption.image)

    @admin.display(description="caption")
    def words(self, caption: Caption) -> str:
        if caption.withheld:
            return f"withheld: {caption.withheld['detail']}"
        return caption.text or caption.error_detail or caption.name or "–"  # noqa: RUF001

    @admin.display(description="confidence")
    def sure(self, caption: Caption) -> str:
        confidence = caption.shown_confidence
        return "" if confidence is None else f"{percent(confidence)}{', not sure' if caption.unsure else ''}"

    @admin.display(description="by")
    def by(self, caption: Caption) -> str:
        return str(caption.version or "")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Caption]:
        """With corrections, which have no confidence."""
        captions: QuerySet[Caption] = super().get_queryset(request)
        return captions.prefetch_related("corrections")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody writes a caption by hand; the permission to change is that to correct, cancel and try again."""
        return super(ReadOnly, self).has_change_permission(request, obj)

    @admin.action(description="Try again", permissions=["change"])
    def retry_chosen(self, request: HttpRequest, queryset: QuerySet[Caption]) -> None:
        viewer = Viewer(request.user)
        each(
            request, queryset, lambda caption: services.retry_caption(viewer, caption.pk), "captions were queued again"
        )

    @admin.action(description="Cancel", permissions=["change"])
    def cancel_chosen(self, request: HttpRequest, queryset: CaptionQuerySet) -> None:
        count = services.cancel_captions(Viewer(request.user), queryset)
        messages.success(request, f"{count:,} captions were canceled; finished captions stay.")

    def get_urls(self) -> list[URLPattern]:
        """With a caption's buttons."""
        change = "captioner.change_caption"
        return [
            self.route("<uuid:pk>/correct/", self.correct, "correct", change, "POST"),
            self.route("<uuid:pk>/retry/", self.retry, "retry", change, "POST"),
            self.route("<uuid:pk>/cancel/", self.cancel, "cancel", change, "POST"),
            *super().get_urls(),
        ]

    def show(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
        """The caption beside its picture, with everything known about it."""
        parts = ("image", "style", "version__style", "owner")
        queryset = Caption.objects.select_related(*parts).prefetch_related("corrections__author")
        caption = self.viewed(request, pk, queryset)
        return self.page(
            request,
            "admin/captioner/caption.html",
            str(caption),
            caption=caption,
            can_change=self.has_change_permission(request),
            can_retry=caption.status in (Status.FAILED, Status.CANCELED),
        )

    def correct(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
        """Save a person's correction of a caption."""
        correction = services.correct_caption(Viewer(request.user), pk, request.POST.get("text", ""))
        return self.done(request, correction.caption, "the correction was saved")

    def retry(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
        """Queue a failed or canceled caption again."""
        return self.done(request, services.retry_caption(Viewer(request.user), pk), "the caption was queued again")

    def cancel(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
        """Cancel an unfinished caption."""
        return self.done(request, services.cancel_caption(Viewer(request.user), pk), "the caption was canceled")
