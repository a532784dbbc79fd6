"""What a run has made against the version in service, on the held-out photos: scores, verdict, largest differences.

A run for base models out of service is compared with the version in service, which this worker cannot load: caption
workers with the models of that version write about the photos, in drafts.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from django.conf import settings
from django.db import transaction

from captioner import services as captioner_services
from captioner.errors import cause_of
from captioner.inference.engine import CaptionEngine
from captioner.inference.model_cache import NoRoom
from captioner.jobs.job import Failure
from captioner.models import BaseModels, Draft, MapperVersion, Worker
from captioner.reports import Evaluated, VersionReport
from captioner.workers.worker_process import retry_on_lost_database
from clipcap.checkpoint import CheckpointError
from clipcap.evaluation.comparison import LEAST_JUDGED, paired_bootstrap, verdict
from clipcap.evaluation.metrics import Evaluation, evaluate
from clipcap.evaluation.names import metric_name
from clipcap.model import ClipCaptionModel
from clipcap.training import CaptionedImages
from training.examples import Unavailable, captions_of
from training.models import Policy, TrainingRun
from training.reports import ComparedPhoto

SHOWN = 24  # held-out images of a comparison
PAUSE = 0.5  # seconds between two looks at drafts
Phase = Callable[[str, int, int], None]


def in_service(run: TrainingRun) -> MapperVersion | None:
    """The version that a run's is compared with: that in service, on the run's base models where there is one."""
    return run.style.version_on(run.base_models) or run.style.version_in_service


def is_first_on_its_base(run: TrainingRun) -> bool:
    """Whether what a run has made is to be in service as soon as its base models are: there is no other yet. To be
    asked under the lock of the style."""
    base = run.base_models
    return base is not None and not base.is_in_service and run.style.version_on(base) is None


def compare(
    models: CaptionEngine,
    run: TrainingRun,
    candidate: ClipCaptionModel,
    baseline: MapperVersion | None,
    held_out: CaptionedImages,
    *,
    phase: Phase,
    check: Callable[[], None],
    warn: Callable[[str], None],
) -> tuple[VersionReport, list[ComparedPhoto], TrainingRun.Verdict]:
    """Scores of both, the photos on which they differ most, and the gate's verdict.

    Args:
        phase, check: called now and then; what they raise ends it.
        warn: is given the reason why the gate cannot judge.

    Raises:
        Unavailable: there is no memory for the version in service.
    """
    references = dict(zip(held_out.names, held_out.captions, strict=True))
    total = len(held_out.names) * (2 if baseline else 1)

    def written(model: ClipCaptionModel, before: int) -> dict[str, str]:
        vectors = held_out.embeddings[:, 0]
        texts = captions_of(models.captioner, model, vectors, lambda done: phase("evaluating", before + done, total))
        return dict(zip(held_out.names, texts, strict=True))

    def scored(captions: dict[str, str]) -> Evaluation:
        return evaluate(captions, references, java_metrics=settings.JAVA_METRICS, check=check)

    captions = written(candidate, 0)
    evaluation = scored(captions)
    report = VersionReport(images=len(references), candidate=_summary(evaluation))
    if baseline is None:
        return report, [], TrainingRun.Verdict.FIRST
    if baseline.base_models not in (None, models.base()):
        old = _drafts(baseline, held_out.names, partial(phase, "evaluating"))
        if len(old) < len(references):
            warn(
                f"{baseline}, which is in service on other base models, wrote about {len(old)} of {len(references)} "
                "held-out photos only, so the gate cannot judge; keep a caption worker with those models running"
            )
            return report, [], TrainingRun.Verdict.UNCLEAR
    else:
        try:
            opponent = models.mappers.load(baseline)
        except NoRoom as error:  # another worker may have the memory
            raise Unavailable(Failure("out_of_memory", str(error))) from error
        except (CheckpointError, OSError, ValueError) as error:
            warn(f"{baseline}, which is in service, cannot be loaded for a comparison: {cause_of(error)}")
            return report, [], TrainingRun.Verdict.UNCLEAR
        old = written(opponent, len(references))
    other = scored(old)
    policy = Policy.objects.filter(style=run.style).first() or Policy(style=run.style)
    judged = policy.metric in evaluation.per_item and policy.metric in other.per_item
    metric = policy.metric if judged else "CIDEr"
    mine, theirs = evaluation.per_item[metric], other.per_item[metric]
    difference = paired_bootstrap(mine, theirs)
    report = replace(
        report,
        active=_summary(other),
        active_version=str(baseline),
        metric=metric,
        margin=policy.margin,
        difference=difference,
    )
    largest = sorted(references, key=lambda image: -abs(mine[image] - theirs[image]))[:SHOWN]
    photos = [
        ComparedPhoto(
            image=image,
            candidate=captions[image],
            active=old[image],
            references=list(references[image]),
            scores=[round(mine[image], 4), round(theirs[image], 4)],
        )
        for image in largest
    ]
    judgement = TrainingRun.Verdict(verdict(difference, policy.margin, len(references)))
    if not judged:
        warn(f"{metric_name(policy.metric)} was not computed, so the gate cannot judge")
        judgement = TrainingRun.Verdict.UNCLEAR
    elif len(references) < LEAST_JUDGED:
        warn(captioner_services.too_few(len(references)))
    return report, photos, judgement


def _drafts(version: MapperVersion, names: Sequence[str], report: Callable[[int, int], None]) -> dict[str, str]:
    """What caption workers with a version's models write about photos, as far as they can. Most of it is there
    already: it was asked for when the run was queued."""
    images = [uuid.UUID(name) for name in names]

    def ask() -> None:
        with transaction.atomic():
            captioner_services.ask_for_drafts(version=version, images=images)

    retry_on_lost_database(ask)
    while (left := _unwritten(version, images)) and _can_write(version):
        report(len(images) - left, len(images))
        time.sleep(PAUSE)
    return {str(image): text for image, text in captioner_services.drafted(version, images).items()}


def _unwritten(version: MapperVersion, images: list[uuid.UUID]) -> int:
    waiting = Draft.objects.unfinished().filter(version=version, caption=None)
    return len(set(waiting.values_list("image", flat=True)) & set(images))


def _can_write(version: MapperVersion) -> bool:
    """Whether a caption worker lives that has loaded a version's models."""
    base = version.base_models or BaseModels.in_service()
    return any(base is None or worker.has_loaded(base) for worker in Worker.objects.alive("captions"))


def _summary(evaluation: Evaluation) -> Evaluated:
    return Evaluated(
        scores={name: round(value, 4) for name, value in evaluation.scores.items()},
        not_computed=evaluation.not_computed,
        distinct=round(evaluation.distinct, 4),
        mean_length=round(evaluation.mean_length, 2),
    )
