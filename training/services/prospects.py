"""What the gate will be able to tell about a run, before it is started."""

from __future__ import annotations

import math
from dataclasses import dataclass

from captioner.models import Style
from captioner.reports import VersionReport
from captioner.services.gate import decimal, too_few, whole
from clipcap.evaluation.comparison import LEAST_JUDGED
from training.options import RunOptions
from training.services.examples import LEAST_HELD_OUT, LEAST_TRAINING, count_photos, dataset


@dataclass(frozen=True)
class Prospect:
    """What a run would learn from and be judged by.

    training, held_out: photos.
    judged: whether the gate will be able to tell better from worse.
    detail: the same in words, with what is missing.
    """

    training: int
    held_out: int
    judged: bool
    detail: str


def prospect(style: Style, options: RunOptions | None = None, last: int | None = None) -> Prospect:
    """What the gate will be able to tell about a run of a style.

    Args:
        last: the newest example that counts; all do for a run that is started now.
    """
    photos = count_photos(dataset(style, options or RunOptions(), last))
    used = f"{_photos(photos.training)} will be trained on, and {whole(photos.held_out)} held out to judge by"
    judged = False
    if not photos.enough:
        detail = f"{used}; at least {LEAST_TRAINING} and {LEAST_HELD_OUT} are needed to train at all"
    elif style.version_in_service is None:
        detail = f"{used}; there is no version in service to compare with, so look at its captions yourself"
    elif photos.held_out < LEAST_JUDGED:
        detail = f"{_photos(photos.training)} will be trained on. {too_few(photos.held_out)}"
    else:
        judged, detail = True, f"{used}: enough to tell better from worse{_visible(style, photos.held_out)}"
    return Prospect(photos.training, photos.held_out, judged, detail)


def _photos(count: int) -> str:
    return f"{whole(count)} photo{'' if count == 1 else 's'}"


def _visible(style: Style, held_out: int) -> str:
    """The smallest difference that will be seen, judging by the last run: an interval narrows with the square root of
    the number of photos."""
    for metrics in style.runs.exclude(verdict="").order_by("-pk").values_list("metrics", flat=True)[:10]:
        report = VersionReport.read(metrics)
        if report.difference and report.metric and (report.images or 0) >= LEAST_JUDGED:
            half = (report.difference.high - report.difference.low) / 2
            smallest = half * math.sqrt((report.images or 0) / held_out) + (report.margin or 0.0)
            return f", if they differ by about {report.metric_name} {decimal(math.ceil(100 * smallest) / 100)} or more"
    return ""
