"""Training runs: start, cancel and resume them."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Max

from captioner import audit
from captioner import services as captioner_services
from captioner.errors import Refused
from captioner.jobs.job import clock, queued_at
from captioner.models import BaseModels, MapperVersion, Style, Worker
from captioner.reports import Capacity
from clipcap.choices import OptionError
from training import memory
from training.models import RunEvent, TrainingRun
from training.options import OPTIONS, RunOptions
from training.services.examples import LEAST_HELD_OUT, LEAST_TRAINING, count_photos, dataset
from training.services.waiting import RUN_DEADLINE, queue_again, rescue_stale, wake_workers


def run_options(given: dict[str, Any]) -> RunOptions:
    """The options of a run, checked.

    Raises:
        Refused: an option that does not exist or has no sense.
    """
    unknown = [name for name in given if name not in OPTIONS]
    if unknown:
        raise Refused(
            "invalid_options", f"unknown option {unknown[0]!r}; the options are {', '.join(OPTIONS)}", status=422
        )
    values = dict(given)
    if isinstance(values.get("sources"), list):
        values["sources"] = tuple(values["sources"])
    try:
        return RunOptions(**values)
    except OptionError as error:
        raise Refused("invalid_options", str(error), status=422, field=error.name) from error


def start_run(
    *,
    style: Style,
    options: dict[str, Any] | None = None,
    person: Any = None,
    reason: str = "",
    idempotency_key: str | None = None,
    base_models: BaseModels | None = None,
) -> TrainingRun:
    """Queue a retraining of a style; wake the training workers on commit.

    Args:
        base_models: what it trains for; None for those in service.

    Raises:
        Refused: options without sense or for more memory than any training worker has, too few examples, nothing to
            start from, a run of this style unfinished, or the style is archived.
    """
    chosen = run_options(options or {})
    if earlier := _started_before(style, person, idempotency_key, chosen):
        return earlier
    base_models = base_models or BaseModels.in_service()
    base = style.starting_version_on(base_models)
    if chosen.start == "active":
        if base is None:
            raise Refused(
                "no_active_version",
                f"{style.name} has no version in service to start from; start from scratch, or choose in its settings "
                "which style it starts from",
                status=409,
            )
        if not base.file.storage.exists(str(base.file.name)):
            raise Refused("file_missing", f"the file of {base} is gone; start from scratch", status=409)
    examples = dataset(style, chosen)
    photos = count_photos(examples)
    if not photos.enough:
        raise Refused(
            "too_few_examples",
            f"{style.name} has captions of {photos.training} images to train on and {photos.held_out} held out; at "
            f"least {LEAST_TRAINING} and {LEAST_HELD_OUT} are needed: import more, or take people's corrections",
            status=409,
        )
    start = base if chosen.start == "active" else None
    _check_memory(chosen, start, photos.training + photos.held_out, base_models)
    rescue_stale()  # a run that a lost worker left behind is in nobody's way
    newest = examples.aggregate(newest=Max("pk"))["newest"]
    now = clock("default")
    try:
        with transaction.atomic():
            captioner_services.check_not_archived(style)
            run = TrainingRun.objects.create(
                style=style,
                options=chosen.to_json(),
                base=start,
                base_models=base_models,
                last_example=newest,
                examples=examples.count(),
                person=person,
                reason=reason,
                idempotency_key=idempotency_key,
                **queued_at(now, now + RUN_DEADLINE),
            )
            RunEvent.objects.create(run=run, message=f"queued with {run.examples} examples")
            audit.record(audit.Action.TRAINED, f"style {style}", f"{run} started {reason}".strip(), person)
            transaction.on_commit(wake_workers)
    except IntegrityError as error:
        if earlier := _started_before(style, person, idempotency_key, chosen):
            return earlier
        raise Refused(
            "run_in_progress", f"a run of {style.name} is unfinished; wait for it or cancel it", status=409
        ) from error
    return run


def _started_before(style: Style, person: Any, key: str | None, options: RunOptions) -> TrainingRun | None:
    """The run that the same person started with the same key within a day.

    Raises:
        Refused: that had other options.
    """
    if not key:
        return None
    same = TrainingRun.objects.filter(style=style, person=person, idempotency_key=key)
    same.filter(created_at__lt=clock("default") - captioner_services.IDEMPOTENCY).update(idempotency_key=None)
    earlier = same.first()
    if earlier and earlier.chosen != options:
        raise Refused("idempotency_key_reused", "this Idempotency-Key was used with other options", status=422)
    return earlier


def _check_memory(options: RunOptions, base: MapperVersion | None, images: int, base_models: BaseModels | None) -> None:
    able = [w for w in Worker.objects.alive("training") if base_models is None or w.has_loaded(base_models)]
    capacities = [Capacity.read(w.capacity) for w in able if w.capacity]
    if not capacities:  # nobody to tell; what is too much shows when the run begins
        return
    largest = max(capacities, key=lambda capacity: capacity.memory_mb)
    learning = memory.shape_of(options, base)[1]
    needed = memory.of_run(options, base, largest, images, recompute=options.recompute != "no")
    if needed > largest.memory_mb:
        raise Refused(
            "too_little_memory",
            f"this run would take about {needed / 1024:.1f} GB of memory, and the largest training worker has "
            f"{largest.memory_mb / 1024:.1f}; raise accumulation, or lower batch_size"
            f"{'' if base else ', prefix_length or layers'}{', or let it recompute' * (options.recompute == 'no')}"
            f"{', or train adapters in place of the whole language model' if learning == 'finetuned' else ''}",
            status=422,
        )


def cancel_run(run: TrainingRun) -> TrainingRun:
    """Cancel a queued or running run; its worker stops within seconds, and its checkpoints are kept.

    Raises:
        Refused: it has finished.
    """
    with transaction.atomic():
        if not TrainingRun.objects.filter(pk=run.pk).cancel():
            raise Refused("already_finished", f"{run} cannot be canceled, its status is {run.status}", status=409)
        RunEvent.objects.create(run=run, message="canceled")
        audit.record(audit.Action.TRAINED, f"style {run.style}", f"{run} canceled")
    run.refresh_from_db()
    return run


def resume_run(run: TrainingRun) -> TrainingRun:
    """Queue a failed or canceled run again; it goes on from its last checkpoint.

    Raises:
        Refused: it has neither failed nor been canceled, another run of the style is unfinished, or the style is
            archived.
    """
    try:
        with transaction.atomic():
            captioner_services.check_not_archived(run.style)
            queue_again(run, "runs")
            RunEvent.objects.create(run=run, message="resumed")
            audit.record(audit.Action.TRAINED, f"style {run.style}", f"{run} resumed")
            transaction.on_commit(wake_workers)
    except IntegrityError as error:
        raise Refused(
            "run_in_progress", f"another run of {run.style.name} is unfinished; wait for it or cancel it", status=409
        ) from error
    run.refresh_from_db()
    return run


def run_folder(run: TrainingRun) -> Any:
    """Where a run keeps its state and its best mapper while it is trained."""
    return settings.HOME / "runs" / str(run.pk)
