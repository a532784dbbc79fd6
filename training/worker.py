"""The training worker: imports examples, trains versions of styles (a mapper and, if asked, its language
model or adapters), compares and files them.

It claims like the caption worker does and under the same leases, one piece of work at a time. A run's state lies in
its folder, so whoever claims it next, after a crash or a cancel, goes on from the last checkpoint to the same bytes.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import DatabaseError, connection, transaction

from captioner import services as captioner_services
from captioner.errors import Refused, cause_of, is_full
from captioner.inference.engine import CaptionEngine
from captioner.inference.failures import is_out_of_memory
from captioner.jobs.job import Claim, Job, JobQuerySet
from captioner.models import MapperVersion, Queue, belonging_to
from captioner.reports import VersionReport
from captioner.workers.breaker import Breaker
from captioner.workers.worker_process import WorkerProcess, capacity_of, retry_on_lost_database
from clipcap.checkpoint import CheckpointError
from clipcap.device import check_processes, pick_device
from clipcap.model import ClipCaptionModel
from clipcap.training import (
    STATE,
    CaptionedImages,
    EpochEnd,
    ForeignState,
    Machines,
    Progress,
    TrainingCanceled,
    TrainingError,
    for_trainer,
    new_mapper,
    train_mapper,
    trainable,
)
from training import memory, services
from training.comparison import compare, in_service, is_first_on_its_base
from training.datasets.importer import run_import
from training.examples import Unavailable, captioned_images, captions_of, mapper_config
from training.lengths import too_long
from training.models import EpochReport, Import, Policy, RunEvent, TrainingRun
from training.reports import ComparedPhoto, CurvePoint, RunProgress, Sample

log = logging.getLogger(__name__)

SAMPLES = 12  # held-out photos captioned after every epoch
REPORT_EVERY = 1.0  # seconds between two reports of progress
LONGEST = timedelta(days=7)


class Stopped(Exception):
    """The run was canceled or given to another worker, or this process has to end."""


class TrainingEngine:
    """The loaded models, and the run or import in hand."""

    def __init__(
        self,
        models: CaptionEngine,
        stopping: Callable[[], bool] = lambda: False,
        machines: Machines | None = None,
    ) -> None:
        self.models, self.captioner, self.name = models, models.captioner, models.name
        self.stopping, self.machines = stopping, machines
        self.report_every = REPORT_EVERY
        self.holding: Claim | None = None
        self.breaker = Breaker()

    def work(self) -> int:
        """Claim one import or run and bring it to an end.

        Returns:
            1, or 0 if there was nothing to do, or the queue or this worker is paused.
        """
        if not self.breaker.limit(1):
            return 0
        if Queue.is_paused("training"):
            return 0
        for batch in Import.objects.claim(self.name, 1):
            lm = self.captioner.language_model
            unfit = too_long(batch.style, lm.encode, lm.max_length)
            self._hold(Import.objects.all(), batch, partial(run_import, batch, self.stopping, unfit))
            return 1
        runs = TrainingRun.objects.filter(belonging_to(self.models.base()))
        for run in runs.claim(self.name, 1):
            self._hold(TrainingRun.objects.all(), run, partial(self._run, run, self.stopping))
            return 1
        if self.breaker.trouble:
            self.breaker.note_idle(runs.unfinished().exists())
        return 0

    def _hold(self, queue: JobQuerySet[Any], job: Job, bring_to_end: Callable[[], None]) -> None:
        self.holding = Claim(queue, _token(job), LONGEST)
        try:
            bring_to_end()
        finally:
            self.holding = None

    def idle(self) -> int:
        """Nothing: the caption worker embeds what a dataset will need."""
        return 0

    def _run(self, run: TrainingRun, stopping: Callable[[], bool]) -> None:
        folder = services.run_folder(run)
        try:
            _Training(self.models, run, folder, stopping, self.report_every, self.machines).complete()
        except Stopped:
            if TrainingRun.objects.hand_back(_token(run)):
                _log(run, "handed back: the worker is stopping; another one will continue from here")
            return
        except Unavailable as error:
            self.breaker.note(0, 1, error.failure.detail)
            if retry_on_lost_database(partial(run.hand_back, error.failure)):
                _log(run, f"handed back, to be retried later: {error}", "warning")
            return
        except (TrainingError, CheckpointError, ValueError) as error:
            _fail(run, "not_trainable", str(error))
        except OSError as error:
            code = "disk_full" if is_full(error) else "file_error"
            _fail(run, code, f"{cause_of(error)}; training progress is kept: fix the problem and resume")
        except DatabaseError:
            raise
        except Exception as error:
            log.exception("a training run failed", extra={"run": run.pk})
            if is_out_of_memory(error):
                advice = "lower the batch size or prefix length"
                _fail(run, "out_of_memory", f"the worker does not have enough memory; {advice}")
            else:
                _fail(run, "internal_error", f"unexpected error ({type(error).__name__}); see the log")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        self.breaker.note(1, 0)


class _Training:
    """One run, from its examples to the version that it files."""

    def __init__(
        self,
        models: CaptionEngine,
        run: TrainingRun,
        folder: Path,
        stopping: Callable[[], bool],
        report_every: float,
        machines: Machines | None,
    ) -> None:
        self.models, self.captioner, self.lm = models, models.captioner, models.captioner.language_model
        self.run, self.folder, self.stopping, self.machines = run, folder, stopping, machines
        self.options = run.chosen
        self.report_every, self.reported = report_every, 0.0

    def complete(self) -> None:
        """Train, evaluate, compare, file and perhaps promote.

        Raises:
            Stopped, TrainingError, CheckpointError, OSError: nothing of the run is lost.
        """
        stored = (self.folder / STATE).exists()
        if self.run.attempts > 1:
            how = "continuing from the last checkpoint" if stored else "starting over, since there is no checkpoint"
            _log(self.run, f"taken over from a lost worker; {how}")
        if not stored:  # pruned, or on another machine, or lost before the first: what is shown is of another training
            self._forget()
        training, held_out = self._examples()
        self.samples = self._samples(held_out)
        try:
            result = self._train(self._start(training), training, held_out)
        except ForeignState:
            _log(self.run, "the stored state does not match the remaining examples; starting over", "warning")
            self._forget()
            result = self._train(self._start(training), training, held_out)
        for reason, count in result.left_out.items():
            if count:
                _log(self.run, f"{count} captions were left out: {reason}", "warning")
        _log(self.run, f"trained {result.trainable_parameters:,} parameters; now comparing on the held-out images")
        baseline = in_service(self.run)
        report, comparison, judgement = self._compare(result.model, baseline, held_out)
        self._file(result.path, report, comparison, judgement, baseline)

    def _forget(self) -> None:
        """Start over, with nothing of what an earlier training left."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.run.curve = []
        retry_on_lost_database(lambda: self.run.reports.all().delete())

    def _examples(self) -> tuple[CaptionedImages, CaptionedImages]:
        rows = services.dataset(self.run.style, self.options, self.run.last_example)
        training, held_out, unreadable = captioned_images(self.models, rows, self._phase)
        if unreadable:
            _log(self.run, f"{unreadable} images cannot be read and are left out", "warning")
        return training, held_out

    def _start(self, training: CaptionedImages) -> ClipCaptionModel:
        if self.run.base is not None:
            model = self.models.mappers.load(self.run.base, fresh=True)
            return trainable(model, self.lm, self.options, further=True)
        config = mapper_config(self.captioner, self.options.mapper, self.options.prefix_length, self.options.layers)
        model = ClipCaptionModel(new_mapper(config, training, self.options.seed))
        return trainable(model, self.lm, self.options, further=False)

    def _train(self, model: ClipCaptionModel, training: CaptionedImages, held_out: CaptionedImages) -> Any:
        capacity = capacity_of(self.captioner, settings.TRAINING_PROCESSES, apart=self.machines is not None)
        images, captions = len(training.names), sum(map(len, training.captions))
        short = memory.of_run(self.options, self.run.base, capacity, images, recompute=False) > capacity.memory_mb
        options = for_trainer(self.options, captions=captions, further=self.run.base is not None, short=short)

        def epoch_ended(epoch: EpochEnd) -> None:
            texts = captions_of(self.captioner, model, self.samples.embeddings[:, 0])
            model.mapper.train()
            samples = [
                Sample(image=image, text=text, reference=references[0])
                for image, text, references in zip(self.samples.names, texts, self.samples.captions, strict=True)
            ]

            def record() -> None:
                losses = {"training_loss": epoch.training_loss, "validation_loss": epoch.validation_loss}
                EpochReport.objects.update_or_create(
                    run=self.run, epoch=epoch.epoch, defaults={"step": epoch.step, **losses, "samples": samples}
                )
                # Further than ever: whatever workers it has cost, it gets on, and they count no more.
                held = TrainingRun.objects.held(_token(self.run)).filter(reached__lt=epoch.epoch)
                held.update(reached=epoch.epoch, attempts=1)

            retry_on_lost_database(record)

        try:
            return train_mapper(
                model,
                self.lm,
                self.captioner.encoder.identity,
                training,
                held_out,
                options,
                self.folder,
                self._progress,
                on_tokens=lambda done, images: self._goes_on("tokenizing", done, images),
                on_epoch=epoch_ended,
                on_message=partial(_log, self.run),
                on_wait=self._is_ours,
                processes=settings.TRAINING_PROCESSES,
                machines=self.machines,
            )
        except TrainingCanceled as error:
            raise Stopped from error

    def _progress(self, progress: Progress) -> bool:
        curve = self.run.loss_curve
        curve.add(CurvePoint(progress.step, round(progress.train_loss, 4), progress.learning_rate))
        self.run.curve = curve.to_json()
        try:
            self._report(RunProgress(phase="training", **asdict(progress)), curve=self.run.curve)
        except Stopped:
            return False
        return True

    def _goes_on(self, phase: str, done: int, total: int) -> bool:
        try:
            self._phase(phase, done, total)
        except Stopped:
            return False
        return True

    def _is_ours(self) -> bool:
        """Whether to go on, as `_report` finds out, where there is nothing to report."""
        if self.stopping():
            return False
        try:
            return bool(TrainingRun.objects.held(_token(self.run)).exists())
        except DatabaseError:
            connection.close()
            return True

    def _phase(self, phase: str, done: int, total: int) -> None:
        """As `_report`, of a phase that is counted in steps."""
        self._report(RunProgress(phase=phase, step=done, steps=total))

    def _report(self, progress: RunProgress, **changes: Any) -> None:
        """Write progress, about once a second.

        Raises:
            Stopped: the run is no longer ours, or the process has to end.
        """
        if self.stopping():
            raise Stopped
        if time.monotonic() - self.reported < self.report_every:
            return
        self.reported = time.monotonic()
        try:
            held = TrainingRun.objects.held(_token(self.run)).update(progress=progress.to_json(), **changes)
        except DatabaseError:  # it will be back; the lease decides then whether the run is still ours
            connection.close()
            return
        if not held:
            raise Stopped

    def _check(self) -> None:
        self._report(RunProgress(phase="evaluating"))

    def _samples(self, held_out: CaptionedImages) -> CaptionedImages:
        return CaptionedImages(held_out.names[:SAMPLES], held_out.embeddings[:SAMPLES], held_out.captions[:SAMPLES])

    def _compare(
        self, candidate: ClipCaptionModel, baseline: MapperVersion | None, held_out: CaptionedImages
    ) -> tuple[VersionReport, list[ComparedPhoto], TrainingRun.Verdict]:
        return compare(
            self.models, self.run, candidate, baseline, held_out, phase=self._phase, check=self._check, warn=self._warn
        )

    def _warn(self, message: str) -> None:
        _log(self.run, message, "warning")

    def _file(
        self,
        path: Path,
        report: VersionReport,
        comparison: list[ComparedPhoto],
        judgement: TrainingRun.Verdict,
        opponent: MapperVersion | None,
    ) -> None:
        run = self.run
        policy = Policy.objects.filter(style=run.style).first() or Policy(style=run.style)

        def record(version: MapperVersion) -> None:
            with transaction.atomic():
                captioner_services.file_version(version)
                if not run.succeed(
                    version=version,
                    metrics=report.to_json(),
                    comparison=comparison,
                    verdict=judgement,
                    progress=RunProgress(phase="finished").to_json(),
                    curve=run.curve,
                ):
                    raise Stopped
                RunEvent.objects.create(run=run, message=f"filed as {version}: {judgement.label}")
                if opponent and report.active and not opponent.report.candidate:  # shipped or imported
                    known = replace(opponent.report, images=report.images, candidate=report.active)
                    MapperVersion.objects.filter(pk=opponent.pk).update(metrics=known.to_json())
                promising = judgement in (TrainingRun.Verdict.BETTER, TrainingRun.Verdict.FIRST)
                # Filing has locked the style: nobody promotes anything between this look and the end.
                if is_first_on_its_base(run):
                    reason = f"the first on {run.base_models}, by {run}"
                    captioner_services.promote(version=version, reason=reason)
                    RunEvent.objects.create(run=run, message=f"{version} will be in service once its base models are")
                elif promising and in_service(run) != opponent:
                    message = (
                        f"not put in service: it was compared with {opponent or 'nothing'}, and the version in "
                        "service has changed"
                    )
                    RunEvent.objects.create(run=run, message=message, level="warning")
                elif promising and policy.if_better == Policy.Action.PROMOTE:
                    try:
                        captioner_services.promote(version=version, reason=f"passed the gate after {run}")
                    except Refused as error:
                        RunEvent.objects.create(run=run, message=f"not put in service: {error.detail}", level="warning")
                    else:
                        RunEvent.objects.create(run=run, message=f"{version} is in service")
                elif promising and opponent and policy.if_better == Policy.Action.VOTE:
                    message = f"waits for a blind vote against {opponent}; compare the two on photos to start it"
                    RunEvent.objects.create(run=run, message=message)

        with captioner_services.stored_version(
            style=run.style,
            path=path,
            origin=MapperVersion.Origin.TRAINED,
            person=run.person,
            report=replace(report, verdict=judgement),
        ) as version:
            retry_on_lost_database(lambda: record(version))


