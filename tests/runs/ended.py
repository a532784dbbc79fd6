"""Runs that have ended: by themselves, canceled or failed."""

from collections.abc import Callable
from typing import Any

from django.utils import timezone

from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import Status
from captioner.models import Style
from training import services
from training.models import TrainingRun
from training.worker import TrainingEngine

QUICK = {"epochs": 2, "batch_size": 20}


def trained(style: Style, engine: CaptionEngine, options: dict[str, Any]) -> TrainingRun:
    """A run on which a worker has worked."""
    run = services.start_run(style=style, options=options)
    TrainingEngine(engine).work()
    run.refresh_from_db()
    return run


def succeeds(run: TrainingRun, engine: CaptionEngine) -> None:
    """Work on a run that ends well."""
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert (run.status, run.error_detail) == (Status.SUCCEEDED, "")


def end(run: TrainingRun) -> None:
    TrainingRun.objects.filter(pk=run.pk).update(status=Status.FAILED, finished_at=timezone.now())


def work_and_cancel(run: TrainingRun, engine: CaptionEngine, due: Callable[[], bool]) -> None:
    """Work on a run that is canceled as soon as this is so."""

    def look() -> bool:
        if TrainingRun.objects.filter(pk=run.pk, status=Status.RUNNING).exists() and due():
            services.cancel_run(run)
        return False

    trainer = TrainingEngine(engine, stopping=look)
    trainer.report_every = 0.0
    trainer.work()
    run.refresh_from_db()
    assert run.status == Status.CANCELED
