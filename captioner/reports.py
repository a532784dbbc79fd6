"""What JSON columns contain: each has one type, here or in the `reports` of its own app, which alone reads and writes
it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Generic, Self, TypeVar, overload

from django.db import models

from clipcap.evaluation.comparison import Difference
from clipcap.evaluation.names import metric_name

R = TypeVar("R")


@dataclass(frozen=True)
class Report:
    """A JSON object in a column. Keys that another release wrote are passed over; what is None is not written."""

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        """What a column contains.

        Raises:
            TypeError: a key is missing that was always written.
        """
        return cls(**{field.name: stored[field.name] for field in fields(cls) if field.name in stored})

    def to_json(self) -> dict[str, Any]:
        """The object for the column."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Stored(Generic[R]):
    """A property of a table's rows: what a JSON column of theirs contains, as the type that reads it."""

    def __init__(self, read: Callable[[Any], R], column: str) -> None:
        self.read, self.column = read, column

    @overload
    def __get__(self, row: None, table: type[models.Model]) -> Self: ...

    @overload
    def __get__(self, row: models.Model, table: type[models.Model]) -> R: ...

    def __get__(self, row: models.Model | None, table: type[models.Model]) -> R | Self:
        return self if row is None else self.read(getattr(row, self.column))

    def __set__(self, row: models.Model, value: R) -> None:
        raise AttributeError(f"assign to {self.column}")


@dataclass(frozen=True)
class Evaluated(Report):
    """How a mapper's captions of the held-out photos compare with people's.

    scores, not_computed: see `clipcap.evaluation.metrics.Evaluation`, and so are the others.
    mean_length: words.
    """

    scores: dict[str, float]
    not_computed: dict[str, str]
    distinct: float
    mean_length: float


@dataclass(frozen=True)
class VersionReport(Report):
    """How good a version was found to be: `MapperVersion.metrics`, and the metrics of the run that made it.

    images: how many held-out photos were captioned.
    candidate: the version itself.
    active, active_version: the version that was in service then, and its name; None if there was none to compare with.
    metric, margin, difference: what the verdict is about.
    verdict: `better`, `unclear`, `worse` or `first`.
    """

    images: int | None = None
    candidate: Evaluated | None = None
    active: Evaluated | None = None
    active_version: str | None = None
    metric: str | None = None
    margin: float | None = None
    difference: Difference | None = None
    verdict: str | None = None

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        """What a column contains, its parts too."""
        parts: dict[str, Any] = {
            name: Evaluated.read(stored[name]) for name in ("candidate", "active") if stored.get(name)
        }
        if stored.get("difference"):
            parts["difference"] = Difference(**stored["difference"])
        return super().read({**stored, **parts})

    @property
    def metric_name(self) -> str:
        """What people call the metric that the verdict is about."""
        return metric_name(self.metric or "")

    def score(self, metric: str) -> float | None:
        """The version's own, where it was computed."""
        return self.candidate.scores.get(metric) if self.candidate else None


@dataclass(frozen=True)
class MapperReport(Report):
    """What the file of a version says of its network (`MapperVersion.config`); see `clipcap.mapper.MapperConfig`.

    kind, prefix_length: empty and 0 of a row that was made without a file.
    language_model: what it does with the loaded one: `frozen`, `adapters` or `finetuned`.
    rank, targets: of its adapters, and which projections these are for: `both`, `attention` or `mlp`.
    trained_on: in words, what embeddings a mapper of the authors' format is taken for trained on, and how one knows.
    """

    kind: str = ""
    prefix_length: int = 0
    language_model: str = "frozen"
    embedding_size: int | None = None
    lm_size: int | None = None
    normalize: bool | None = None
    hidden_size: int | None = None
    clip_length: int | None = None
    layers: int | None = None
    heads: int | None = None
    mlp_ratio: float | None = None
    stop_text: str | None = None
    rank: int | None = None
    targets: str | None = None
    trained_on: str | None = None


@dataclass(frozen=True)
class Alternative(Report):
    """Another caption that the models considered (`Caption.alternatives`, best first)."""

    text: str
    confidence: float | None = None
    log_probability: float | None = None

    def to_json(self) -> dict[str, Any]:
        """With every key: releases up to 0.2.0 look them up without asking."""
        return asdict(self)


@dataclass(frozen=True)
class FailedAttempt(Report):
    """An attempt at a queued row that failed (`Job.failures`, oldest first).

    at: in ISO 8601.
    worker: its name.
    others_succeeded: see `captioner.jobs.job.Failure`.
    """

    at: str
    worker: str
    code: str
    detail: str
    others_succeeded: bool = False


@dataclass(frozen=True)
class Capacity(Report):
    """What a worker has: the memory of its device, or its devices together, in MiB, and the sizes of its models
    (`Worker.capacity`); how many processes train with it, and whether even a single one is another than the worker,
    which then has a model besides."""

    memory_mb: int
    embedding_size: int
    lm_size: int
    lm_layers: int
    lm_heads: int
    vocabulary: int
    processes: int = 1
    apart: bool = False
