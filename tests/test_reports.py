"""What JSON columns contain is read and written in one place, also what another release wrote."""

from __future__ import annotations

import json
from typing import Any

import pytest

from captioner.reports import Capacity, Evaluated, Report, VersionReport
from clipcap.evaluation.comparison import Difference
from training.reports import RunProgress

SCORED = {"scores": {"CIDEr": 0.5}, "not_computed": {"SPICE": "no Java"}, "distinct": 0.9, "mean_length": 8.0}
COMPARED = {
    **{"images": 20, "candidate": SCORED, "active": SCORED, "active_version": "factual v1", "metric": "CIDEr"},
    **{"margin": 0.0, "difference": {"mean": 0.1, "low": 0.05, "high": 0.15}, "verdict": "better"},
}
SIZES = {
    "memory_mb": 1,
    "embedding_size": 2,
    "lm_size": 3,
    "lm_layers": 4,
    "lm_heads": 5,
    "vocabulary": 6,
    "processes": 1,
}


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        (VersionReport, {}),
        (VersionReport, {"images": 20, "candidate": SCORED}),
        (VersionReport, COMPARED),
        (Capacity, SIZES),
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
