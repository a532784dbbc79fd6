"""What the gate found, in sentences."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import translation

from captioner.reports import VersionReport
from captioner.services import too_few, verdict_sentence
from clipcap.evaluation.comparison import verdict


def report(mean: float, low: float, high: float, images: int = 312, **other: Any) -> VersionReport:
    scored = {"scores": {"CIDEr": 0.5}, "not_computed": {}, "distinct": 0.9, "mean_length": 8.0}
    difference = {"mean": mean, "low": low, "high": high}
    found = VersionReport.read({"difference": difference}).difference
    assert found
    judged = {"verdict": verdict(found, other.get("margin", 0.0), images), "images": images, "candidate": scored}
    return VersionReport.read(
        {"active_version": "humorous v2", "metric": "CIDEr", "margin": 0.0, "difference": difference} | judged | other
    )


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (report(0.04, 0.01, 0.07), "v3 is better than v2: CIDEr +0.04, 95 % interval 0.01 to 0.07, on 312 photos"),
        (report(-0.2, -0.3, -0.1), "v3 is worse than v2: CIDEr −0.20, 95 % interval −0.30 to −0.10, on 312 photos"),  # noqa: RUF001
        (
            report(0.02, -0.02, 0.06, images=100),
            "v3 may be better or worse than v2: CIDEr +0.02, 95 % interval −0.02 to 0.06, on 100 photos; if that is "  # noqa: RUF001
            "the true difference, about 400 held-out photos will show it",
        ),
        (
            report(0.0, -0.05, 0.05),
            "v3 may be better or worse than v2: CIDEr 0.00, 95 % interval −0.05 to 0.05, on 312 photos",  # noqa: RUF001
        ),
        (
            report(0.001, -0.05, 0.05),
            "v3 may be better or worse than v2: CIDEr 0.00, 95 % interval −0.05 to 0.05, on 312 photos",  # noqa: RUF001
        ),
        (
            report(0.04, 0.01, 0.07, margin=0.02),
            "v3 may be better or worse than v2: CIDEr +0.04, 95 % interval 0.01 to 0.07, on 312 photos; if that is the "
            "true difference, about 710 held-out photos will show it",
        ),
        (
            report(0.04, 0.01, 0.07, images=5),
            "5 held-out photos are too few to judge v3 by; 20 are needed: add about 150 captioned photos",
        ),
        (
            report(0.04, 0.01, 0.07, verdict="unclear"),
            "v3 was not judged, since the metric that its style is judged by was not computed: CIDEr +0.04, 95 % "
            "interval 0.01 to 0.07, on 312 photos",
        ),
        (
            report(0, 0, 0, verdict="first", difference=None, metric=None, active_version=None),
            "v3 is the first version, so there is nothing to compare it with: CIDEr 0.50 on 312 photos",
        ),
        (
            report(0, 0, 0, verdict="first", difference=None, images=1),
            "v3 is the first version, so there is nothing to compare it with; 1 photo tells nothing of its quality",
        ),
        (
            report(0, 0, 0, verdict="unclear", difference=None, metric=None, active_version=None),
            "v3 could not be compared with the version in service; alone, it reaches CIDEr 0.50 on 312 photos",
        ),
        (report(0, 0, 0, verdict=None, difference=None), "v3 reaches CIDEr 0.50 on 312 photos"),
        (VersionReport(), ""),
    ],
)
def test_a_verdict_is_a_sentence_with_its_numbers_and_the_remedy(found: VersionReport, says: str) -> None:
    assert verdict_sentence("v3", found) == says


def test_one_photo_is_too_few_in_good_english() -> None:
    assert too_few(1).startswith("1 held-out photo is too few to judge a version by; 20 are needed: add about 190 ")


def test_numbers_are_in_the_readers_locale() -> None:
    with translation.override("de"):
        assert "CIDEr +0,04, 95 % interval 0,01 to 0,07, on 1.312 photos" in verdict_sentence(
            "v3", report(0.04, 0.01, 0.07, images=1312)
        )
