"""How pages write numbers."""

import math
from datetime import datetime, timedelta

from django import template
from django.utils import timezone
from django.utils.timesince import timesince

from captioner.models import Caption, Correction

register = template.Library()


@register.filter
def probability(confidence: float | None) -> float:
    """The mean log-probability of a caption's tokens as a probability, 0 to 1."""
    return min(1.0, math.exp(confidence)) if confidence is not None else 0.0


@register.filter
def percent(confidence: float | None) -> str:
    """The same for people."""
    return f"{round(100 * probability(confidence))} %"


@register.filter
def milliseconds(value: float | None) -> str:
    """A duration: `12 ms`, `1.4 s`."""
    if value is None:
        return "–"  # noqa: RUF001
    return f"{value:.0f} ms" if value < 999.5 else f"{value / 1000:.1f} s"


@register.filter
def between(start: datetime | None, end: datetime | None) -> float | None:
    """The milliseconds from `start` to `end`."""
    return max(0.0, (end - start).total_seconds() * 1000) if start and end else None


@register.filter
def ago(moment: datetime) -> str:
    """How long ago: `just now`, `3 minutes ago`."""
    return f"{timesince(moment)} ago" if timezone.now() - moment >= timedelta(minutes=1) else "just now"


@register.filter
def correction(caption: Caption) -> Correction | None:
    """The newest correction, among those that were fetched with the caption."""
    corrections = list(caption.corrections.all())
    return corrections[-1] if corrections else None
