"""What the JSON columns of runs contain; see `captioner.reports`. `TrainingRun.metrics` is a `VersionReport`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from captioner.reports import Report


@dataclass(frozen=True)
class RunProgress(Report):
    """How far a run is (`TrainingRun.progress`): a phase, which may be counted in steps, and the trainer's report."""

    phase: str = ""
    step: int | None = None
    steps: int | None = None
    epoch: int | None = None
    train_loss: float | None = None
    validation_loss: float | None = None
    learning_rate: float | None = None
    samples_per_second: float | None = None
    eta_seconds: float | None = None


class Sample(TypedDict):
    """What a run wrote about a held-out photo at the end of an epoch (`EpochReport.samples`), beside a person's."""

    image: str
    text: str
    reference: str


class ComparedPhoto(TypedDict):
    """A held-out photo on which candidate and active version differ (`TrainingRun.comparison`), with both scores."""

    image: str
    candidate: str
    active: str
    references: list[str]
    scores: list[float]
