"""Training runs in the admin."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern, reverse
from django.utils.html import format_html

from captioner.admin.base import STYLES, Empty, OwnPage, each
from captioner.admin.plots import COLOURS, score_bars
from captioner.admin.scores import colours_of
from captioner.admin.versions import MapperVersionAdmin
from captioner.jobs.job import Status
from captioner.models import MapperVersion
from captioner.services import verdict_sentence
from clipcap.evaluation.names import NAMES
from training import services
from training.admin.loss import loss_curves
from training.dashboard import standing
from training.models import EpochReport, TrainingRun
from training.options import OF_A_NEW_MAPPER


@admin.register(TrainingRun)
class TrainingRunAdmin(OwnPage):
    """Retrainings, live."""

    when_empty = Empty("No runs yet: [choose a style] that has examples, and train it.", STYLES)
    list_display = ("__str__", "style", "status", "verdict", "version", "examples", "person", "created_at")
    list_filter = ("status", "verdict", "style")
    list_select_related = ("style", "person", "version__style")
    actions = ("cancel_chosen",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[TrainingRun]:
        return light(super().get_queryset(request))

    def has_steer_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("training.change_trainingrun")

    @admin.action(description="Cancel", permissions=["steer"])
    def cancel_chosen(self, request: HttpRequest, queryset: QuerySet[TrainingRun]) -> None:
        each(request, queryset, services.cancel_run, "runs were canceled")

    def get_urls(self) -> list[URLPattern]:
        """With the live part of a run's page and its buttons."""
        change = "training.change_trainingrun"
        return [
            self.route("<int:pk>/live/", self.live, "live", "training.view_trainingrun"),
            self.route("<int:pk>/cancel/", self.cancel, "cancel", change, "POST"),
            self.route("<int:pk>/resume/", self.resume, "resume", change, "POST"),
            *super().get_urls(),
        ]

    def show(self, request: HttpRequest, pk: int) -> HttpResponse:
        """A run from its queueing to its verdict."""
        run = self.viewed(request, pk, RUNS)
        title = f"Run {run.pk} of {run.style}"
        return self.page(request, "admin/training/run.html", title, up=run.style, **_run_context(run))

    def live(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """How it stands now, to be swapped in."""
        services.rescue_stale()
        return self.page(request, "admin/training/run_live.html", "", **_run_context(self.viewed(request, pk, RUNS)))

    def cancel(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Cancel an unfinished run."""
        return self.done(request, services.cancel_run(self.viewed(request, pk)), "the run was canceled")

    def resume(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Queue a stopped run again, to go on from its last checkpoint."""
        return self.done(request, services.resume_run(self.viewed(request, pk)), "the run was queued again")


RUNS = TrainingRun.objects.select_related("style", "person", "version__style", "base__style")


def light(runs: QuerySet[TrainingRun]) -> QuerySet[TrainingRun]:
    """Runs for a list, without what only their pages show."""
    return runs.defer("curve", "comparison", "metrics", "progress")


def _run_context(run: TrainingRun) -> dict[str, Any]:
    reports = list(run.reports.all())
    report = run.report
    candidate, baseline = (found.scores if found else {} for found in (report.candidate, report.active))
    baseline_name = report.active_version or "in service"
    candidate_name = str(run.version or "candidate")
    shown = {metric: name for metric, name in NAMES.items() if metric in candidate}
    title, colours = "Scores on the held-out images", _colours(run, baseline_name, candidate_name)
    both = {candidate_name: candidate, baseline_name: baseline}
    drawn = {
        name: {who: scores[metric] for who, scores in both.items() if metric in scores}
        for metric, name in shown.items()
    }
    return {
        "run": run,
        "report": report,
        "sentence": verdict_sentence(f"v{run.version.number}" if run.version else "its version", report),
        "prospect": None if run.finished else services.prospect(run.style, run.chosen, run.last_example),
        "standing": standing(run),
        "steerable": run.status in (Status.FAILED, Status.CANCELED),
        "curves": loss_curves(run.loss_curve.points, [(r.step, r.training_loss, r.validation_loss) for r in reports]),
        "reports": reports,
        "kept": min(reports, key=lambda r: (r.validation_loss, r.epoch)).epoch if reports else None,
        "samples": _samples(reports),
        "events": run.events.order_by("-pk")[:30],
        "scores": [(name, candidate[metric], baseline.get(metric)) for metric, name in shown.items()],
        "bars": score_bars(drawn, title, colours) if drawn else "",
        "baseline_name": baseline_name,
        "options": _options(run),
        "in_service": run.version is not None and run.style.version_in_service == run.version,
    }


def _colours(run: TrainingRun, baseline: str, candidate: str) -> dict[str, int]:
    """Of both, as everywhere; a candidate without a number gets the next one's."""
    versions = list(run.style.versions.select_related("style").order_by("number"))
    filed = [version for version in versions if str(version) in (baseline, candidate)]
    known = colours_of(filed)
    number = versions[-1].number + 1 if versions else 1
    for name in (baseline, candidate):
        if name not in known:
            known[name] = next(
                colour for place in range(COLOURS) if (colour := (number + place) % COLOURS) not in known.values()
            )
    return known


def _link_to_run(request: HttpRequest, version: MapperVersion) -> str:
    """From a version's page to the run that made it."""
    run = TrainingRun.objects.filter(version=version).first()
    if run is None or not request.user.has_perm("training.view_trainingrun"):
        return ""
    return format_html('<a href="{}">run {}</a>', reverse("admin:training_trainingrun_change", args=[run.pk]), run.pk)


MapperVersionAdmin.links.append(_link_to_run)


def _options(run: TrainingRun) -> dict[str, Any]:
    """Its options, without those that say nothing of a run from an earlier version."""
    silent = OF_A_NEW_MAPPER if run.base_id else ()
    return {name: value for name, value in asdict(run.chosen).items() if name not in silent}


def _samples(reports: list[EpochReport]) -> list[dict[str, Any]]:
    """For each of the held-out photos, what was written about it from epoch to epoch, repetitions merged, the
    newest first."""
    photos: dict[str, dict[str, Any]] = {}
    for report in reports:
        for sample in report.samples:
            photo = photos.setdefault(sample["image"], {**sample, "texts": []})
            texts = photo["texts"]
            if texts and texts[-1]["text"] == sample["text"]:
                texts[-1]["last"] = report.epoch
            else:
                texts.append({"first": report.epoch, "last": report.epoch, "text": sample["text"]})
    for photo in photos.values():
        photo["texts"].reverse()
    return list(photos.values())
