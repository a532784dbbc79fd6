"""Preparing base models: every style is retrained for them, and compared with today's version, while that stays
in service."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from django.core.cache import cache
from django.db import transaction

from captioner import audit
from captioner import services as captioner_services
from captioner.errors import Refused
from captioner.jobs.job import UNFINISHED, Status
from captioner.models import BaseModels, Embedding, MapperVersion, Style, Worker
from training.models import Example, RefusedRun, TrainingRun
from training.options import RunOptions
from training.services.examples import dataset
from training.services.runs import cancel_run, resume_run, start_run

LONGEST_SOURCE = 500  # characters
LOOK = 60  # seconds after which workers look after what is being prepared


@dataclass(frozen=True)
class StyleMove:
    """How far a style is on its way to other base models.

    today: the version in service.
    new: the one in service once these models are; None while there is none.
    run: the newest for these models.
    detail: what becomes of it, in words.
    """

    style: Style
    today: MapperVersion
    new: MapperVersion | None
    run: TrainingRun | None
    detail: str


@dataclass(frozen=True)
class Preparation:
    """How far base models are prepared: workers that have loaded them, by queue; photos of the datasets, and those of
    them embedded; and the styles in service."""

    base: BaseModels
    workers: dict[str, int]
    photos: int
    embedded: int
    styles: list[StyleMove]

    @property
    def missing(self) -> list[Style]:
        """The styles that a cut-over now would take out of service."""
        return [move.style for move in self.styles if move.new is None]


def prepare_base(*, encoder: str, language_model: str, person: Any = None) -> BaseModels:
    """Prepare base models: once a worker has loaded them, each style in service is retrained for them. Captions go on
    with those in service. Called again, for what was canceled or has failed, it goes on from there.

    Args:
        encoder, language_model: named as the settings CLIPCAP_ENCODER and CLIPCAP_LANGUAGE_MODEL name them.

    Raises:
        Refused: a name is missing or too long, these are in service already, or no worker has recorded what is.
    """
    names = {"encoder": encoder.strip(), "language_model": language_model.strip()}
    for field, name in names.items():
        if not 1 <= len(name) <= LONGEST_SOURCE:
            raise Refused(
                f"invalid_{field}",
                f"name the {field.replace('_', ' ')} in 1 to {LONGEST_SOURCE} characters, as the setting "
                f"CLIPCAP_{field.upper()} does",
                status=422,
                field=field,
            )
    if BaseModels.in_service() is None:
        raise Refused(
            "nothing_in_service",
            "no worker has recorded yet which base models are in service; start one with today's models first",
            status=409,
        )
    sources = {f"{field}_source": name for field, name in names.items()}
    base = BaseModels.objects.filter(**sources).first() or BaseModels(**sources, person=person)
    return resume_preparation(base=base, person=person)


def resume_preparation(*, base: BaseModels, person: Any = None) -> BaseModels:
    """Prepare base models that are on record, or go on with it: runs that failed or were canceled are resumed.

    Raises:
        Refused: they are in service already.
    """
    if base.pk and base.is_in_service:
        raise Refused("already_in_service", f"{base} are in service already", status=409)
    with transaction.atomic():
        base.preparing = True
        base.save()
        audit.record(audit.Action.TRAINED, "base models", f"preparing {base}", person)
    for run in _newest_runs(base).values():
        if run.status in (Status.FAILED, Status.CANCELED):
            try:
                resume_run(run)
            except Refused:  # another run of the style is in its way, say; the page says how it stands
                continue
    advance_preparations()
    return base


def cancel_preparation(*, base: BaseModels, person: Any = None) -> None:
    """Stop preparing base models: unfinished runs for them are canceled; what is there is kept, to go on from.

    Raises:
        Refused: they are not being prepared.
    """
    with transaction.atomic():
        if not BaseModels.objects.filter(pk=base.pk, preparing=True).update(preparing=False):
            raise Refused("not_preparing", f"{base} are not being prepared", status=409)
        audit.record(audit.Action.TRAINED, "base models", f"no longer preparing {base}", person)
    base.preparing = False
    for run in TrainingRun.objects.filter(base_models=base, status__in=UNFINISHED):
        try:
            cancel_run(run)
        except Refused:  # it has just finished
            continue


def advance_preparations_each_minute() -> int:
    """As `advance_preparations`, but once a minute at most: for the workers, which call it all the time."""
    return advance_preparations() if cache.add("preparations-advanced", True, timeout=LOOK) else 0


def advance_preparations() -> int:
    """Queue the runs that base models in preparation still need, with drafts of today's versions to compare with. Safe
    to call by anyone, at any time.

    Returns:
        How many runs were queued.
    """
    started = 0
    for base in BaseModels.objects.filter(preparing=True).exclude(encoder=""):
        begun, refused = _newest_runs(base), []
        for style in captioner_services.styles_without(base):
            today = style.version_in_service
            if style.pk in begun or today is None:
                continue
            try:
                _start(base, style, today)
                started += 1
            except Refused as error:  # it is tried again
                refused.append(RefusedRun(base_models=base, style=style, detail=error.detail))
        _record(base, refused)
    return started


def _record(base: BaseModels, refused: list[RefusedRun]) -> None:
    """Let these be the refusals of the base models, also where another worker does the same at the same time."""
    with transaction.atomic():
        base.refused_runs.exclude(style__in=[run.style_id for run in refused]).delete()
        RefusedRun.objects.bulk_create(
            refused, update_conflicts=True, unique_fields=["base_models", "style"], update_fields=["detail"]
        )


def _start(base: BaseModels, style: Style, today: MapperVersion) -> None:
    made_by = TrainingRun.objects.filter(version=today).first()
    options = asdict(made_by.chosen if made_by else RunOptions())
    mapper = asdict(today.mapper)
    kept = ("prefix_length", "layers", "rank", "targets")
    shape = {name: mapper[name] for name in kept if mapper[name] is not None}
    learns = {"mapper": today.mapper.kind, "language_model": today.mapper.language_model}
    with transaction.atomic():
        run = start_run(
            style=style,
            options={**options, **shape, **learns, "start": "scratch"},
            person=base.person,
            reason="new base models",
            base_models=base,
        )
        held_out = dataset(style, run.chosen, run.last_example).filter(held_out=True)
        images = list(held_out.order_by("image").values_list("image", flat=True).distinct())
        captioner_services.ask_for_drafts(version=today, images=images, person=base.person)


def progress(base: BaseModels) -> Preparation:
    """How far base models are prepared."""
    alive = [worker for worker in Worker.objects.alive() if base.encoder and worker.has_loaded(base)]
    runs = _newest_runs(base)
    in_service = {version.style_id: version for version in MapperVersion.objects.in_service().select_related("style")}
    new = {version.style_id: version for version in MapperVersion.objects.in_service(base).select_related("style")}
    refusals = dict(base.refused_runs.values_list("style", "detail")) if base.pk else {}
    photos = Example.objects.filter(style__in=captioner_services.styles_in_service()).values("image")
    embedded = (
        Embedding.objects.filter(encoder=base.encoder, image__in=photos) if base.encoder else Embedding.objects.none()
    )
    return Preparation(
        base,
        {queue: sum(worker.queue == queue for worker in alive) for queue in ("captions", "training")},
        photos.distinct().count(),
        embedded.count(),
        [
            StyleMove(
                style,
                in_service[style.pk],
                new.get(style.pk),
                runs.get(style.pk),
                _told(base, new.get(style.pk), runs.get(style.pk), refusals.get(style.pk)),
            )
            for style in captioner_services.styles_in_service()
        ],
    )


def _newest_runs(base: BaseModels) -> dict[int, TrainingRun]:
    if base.pk is None:
        return {}
    rows = TrainingRun.objects.filter(base_models=base).order_by("pk").select_related("style", "version__style")
    return {run.style_id: run for run in rows.defer("curve", "comparison")}


def _told(base: BaseModels, new: MapperVersion | None, run: TrainingRun | None, refusal: str | None) -> str:
    if run and (run.status in UNFINISHED or not new):
        return f"{run}: {run.status}{f', {run.error_detail}' if run.error_detail else ''}"
    if new:
        return captioner_services.verdict_of(new)
    if not base.encoder:
        return "waits for a worker that loads these models"
    return refusal or "no run has been queued for it"
