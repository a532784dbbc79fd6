"""What the gate found, in sentences for people."""

from __future__ import annotations

import math

from django.utils.formats import number_format

from captioner.models import MapperVersion
from captioner.reports import VersionReport
from clipcap.evaluation.comparison import HELD_OUT_SHARE, LEAST_JUDGED, Difference, verdict

MINUS = "\N{MINUS SIGN}"
WORTH_NAMING = 20  # times as many held-out photos: a demand for more than that helps nobody


def verdict_of(version: MapperVersion) -> str:
    """What is known of how good a version is, as one sentence; as `verdict_sentence`."""
    return verdict_sentence(f"v{version.number}", version.report)


def verdict_sentence(name: str, report: VersionReport) -> str:
    """What the gate found about a version, with the numbers that it is about and, where it could not tell, the remedy.

    Args:
        name: what the version is called in the sentence, which begins with it.

    Returns:
        "v3 is better than v2: CIDEr +0.04, 95 % interval 0.01 to 0.07, on 312 photos". Empty if there is nothing to
        say yet.
    """
    photos = _photos(report.images or 0)
    other = _short(report.active_version)
    reached = report.score("CIDEr")
    if report.candidate is None or reached is None:
        return ""
    score = f"CIDEr {decimal(reached)} on {photos}"
    if report.verdict is None:  # shipped or imported, and scored as the opponent of another
        return f"{name} reaches {score}"
    few = (report.images or 0) < LEAST_JUDGED
    if report.verdict == "first":
        first = f"{name} is the first version, so there is nothing to compare it with"
        tells = "tells" if report.images == 1 else "tell"
        return f"{first}; {photos} {tells} nothing of its quality" if few else f"{first}: {score}"
    if report.difference is None or report.metric is None or report.images is None:
        return f"{name} could not be compared with the version in service; alone, it reaches {score}"
    if few:
        return too_few(report.images, name)
    difference, margin = report.difference, report.margin or 0.0
    numbers = (
        f"{report.metric_name} {decimal(difference.mean, signed=True)}, 95 % interval {decimal(difference.low)} to "
        f"{decimal(difference.high)}, on {photos}"
    )
    if report.verdict != verdict(difference, margin, report.images):
        return f"{name} was not judged, since the metric that its style is judged by was not computed: {numbers}"
    if report.verdict in ("better", "worse"):
        return f"{name} is {report.verdict} than {other}: {numbers}"
    return f"{name} may be better or worse than {other}: {numbers}{_enough(difference, margin, report.images)}"


def too_few(held_out: int, name: str = "a version") -> str:
    """That these are too few held-out photos to judge a version by, and what would be enough."""
    missing = math.ceil((LEAST_JUDGED - held_out) / HELD_OUT_SHARE)
    return (
        f"{_photos(held_out, 'held-out ')} {'is' if held_out == 1 else 'are'} too few to judge {name} by; "
        f"{LEAST_JUDGED} are needed: add about {whole(missing)} captioned photos"
    )


def decimal(value: float, *, signed: bool = False) -> str:
    """A score for people, in their locale."""
    shown = number_format(round(abs(value), 2), decimal_pos=2, use_l10n=True, force_grouping=True)
    if not any(digit in shown for digit in "123456789"):
        return shown
    sign = MINUS if value < 0 else "+" if signed else ""
    return sign + shown


def whole(value: int) -> str:
    """A number of things for people, in their locale."""
    return number_format(value, use_l10n=True, force_grouping=True)


def _photos(count: int, kind: str = "") -> str:
    return f"{whole(count)} {kind}photo{'' if count == 1 else 's'}"


def _short(version: str | None) -> str:
    """A version's number: within a style there is no need to name the style."""
    return version.rpartition(" ")[2] if version else "the version in service"


def _enough(difference: Difference, margin: float, images: int) -> str:
    """How many held-out photos would do, if the difference stays: an interval narrows with the square root."""
    beyond = abs(difference.mean) - margin
    if beyond <= 0:
        return ""
    edge = difference.low if difference.mean > 0 else difference.high
    needed = images * ((difference.mean - edge) / beyond) ** 2
    if needed > images * WORTH_NAMING:
        return ""
    digits = 10 ** max(0, len(str(int(needed))) - 2)
    rounded = math.ceil(needed / digits) * digits
    return f"; if that is the true difference, about {whole(rounded)} held-out photos will show it"
