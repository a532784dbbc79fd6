"""Everything an administrator can do about examples and training runs, one function each.

The API, the admin and the commands call these. Errors are `Refused`. This module loads no torch; the work is done by
the training worker (training/worker.py), which is rung on commit.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.cache import cache
from django.core.files.base import File
from django.db import IntegrityError, transaction
from django.db.models import Exists, Max, OuterRef, QuerySet
from django.utils import timezone

from captioner import audit, bells, storage
from captioner import services as captioner_services
from captioner.errors import Refused
from captioner.jobs import UNFINISHED, Status, clock
from captioner.models import Correction, Image, MapperVersion, Style, Worker
from clipcap.words import has_word
from training import memory
from training.models import Example, Import, Policy, RunEvent, TrainingRun, is_held_out
from training.options import SOURCES, RunOptions
from training.splits import settle

LEAST_TRAINING, LEAST_HELD_OUT = 8, 2  # images
RUN_DEADLINE = timedelta(days=7)  # to be begun
NIGHT = range(2, 5)  # hours, in the site's time zone
REFUSED_FOR = timedelta(hours=1)  # until a policy whose run was refused is looked at again
PART = 500  # corrections taken in one transaction


def ring() -> None:
    """Wake the training workers."""
    bells.ring("training.ring")


def caption_text(text: str) -> str:
    """A caption as examples keep it: one line, without what no database keeps.

    Raises:
        Refused: it is empty, too long or without a word, or holds what is no character.
    """
    text = " ".join(text.replace("\0", "").split())
    if not 1 <= len(text) <= 500:
        raise Refused("invalid_text", "a caption has between 1 and 500 characters", status=422)
    if not has_word(text):
        raise Refused("invalid_text", "the caption has no word, and nothing can be learned from it", status=422)
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):  # halves of characters, from \u in JSON
        raise Refused("invalid_text", "the caption holds broken characters; write it in UTF-8", status=422)
    return text


def add_example(
    *, style: Style, image: Image, text: str, source: str, correction: Correction | None = None, batch: Any = None
) -> bool:
    """Add an image with a caption to a style's dataset.

    Returns:
        Whether it is new there.

    Raises:
        Refused: as `caption_text`.
    """
    with transaction.atomic():
        _, created = Example.objects.get_or_create(
            style=style,
            image=image,
            text=caption_text(text),
            defaults={
                "source": source,
                "held_out": settle({image.pk: is_held_out(image)}, {})[image.pk],
                "correction": correction,
                "batch": batch,
            },
        )
    return created


def open_corrections(style: Style) -> QuerySet[Correction]:
    """The corrections of a style's captions that nobody has considered yet; of each caption the newest alone."""
    newer = Correction.objects.filter(caption=OuterRef("caption"), pk__gt=OuterRef("pk"))
    return (
        Correction.objects.filter(~Exists(newer), caption__style=style, considered_at=None)
        .select_related("caption__image", "caption__style")
        .order_by("pk")
    )


def take_corrections(corrections: QuerySet[Correction]) -> int:
    """Make examples of people's corrections; what has no word is left out.

    Returns:
        How many are new in their dataset.
    """
    count, last = 0, 0
    while part := list(corrections.filter(pk__gt=last).order_by("pk")[:PART]):
        last = part[-1].pk
        with transaction.atomic():
            for correction in part:
                with suppress(Refused):
                    count += add_example(
                        style=correction.caption.style,
                        image=correction.caption.image,
                        text=correction.text,
                        source=Example.Source.CORRECTION,
                        correction=correction,
                    )
            leave_out(part)
    return count


def leave_out(corrections: Iterable[Correction]) -> int:
    """Consider corrections without making examples of them: "take all" and policies pass them from now on.

    Returns:
        How many nobody had considered before.
    """
    chosen = Correction.objects.filter(pk__in=[correction.pk for correction in corrections], considered_at=None)
    return chosen.update(considered_at=clock("default"))


