"""What the dashboard and a run's page show about runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Count, Q
from django.utils import timezone

from captioner.admin.base import duration
from captioner.admin.dashboard import FailedJob
from captioner.jobs.job import Status
from training.models import Import, TrainingRun
from training.reports import RunProgress

FAILURES = 5  # of each kind
PHASES = {
    "reading": "reading the examples",
    "embedding": "encoding the photos",
    "tokenizing": "tokenizing the captions",
    "training": "training",
    "evaluating": "comparing on the held-out photos",
    "finished": "finished",
}


@dataclass(frozen=True)
class RunInProgress:
    """How far a run is, for people."""

    run: TrainingRun
    phase: str
    step: int
    steps: int
    eta: str
    speed: str
    rate: str


def standing(run: TrainingRun) -> RunInProgress:
    """How far a run is."""
    progress = RunProgress.read(run.progress if run.status == Status.RUNNING else {})
    phase = PHASES.get(progress.phase) or run.get_status_display().lower()
    eta, speed, rate = progress.eta_seconds, progress.samples_per_second, progress.learning_rate
    return RunInProgress(
        run,
        phase,
        progress.step or 0,
        progress.steps or 0,
        f"at most {duration(eta)} left" if eta else "",
        f"{speed:,.0f} captions/s" if speed else "",
        f"{rate:.2g}" if rate else "",
    )


def runs_in_progress() -> list[RunInProgress]:
    """The unfinished runs."""
    return [standing(run) for run in TrainingRun.objects.unfinished().select_related("style", "person")]


def failed_runs() -> list[FailedJob]:
    """Those that failed in the last day."""
    return [FailedJob(run, f"Run {run.pk} of {run.style}", "Resume", "resume") for run in _failed(TrainingRun)]


def failed_imports() -> list[FailedJob]:
    """Those that failed in the last day."""
    return [FailedJob(batch, f"Import of {batch}", "Resume", "resume") for batch in _failed(Import)]


def _failed(job: type[Any]) -> list[Any]:
    recent = job.objects.filter(status=Status.FAILED, finished_at__gt=timezone.now() - timedelta(days=1))
    return list(recent.select_related("style")[:FAILURES])


def waiting() -> tuple[int, int]:
    """How many runs and imports are queued and running."""
    queued, running = 0, 0
    for job in (TrainingRun, Import):
        counts = job._default_manager.aggregate(
            queued=Count("pk", filter=Q(status=Status.QUEUED)), running=Count("pk", filter=Q(status=Status.RUNNING))
        )
        queued, running = queued + counts["queued"], running + counts["running"]
    return queued, running
