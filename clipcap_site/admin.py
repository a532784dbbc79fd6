"""The admin's first page, the dashboard: put together here, since it shows what captioner and training have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponseNotAllowed
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path
from django.utils import timezone

from captioner import services
from captioner.jobs.registry import QUEUES
from captioner.models import Style
from training.services import rescue_stale


class PauseForm(forms.Form):
    """Why a queue is paused."""

    reason = forms.CharField(required=False, max_length=200, help_text="shown to everyone on the dashboard")


class Site(admin.AdminSite):
    """Django's admin with the dashboard on top."""

    site_header = site_title = "ClipCap"
    index_title = "Dashboard"
    index_template = "clipcap_site/dashboard.html"

    def get_urls(self) -> list[URLPattern | URLResolver]:
        """With the dashboard's fragment and the buttons of the queues."""

        def view(pattern: str, function: Callable[..., HttpResponseBase], name: str) -> URLPattern:
            return path(pattern, self.admin_view(function), name=name)

        return [
            view("dashboard/", self.fragment, "dashboard"),
            view("queues/<str:name>/pause/", self.pause, "pause-queue"),
            view("queues/<str:name>/resume/", self.resume, "resume-queue"),
            *super().get_urls(),
        ]

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        return super().index(request, {**_numbers(request), **(extra_context or {})})

    def fragment(self, request: HttpRequest) -> HttpResponseBase:
        """What the dashboard shows now, to be swapped in."""
        return TemplateResponse(request, "clipcap_site/dashboard_fragment.html", _numbers(request))

    def pause(self, request: HttpRequest, name: str) -> HttpResponseBase:
        """Let workers claim no more from a queue, after asking why."""
        queue = _queue(request, name)
        form = PauseForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            services.pause_queue(name=queue, person=request.user, reason=form.cleaned_data["reason"])
            messages.success(request, f"The queue of {queue} was paused; workers finish what they have started.")
            return redirect("admin:index")
        context = {
            **self.each_context(request),
            "title": f"Pause the queue of {queue}",
            "text": "Workers finish what they have started and take no new work. Requests are still accepted and "
            "wait; what waits "
            "longer than its deadline fails.",
            "form": form,
            "button": "Pause",
        }
        return TemplateResponse(request, "admin/form_page.html", context)

    def resume(self, request: HttpRequest, name: str) -> HttpResponseBase:
        """Let workers claim from a queue again."""
        queue = _queue(request, name)
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        services.resume_queue(name=queue, person=request.user)
        messages.success(request, f"The queue of {queue} was resumed.")
        return redirect("admin:index")


def _queue(request: HttpRequest, name: str) -> str:
    if not request.user.has_perm("captioner.change_queue"):
        raise PermissionDenied
    if name not in QUEUES:
        raise Http404("there is no such queue")
    return name


def _numbers(request: HttpRequest) -> dict[str, Any]:
    """What this person may see of the dashboard."""
    # Imported here: these packages register their pages with the site that this module makes.
    from captioner.admin import dashboard
    from captioner.admin.plots import bars
    from training.dashboard import failed_imports, failed_runs, runs_in_progress, waiting

    may = partial(_may_view, request)
    numbers: dict[str, Any] = {"now": timezone.localtime()}
    rescue_stale()
    kinds = {
        "training.trainingrun": failed_runs,
        "training.import": failed_imports,
        "captioner.caption": dashboard.failed_captions,
    }
    if seen := [failed for kind, failed in kinds.items() if may(kind)]:
        numbers["failures"] = [failure for failed in seen for failure in failed()]
    if may("captioner.caption"):
        hours = dashboard.captions_per_hour()
        numbers["captions"] = bars(
            [f"{timezone.localtime(hour.begins):%H}" for hour in hours],
            {
                "succeeded": [hour.succeeded for hour in hours],
                "failed": [hour.failed for hour in hours],
                "other": [hour.other for hour in hours],
            },
            "Captions per hour, the last 24 hours",
        )
        numbers["last_day"] = sum(hour.succeeded + hour.failed + hour.other for hour in hours)
        numbers["queues"] = [dashboard.queue("captions", *dashboard.waiting_captions())]
    if may("training.trainingrun"):
        numbers["runs"] = runs_in_progress()
        numbers["queues"] = [*numbers.get("queues", []), dashboard.queue("training", *waiting())]
    if may("captioner.worker"):
        numbers["workers"] = dashboard.workers()
    if may("captioner.style"):
        in_service = dashboard.versions_in_service()
        numbers["styles"] = [
            (style, in_service.get(style.pk), dashboard.score(in_service.get(style.pk)))
            for style in Style.objects.all()
        ]
    return numbers


def _may_view(request: HttpRequest, what: str) -> bool:
    app, model = what.split(".")
    return bool(request.user.has_perm(f"{app}.view_{model}"))
