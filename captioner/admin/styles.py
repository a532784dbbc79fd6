"""Styles in the admin: the list, a style's page with its versions, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import OuterRef, QuerySet, Subquery
from django.forms import Form
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.urls import URLPattern, reverse

from captioner import services
from captioner.admin import dashboard
from captioner.admin.base import STYLES, AdminWithPages, Empty, counted, each, so_many
from captioner.admin.parameters import as_int
from captioner.models import MapperVersion, Style
from captioner.reports import VersionReport

VERSIONS_SHOWN = 20
SERVE = "captioner.add_promotion"  # whoever may put a version in service may also take a style out of it


@admin.register(Style)
class StyleAdmin(AdminWithPages):
    """Styles: what they are, and what is in service."""

    when_empty = Empty("No styles yet: [make the first one].", "admin:captioner_style_add", "captioner.add_style")
    list_display = ("name", "slug", "status", "is_default", "in_service", "cider", "created_at")
    list_filter = ("status",)
    fields = ("name", "slug", "description", "starts_from", "is_default")
    actions: tuple[str, ...] = ("withdraw_chosen", "restore_chosen", "archive_chosen")
    add_form_template = "admin/change_form.html"
    change_form_template = "admin/captioner/style.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Style]:
        """With number and metrics of the version in service."""
        in_service = MapperVersion.objects.in_service().filter(style=OuterRef("pk"))
        styles: QuerySet[Style] = super().get_queryset(request)
        return styles.annotate(
            in_service_number=Subquery(in_service.values("number")),
            in_service_metrics=Subquery(in_service.values("metrics")),
        )

    @admin.display(description="in service")
    def in_service(self, style: Any) -> str:
        return f"v{style.in_service_number}" if style.in_service_number else "nothing yet"

    @admin.display(description="CIDEr")
    def cider(self, style: Any) -> str:
        score = VersionReport.read(style.in_service_metrics or {}).score("CIDEr")
        return "" if score is None else f"{score:.3f}"

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """The slug is part of the API's addresses; the default is moved by its own button, from one to another."""
        return ("is_default", "slug") if obj else ("is_default",)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A style has a page of its own for that, which asks whether anything needs it."""
        return False

    def has_serve_permission(self, request: HttpRequest) -> bool:
        """Whoever may put a version in service may take a style out of it."""
        return request.user.has_perm(SERVE)

    @admin.action(description="Withdraw: no new requests", permissions=["serve"])
    def withdraw_chosen(self, request: HttpRequest, queryset: QuerySet[Style]) -> None:
        each(request, queryset, lambda s: services.withdraw_style(s, request.user), "styles were withdrawn")

    @admin.action(description="Bring back", permissions=["serve"])
    def restore_chosen(self, request: HttpRequest, queryset: QuerySet[Style]) -> None:
        each(request, queryset, lambda s: services.restore_style(s, request.user), "styles are available")

    @admin.action(description="Archive", permissions=["serve"])
    def archive_chosen(self, request: HttpRequest, queryset: QuerySet[Style]) -> None:
        each(request, queryset, lambda s: services.archive_style(s, request.user), "styles were archived")

    def get_urls(self) -> list[URLPattern]:
        """With what puts a style in and out of service."""
        posts = ("GET", "POST")
        return [
            self.route("<int:pk>/default/", self.make_default, "default", "captioner.change_style", "POST"),
            self.route("<int:pk>/withdraw/", self.withdraw, "withdraw", SERVE, "POST"),
            self.route("<int:pk>/restore/", self.restore, "restore", SERVE, "POST"),
            self.route("<int:pk>/archive/", self.archive, "archive", SERVE, "POST"),
            self.route("<int:pk>/remove/", self.remove, "remove", "captioner.delete_style", *posts),
            self.route("<int:pk>/rewrite/", self.rewrite, "rewrite", "captioner.add_draftrequest", *posts),
            *super().get_urls(),
        ]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """What is in service; then settings, versions and the history."""
        style = self.viewed(request, as_int(object_id))
        shown = {**self.shown(request, style), **(extra_context or {})}
        return super().change_view(request, object_id, form_url, shown)

    def shown(self, request: HttpRequest, style: Style) -> dict[str, Any]:
        """What a style's page shows besides its form."""
        version_in_service = style.version_in_service
        versions = style.versions.select_related("style", "created_by").order_by("-number")[:VERSIONS_SHOWN]
        return {
            "title": style.name,
            "subtitle": None,
            "style": style,
            "version_in_service": version_in_service,
            "versions": [(version, dashboard.score(version), version == version_in_service) for version in versions],
            "promotions": style.promotions.select_related("version__style", "person")[:VERSIONS_SHOWN],
            "moves": [
                (name, reverse(f"admin:captioner_style_{name}", args=[style.pk]))
                for name in ("withdraw", "restore", "archive")
            ],
            "score": services.verdict_of(version_in_service) if version_in_service else "",
            "since": style.promotions.on().first(),
        }

    def make_default(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Use the style wherever a request names none."""
        style = self.viewed(request, pk)
        services.set_default_style(style)
        return self.done(request, style, f"{style} is now the default style")

    def withdraw(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Take a style out of service."""
        outcome = "was withdrawn; captions requested before are still generated"
        return self._move(request, pk, services.withdraw_style, outcome)

    def restore(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Make a style available again."""
        return self._move(request, pk, services.restore_style, "is available")

    def archive(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Put a withdrawn style away."""
        return self._move(request, pk, services.archive_style, "was archived")

    def _move(
        self, request: HttpRequest, pk: int, move: Callable[[Style, Any], object], outcome: str
    ) -> HttpResponseBase:
        style = self.viewed(request, pk)
        move(style, request.user)
        return self.done(request, style, f"{style} {outcome}")

    def remove(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Delete a style that nothing needs, after asking."""
        style = self.viewed(request, pk)
        if request.method == "POST":
            services.delete_style(style, request.user)
            messages.success(request, f"{style} was deleted.")
            return redirect(STYLES)
        return self.page(
            request,
            "admin/form_page.html",
            f"Delete {style}?",
            form=Form(),
            button="Delete it",
            text="This cannot be undone. A style that has captions, versions, examples or other history cannot be "
            "deleted; archive it.",
            up=style,
        )

    def rewrite(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Have the version in service regenerate the style's captions, after asking."""
        style = self.viewed(request, pk)
        if not request.user.has_perm("captioner.change_caption"):
            raise PermissionDenied
        if request.method == "POST":
            drafts = services.rewrite_captions(style=style, person=request.user)
            self.log_change(request, style, "had its captions regenerated")
            return redirect("admin:captioner_draftrequest_change", drafts.pk)
        count = so_many(counted(services.to_rewrite(style, now := style.version_in_service)))
        return self.page(
            request,
            "admin/form_page.html",
            f"Regenerate the captions of {style}?",
            form=Form(),
            button="Regenerate captions",
            text=f"{count} captions were written by another version than {now}, which is in service. Each keeps its "
            "text until the new one is ready, and corrections stay. Captions that someone is waiting for go first.",
            up=style,
        )