def start_import(*, style: Style, file: File[bytes], name: str, person: Any = None, holder: str = "") -> Import:
    """Queue a file of examples (see training/datasets/ for what it may be) for import.

    Args:
        holder: who works it off here and now; the import is claimed then, and no training worker sees it.

    Raises:
        Refused: the file is empty, or cannot be stored.
    """
    if not file.size:
        raise Refused("empty_file", "the file is empty; choose another", status=422)
    batch = _import(style, captioner_services.tidy_name(name), person)
    stored = str(uuid.uuid4())  # what it holds is told by its content
    try:
        # Before the transaction, which on SQLite keeps all other writers waiting.
        batch.file.save(stored, file, save=False)
        with transaction.atomic():
            batch.save()
            audit.record(audit.Action.IMPORTED, f"examples for {style}", batch.name, person)
            batch = _claimed(batch, holder)
    except BaseException as error:
        # By its name: a file that could not be written whole is there in part.
        with suppress(OSError):
            batch.file.storage.delete(batch.file.field.generate_filename(batch, stored))
        if isinstance(error, OSError):
            raise Refused(
                "storage_full",
                f"the file could not be stored ({error.strerror or error}); make room and try again",
                status=507,
            ) from error
        raise
    transaction.on_commit(ring)
    return batch


def start_folder_import(*, style: Style, folder: Path, person: Any = None, holder: str = "") -> Import:
    """Queue a folder on the server for import. For its administrators alone: it can be any folder.

    Args:
        holder: as in `start_import`.

    Raises:
        Refused: it is no folder.
    """
    folder = folder.resolve()
    name = str(folder)
    if name.encode(errors="replace").decode() != name:  # it could not be stored
        raise Refused("no_folder", f"the name of {name!r} is not UTF-8; rename it", status=422)
    if not folder.is_dir() or len(name) > 255:
        raise Refused("no_folder", f"{name!r} is no folder that can be read; name another", status=422)
    batch = _import(style, name, person)
    with transaction.atomic():
        batch.save()
        audit.record(audit.Action.IMPORTED, f"examples for {style}", batch.name, person)
        batch = _claimed(batch, holder)
    transaction.on_commit(ring)
    return batch


def _import(style: Style, name: str, person: Any) -> Import:
    now = clock("default")
    return Import(style=style, name=name, person=person, created_at=now, rank_at=now, deadline_at=now + RUN_DEADLINE)


def _claimed(batch: Import, holder: str) -> Import:
    if holder:
        (batch,) = Import.objects.filter(pk=batch.pk).claim(holder, 1)
    return batch


def cancel_import(batch: Import) -> Import:
    """Cancel a queued or running import; the examples that came in stay.

    Raises:
        Refused: it has finished.
    """
    if not Import.objects.filter(pk=batch.pk).cancel():
        raise Refused("already_finished", f"the import has {batch.status} and cannot be canceled", status=409)
    batch.refresh_from_db()
    return batch


def is_there(batch: Import) -> bool:
    """Whether what an import reads is there still: an upload goes when all of it is imported, or with `prune`."""
    if batch.file:
        return bool(batch.file.storage.exists(str(batch.file.name)))
    return Path(batch.name).is_absolute() and Path(batch.name).is_dir()  # no upload's name is absolute


def resume_import(batch: Import, holder: str = "") -> Import:
    """Queue a failed or canceled import again; it goes on behind the last row that was imported.

    Args:
        holder: as in `start_import`.

    Raises:
        Refused: it has neither failed nor been canceled, or its file or folder is gone.
    """
    if batch.status in (Status.FAILED, Status.CANCELED) and not is_there(batch):
        raise Refused(
            "file_missing", "what was to be imported is gone, so this cannot be resumed; send it again", status=409
        )
    with transaction.atomic():
        if not batch.retry(clock("default") + RUN_DEADLINE):
            raise Refused(
                "not_stopped", f"only a failed or canceled import can be resumed; this has {batch.status}", status=409
            )
        batch = _claimed(batch, holder)
    transaction.on_commit(ring)
    batch.refresh_from_db()
    return batch


def prune(older_than: timedelta) -> dict[str, int]:
    """Delete what failed and canceled imports and runs that ended longer ago have left to go on from.

    Returns:
        How many `uploads` and `run folders` were deleted.
    """
    ended = {"status__in": (Status.FAILED, Status.CANCELED), "finished_at__lt": clock("default") - older_than}
    uploads = 0
    for batch in Import.objects.filter(**ended).exclude(file=""):
        name = str(batch.file.name)
        # Its row first, and only if nobody has resumed it meanwhile.
        with transaction.atomic():
            if Import.objects.filter(pk=batch.pk, **ended).update(file=""):
                storage.discard([name])
                uploads += 1
    folders = 0
    for run in TrainingRun.objects.filter(**ended).only("pk"):
        if run_folder(run).exists():
            shutil.rmtree(run_folder(run), ignore_errors=True)
            folders += 1
    return {"uploads": uploads, "run folders": folders}