def _token(job: Job) -> uuid.UUID:
    assert job.lease_token is not None
    return job.lease_token


def _log(run: TrainingRun, message: str, level: str = "info") -> None:
    retry_on_lost_database(lambda: RunEvent.objects.create(run=run, message=message, level=level))


def _fail(run: TrainingRun, code: str, detail: str) -> None:
    if retry_on_lost_database(lambda: run.fail(code, detail)):
        _log(run, detail, "error")
    log.warning("training run failed", extra={"run": run.pk, "code": code})


def worker_process(name: str) -> WorkerProcess:
    """Load the models and put the threads around an engine.

    Raises:
        ValueError: a model cannot be loaded, there are too few GPUs or cores, or it cannot listen for other machines;
            the message names the cause and the remedy.
    """
    check_processes(settings.TRAINING_PROCESSES, pick_device(settings.DEVICE), "CLIPCAP_TRAINING_PROCESSES")
    machines = Machines(settings.TRAINING_ADDRESS, settings.TRAINING_KEY) if settings.TRAINING_ADDRESS else None
    engine = TrainingEngine(CaptionEngine.load(name), machines=machines)
    chores = {"policies": services.start_due_runs, "base models": services.advance_preparations_each_minute}
    processes, apart = settings.TRAINING_PROCESSES, machines is not None
    process = WorkerProcess(engine, "training", chores, (Import, TrainingRun), processes, apart)
    engine.stopping = process.stopping.is_set
    return process
