"""The numbers of the dashboard. Each is read by an index, however many captions there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.core.cache import cache
from django.db.models import Case, Count, Q, Value, When
from django.urls import reverse
from django.utils import timezone

from captioner.admin.base import counted, many, since
from captioner.jobs.job import Job, Status
from captioner.models import BaseModels, Caption, Draft, MapperVersion, Queue, Worker

HOURS = 24
FAILURES = 10  # shown of the last day


@dataclass(frozen=True)
class Hour:
    """What became of the captions that were asked for in an hour."""

    begins: datetime
    succeeded: int
    failed: int
    other: int


@dataclass(frozen=True)
class QueueState:
    """A queue with its workers. `pause` is None where it never was paused; `waits_for` are the base models in service
    if none of the workers has loaded them."""

    name: str
    queued: str
    running: str
    workers: list[Worker]
    pause: Queue | None
    waits_for: BaseModels | None


@dataclass(frozen=True)
class FailedJob:
    """A job that failed, and the button that has it done after all.

    title: what it was.
    button: its words.
    action: name of the page of its admin that the button leads to.
    """

    job: Job
    title: str
    button: str
    action: str

    @property
    def page(self) -> str:
        """The URL of its own page."""
        return self._url("change")

    @property
    def remedy(self) -> str:
        """The URL of the button."""
        return self._url(self.action)

    @property
    def permission(self) -> str:
        """The one that pressing it takes."""
        return f"{self.job._meta.app_label}.change_{self.job._meta.model_name}"

    @property
    def id(self) -> str:
        """The HTML id of the button."""
        return f"{self.action}-{self.job._meta.model_name}-{self.job.pk}"

    def _url(self, page: str) -> str:
        return reverse(f"admin:{self.job._meta.app_label}_{self.job._meta.model_name}_{page}", args=[self.job.pk])


def captions_per_hour() -> list[Hour]:
    """The last 24 hours, the oldest first; counted every ten seconds at most."""
    counted: list[Hour] = cache.get_or_set("captions-per-hour", _count_hours, timeout=10)  # type: ignore[assignment]
    return counted


def queue(name: str, queued: int, running: int) -> QueueState:
    """The state of a queue in which so many are queued and running."""
    workers, in_service = list(Worker.objects.alive(name)), BaseModels.in_service()
    idle = in_service is not None and bool(workers) and not any(worker.has_loaded(in_service) for worker in workers)
    pause = Queue.objects.filter(name=name, paused=True).first()
    return QueueState(name, many(queued), many(running), workers, pause, in_service if idle else None)


def waiting_captions() -> tuple[int, int]:
    """How many captions and drafts are queued and running, as far as `counted` counts."""
    queued, running = (
        sum(counted(job.objects.filter(status=status)) for job in (Caption, Draft))
        for status in (Status.QUEUED, Status.RUNNING)
    )
    return queued, running


def workers() -> list[Worker]:
    """All that were heard from in the last day, each with `alive`, its `duty` and how long ago that was."""
    found = tell_duties(Worker.objects.all())
    alive = set(Worker.objects.alive().values_list("pk", flat=True))
    for worker in found:
        worker.alive = worker.pk in alive  # type: ignore[attr-defined]
        worker.heard = since(worker.seen_at)  # type: ignore[attr-defined]
    return found


def tell_duties(workers: Iterable[Worker]) -> list[Worker]:
    """The workers, each with its `duty`: which base models it has loaded, and what that means for it."""
    in_service, known, found = BaseModels.in_service(), list(BaseModels.objects.order_by("pk")), list(workers)
    for worker in found:
        base = next((one for one in known if one.is_loaded_by(worker.encoder, worker.language_model)), None)
        worker.duty = _duty(worker, base, in_service)  # type: ignore[attr-defined]
    return found


def _duty(worker: Worker, base: BaseModels | None, in_service: BaseModels | None) -> str:
    if base is None or in_service is None:  # an older release does not tell
        return ""
    if base == in_service:
        return "in service"
    stands = "being prepared" if base.preparing else "not in service"
    return f"number {base.pk}, {stands}{': it writes no captions' if worker.queue == 'captions' else ''}"


def versions_in_service() -> dict[int, MapperVersion]:
    """The version in service, by style."""
    return {version.style_id: version for version in MapperVersion.objects.in_service().select_related("style")}


def score(version: MapperVersion | None, metric: str = "CIDEr") -> float | None:
    """What a version reached on the held-out images, as far as anyone has looked."""
    return version.report.score(metric) if version else None


def failed_captions() -> list[FailedJob]:
    """The newest of the last day that failed, the last failure first."""
    recent = Caption.objects.filter(status=Status.FAILED, created_at__gt=timezone.now() - timedelta(days=1))
    newest = recent.select_related("style").order_by("-created_at")[:FAILURES]
    captions = sorted(newest, key=lambda caption: caption.finished_at or caption.created_at, reverse=True)
    return [FailedJob(c, f"{c.name or 'Caption'}, {c.style}", "Try again", "retry") for c in captions]


def _count_hours() -> list[Hour]:
    now = timezone.now().replace(minute=0, second=0, microsecond=0)
    hours = [now - timedelta(hours=HOURS - 1 - i) for i in range(HOURS)]
    # By comparisons, since SQLite calls Python to truncate a time; and by the hour alone, or it would read all captions
    # in the order of an index of statuses.
    hour = Case(
        *(When(created_at__lt=end, then=Value(number)) for number, end in enumerate(hours[1:])),
        default=Value(HOURS - 1),
    )
    captions = Caption.objects.filter(created_at__gte=hours[0]).order_by().values_list(hour)
    of_status = {status: Count("pk", filter=Q(status=status)) for status in (Status.SUCCEEDED, Status.FAILED)}
    rows = {row[0]: row[1:] for row in captions.annotate(**of_status, all=Count("pk"))}
    counts = [rows.get(number, (0, 0, 0)) for number in range(HOURS)]
    return [
        Hour(begins, done, failed, every - done - failed)
        for begins, (done, failed, every) in zip(hours, counts, strict=True)
    ]