def run_options(given: dict[str, Any]) -> RunOptions:
    """The options of a run, checked.

    Raises:
        Refused: an option that does not exist or has no sense.
    """
    names = [field.name for field in fields(RunOptions)]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise Refused("invalid_options", f"there is no option {unknown[0]!r}; there are {', '.join(names)}", status=422)
    values = dict(given)
    if isinstance(values.get("sources"), list):
        values["sources"] = tuple(values["sources"])
    if values.get("epochs") == "auto":
        values["epochs"] = 0
    try:
        return RunOptions(**values)
    except (TypeError, ValueError) as error:
        raise Refused("invalid_options", str(error), status=422) from error


def dataset(style: Style, options: RunOptions, last: int | None = None) -> QuerySet[Example]:
    """The examples that a run learns from and is judged by; `last` is the newest that counts."""
    examples = Example.objects.filter(style=style, source__in=options.sources)
    return examples if last is None else examples.filter(pk__lte=last)


def start_run(
    *,
    style: Style,
    options: dict[str, Any] | None = None,
    person: Any = None,
    reason: str = "",
    idempotency_key: str | None = None,
) -> TrainingRun:
    """Queue a retraining of a style; wake the training workers on commit.

    Raises:
        Refused: options without sense or for more memory than any training worker has, too few examples, nothing to
            start from, or a run of this style unfinished.
    """
    chosen = run_options(options or {})
    if earlier := _started_before(style, person, idempotency_key, chosen):
        return earlier
    base = style.active_version
    if chosen.start == "active":
        if base is None:
            raise Refused(
                "no_active_version",
                f"{style.name} has no version in service to go on from; start from scratch",
                status=409,
            )
        if not base.file.storage.exists(str(base.file.name)):
            raise Refused("file_missing", f"the file of {base} is gone; start from scratch", status=409)
    examples = dataset(style, chosen)
    images = {
        held_out: examples.filter(held_out=held_out).values("image").distinct().count() for held_out in (False, True)
    }
    if images[False] < LEAST_TRAINING or images[True] < LEAST_HELD_OUT:
        raise Refused(
            "too_few_examples",
            f"{style.name} has captions of {images[False]} images to train on and {images[True]} held out; at least "
            f"{LEAST_TRAINING} and {LEAST_HELD_OUT} are needed: import more, or take people's corrections",
            status=409,
        )
    _check_memory(chosen, base if chosen.start == "active" else None, sum(images.values()))
    look_after()  # a run that a lost worker left behind is in nobody's way
    newest = examples.aggregate(newest=Max("pk"))["newest"]
    now = clock("default")
    try:
        with transaction.atomic():
            run = TrainingRun.objects.create(
                style=style,
                options=_stored(chosen),
                base=base if chosen.start == "active" else None,
                last_example=newest,
                examples=examples.count(),
                person=person,
                reason=reason,
                idempotency_key=idempotency_key,
                created_at=now,
                rank_at=now,
                deadline_at=now + RUN_DEADLINE,
            )
            RunEvent.objects.create(run=run, message=f"queued with {run.examples} examples")
            audit.record(audit.Action.TRAINED, f"style {style}", f"{run} started {reason}".strip(), person)
            transaction.on_commit(ring)
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
    if earlier and earlier.options != _stored(options):
        raise Refused("idempotency_key_reused", "this Idempotency-Key was used with other options", status=422)
    return earlier


def _check_memory(options: RunOptions, base: MapperVersion | None, images: int) -> None:
    heard = Worker.objects.filter(queue="training", seen_at__gt=clock("default") - timedelta(minutes=2))
    capacities = [worker.capacity for worker in heard if worker.capacity]
    if not capacities:  # nobody to tell; what is too much shows when the run begins
        return
    largest = max(capacities, key=lambda capacity: int(capacity["memory_mb"]))
    new = {"kind": options.mapper, "prefix_length": options.prefix_length, "layers": options.layers}
    needed = memory.megabytes(base.config if base else new, options.batch_size, largest, images)
    if needed > largest["memory_mb"]:
        raise Refused(
            "too_little_memory",
            f"this run would take about {needed / 1024:.1f} GB of memory, and the largest training worker has "
            f"{largest['memory_mb'] / 1024:.1f}; lower batch_size{'' if base else ', prefix_length or layers'}",
            status=422,
        )


