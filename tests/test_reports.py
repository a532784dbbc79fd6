"""What JSON columns contain is read and written in one place, also what another release wrote."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from typing import Any

import pytest

from captioner.models import Caption
from captioner.reports import (
    Alternative,
    Capacity,
    Evaluated,
    FailedAttempt,
    MapperReport,
    Report,
    Stored,
    VersionReport,
)
from clipcap.evaluation.comparison import Difference
from clipcap.mapper import MapperConfig
from training.models import TrainingRun
from training.reports import POINTS_KEPT, CurvePoint, LossCurve, RunProgress

SCORED = {"scores": {"CIDEr": 0.5}, "not_computed": {"SPICE": "no Java"}, "distinct": 0.9, "mean_length": 8.0}
COMPARED = {
    **{"images": 20, "candidate": SCORED, "active": SCORED, "active_version": "factual v1", "metric": "CIDEr"},
    **{"margin": 0.0, "difference": {"mean": 0.1, "low": 0.05, "high": 0.15}, "verdict": "better"},
}
NOON = "2026-01-01T12:00:00+00:00"
SIZES = {
    "memory_mb": 1,
    "embedding_size": 2,
    "lm_size": 3,
    "lm_layers": 4,
    "lm_heads": 5,
    "vocabulary": 6,
    "processes": 1,
    "apart": False,
}


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        (VersionReport, {}),
        (VersionReport, {"images": 20, "candidate": SCORED}),
        (VersionReport, COMPARED),
        (Capacity, SIZES),
        (Alternative, {"text": "a dog", "confidence": None, "log_probability": -1.5}),
        (FailedAttempt, {"at": NOON, "worker": "w", "code": "x", "detail": "it was lost", "others_succeeded": True}),
        (MapperReport, {"kind": "mlp", "prefix_length": 10, "stop_text": ".", "language_model": "adapters", "rank": 8}),
        (RunProgress, {"phase": "evaluating"}),
        (RunProgress, {"phase": "training", "step": 0, "steps": 9, "learning_rate": 0.0}),
    ],
)
def test_what_is_stored_is_read_and_written_back_the_same(kind: type[Report], stored: dict[str, Any]) -> None:
    read = kind.read(json.loads(json.dumps(stored)))
    assert {name: value for name, value in read.to_json().items() if value != ""} == stored
    assert kind.read(json.loads(json.dumps(read.to_json()))) == read


def test_a_report_has_types() -> None:
    report = VersionReport.read(COMPARED)
    assert report.candidate == report.active == Evaluated({"CIDEr": 0.5}, {"SPICE": "no Java"}, 0.9, 8.0)
    assert report.difference == Difference(0.1, 0.05, 0.15)
    assert (report.score("CIDEr"), report.score("METEOR"), VersionReport().score("CIDEr")) == (0.5, None, None)


def test_what_a_later_release_adds_to_a_report_is_passed_over() -> None:
    stored = {**COMPARED, "more": 1, "candidate": {**SCORED, "more": 1}}
    assert VersionReport.read(stored) == VersionReport.read(COMPARED)


def test_alternatives_and_failed_attempts_of_earlier_releases_are_read() -> None:
    assert Alternative.read({"text": "a dog"}) == Alternative("a dog", None, None)
    assert FailedAttempt.read({"at": NOON, "worker": "w", "code": "x", "detail": "y"}).others_succeeded is False


def test_a_loss_curve_is_read_as_it_was_written_and_stays_even_and_short() -> None:
    curve = LossCurve.read([])
    for step in range(1, 10 * POINTS_KEPT):
        curve.add(CurvePoint(step, 1 / step, 1e-3))
        curve = LossCurve.read(json.loads(json.dumps(curve.to_json())))
    steps = [point.step for point in curve.points]
    assert POINTS_KEPT / 2 <= len(steps) <= POINTS_KEPT
    assert len({after - before for before, after in itertools.pairwise(steps)}) == 1


def test_columns_of_json_are_read_as_their_types() -> None:
    other = {"text": "a cat", "confidence": 0.1, "log_probability": -2.0}
    failure = {"at": NOON, "worker": "w", "code": "x", "detail": "y", "others_succeeded": False}
    caption = Caption(alternatives=[other], failures=[failure])
    assert caption.others == [Alternative("a cat", 0.1, -2.0)]
    assert caption.failed_attempts == [FailedAttempt(NOON, "w", "x", "y")]
    assert TrainingRun(curve=[[1, 4.5, 1e-3]]).loss_curve.points == [CurvePoint(1, 4.5, 1e-3)]


def test_what_a_column_contains_is_read_from_a_row_and_never_assigned() -> None:
    assert isinstance(TrainingRun.loss_curve, Stored)
    with pytest.raises(AttributeError, match="assign to curve"):
        TrainingRun().loss_curve = LossCurve([])


def test_a_version_keeps_all_that_a_mapper_is_built_from() -> None:
    config = MapperConfig("transformer", 512, 768, stop_text=".")
    assert {name: MapperReport.read(asdict(config)).to_json().get(name) for name in asdict(config)} == asdict(config)
