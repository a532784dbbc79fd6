"""What the JSON columns of runs contain; see `captioner.reports`. `TrainingRun.metrics` is a `VersionReport`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, TypedDict

from captioner.reports import Report

POINTS_KEPT = 400  # of a loss curve


@dataclass(frozen=True)
class RunProgress(Report):
    """How far a run is (`TrainingRun.progress`): its phase, the steps of it, and what the trainer reports."""

    step: int | None = None
    steps: int | None = None
    epoch: int | None = None
    train_loss: float | None = None
    validation_loss: float | None = None
    learning_rate: float | None = None
    samples_per_second: float | None = None
    eta_seconds: float | None = None
    phase: str = ""


class CurvePoint(NamedTuple):
    """A step of a run, with the loss on the batch and the learning rate then."""

    step: int
    training_loss: float
    learning_rate: float


@dataclass
class LossCurve:
    """How a run's loss went (`TrainingRun.curve`), in points that are about equally many steps apart."""

    points: list[CurvePoint]

    @classmethod
    def read(cls, stored: Sequence[Sequence[float]]) -> Self:
        """What the column contains."""
        return cls([CurvePoint(int(step), loss, rate) for step, loss, rate in stored])

    def add(self, point: CurvePoint) -> None:
        """Take the point in if it is as far from the last one as the others are; every second one leaves a curve that
        is too long."""
        points = self.points
        apart = points[1].step - points[0].step if len(points) > 1 else 1
        if not points or point.step >= points[-1].step + apart:
            points.append(point)
        if len(points) > POINTS_KEPT:
            del points[1::2]

    def to_json(self) -> list[list[float]]:
        """The list for the column."""
        return [list(point) for point in self.points]


class Sample(TypedDict):
    """What a run wrote about a held-out photo at the end of an epoch (`EpochReport.samples`), beside a person's."""

    image: str
    text: str
    reference: str


class ComparedPhoto(TypedDict):
    """A held-out photo on which the candidate and the version in service differ (`TrainingRun.comparison`), with both
    scores."""

    image: str
    candidate: str
    active: str
    references: list[str]
    scores: list[float]