def look_after() -> None:
    """Whoever looks at unfinished runs or imports calls this: it ends or queues again what lost workers left behind,
    whether or not a training worker lives that would."""
    if cache.add("training-looked-after", True, timeout=3) and TrainingRun.objects.reap() + Import.objects.reap():
        ring()


def cancel_run(run: TrainingRun) -> TrainingRun:
    """Cancel a queued or running run; its worker stops within seconds, and its checkpoints are kept.

    Raises:
        Refused: it has finished.
    """
    if not TrainingRun.objects.filter(pk=run.pk).cancel():
        raise Refused("already_finished", f"{run} has {run.status} and cannot be canceled", status=409)
    RunEvent.objects.create(run=run, message="canceled")
    audit.record(audit.Action.TRAINED, f"style {run.style}", f"{run} canceled")
    run.refresh_from_db()
    return run


def resume_run(run: TrainingRun) -> TrainingRun:
    """Queue a failed or canceled run again; it goes on from its last checkpoint.

    Raises:
        Refused: it has neither failed nor been canceled, or another run of the style is unfinished.
    """
    try:
        with transaction.atomic():
            if not run.retry(clock("default") + RUN_DEADLINE):
                raise Refused(
                    "not_stopped", f"only a failed or canceled run can be resumed; this has {run.status}", status=409
                )
            RunEvent.objects.create(run=run, message="resumed")
            audit.record(audit.Action.TRAINED, f"style {run.style}", f"{run} resumed")
            transaction.on_commit(ring)
    except IntegrityError as error:
        raise Refused(
            "run_in_progress", f"another run of {run.style.name} is unfinished; wait for it or cancel it", status=409
        ) from error
    run.refresh_from_db()
    return run


def start_due_runs() -> int:
    """Start the runs that policies ask for. Safe to call by anyone, at any time.

    Returns:
        How many were started.
    """
    started = 0
    now = clock("default")
    unfinished = TrainingRun.objects.filter(style=OuterRef("style"), status__in=UNFINISHED)
    patient = Policy.objects.exclude(refused_at__gt=now - REFUSED_FOR)
    for policy in patient.filter(~Exists(unfinished)).select_related("style"):
        reason = _due(policy)
        if not reason:
            if policy.refusal:  # what was to be mended is, or nobody asks any more
                Policy.objects.filter(pk=policy.pk).update(refusal="", refused_at=None)
            continue
        refusal = ""
        try:
            with transaction.atomic():
                take_corrections(open_corrections(policy.style))
                start_run(style=policy.style, reason=reason)
            started += 1
        except Refused as error:  # then nothing was taken; it is tried again later, and the style's page tells why
            refusal = error.detail if error.code != "run_in_progress" else ""
        Policy.objects.filter(pk=policy.pk).update(refusal=refusal, refused_at=now if refusal else None)
    return started


def _due(policy: Policy) -> str:
    """Why a policy asks for a run now; "" if it does not."""
    style, waiting = policy.style, open_corrections(policy.style)
    if policy.after_corrections:
        # Counted since the last run on corrections, of any outcome: one that fails is not begun again and again.
        last = _newest_example(style.runs.all(), {Example.Source.CORRECTION})
        taken = style.examples.filter(source=Example.Source.CORRECTION, pk__gt=last)
        if (count := waiting.count() + taken.count()) >= policy.after_corrections:
            return f"{count} new corrections"
    here = timezone.localtime()
    if policy.every_night and here.hour in NIGHT:
        tonight = here.replace(hour=NIGHT.start, minute=0, second=0, microsecond=0)
        last = _newest_example(style.runs.filter(status=Status.SUCCEEDED), set(SOURCES))
        if not style.runs.filter(created_at__gte=tonight).exists() and (
            waiting.exists() or style.examples.filter(pk__gt=last).exists()
        ):
            return "new examples"
    return ""


def _newest_example(runs: QuerySet[TrainingRun], sources: set[str]) -> int:
    """The newest example that any of the runs could learn from, as far as they took all of these sources."""
    rows = runs.values_list("last_example", "options")
    return max((last for last, options in rows if sources <= set(options["sources"])), default=0)


def run_folder(run: TrainingRun) -> Any:
    """Where a run keeps its state and its best mapper while it is trained."""
    return settings.HOME / "runs" / str(run.pk)


def _stored(options: RunOptions) -> dict[str, Any]:
    return {**asdict(options), "sources": list(options.sources)}
