"""How pages write numbers."""

import json
from datetime import datetime, timedelta

from django import template
from django.conf import settings
from django.utils import timezone
from django.utils.timesince import timesince

from captioner.models import probability

register = template.Library()


@register.simple_tag
def models_card() -> dict[str, str] | None:
    """`name` and `summary` of the models in use, from the card.json that lies with them; None where there is none."""
    own = (f"local-dir:{settings.MODELS / 'encoder'}", f"local-dir:{settings.MODELS / 'lm'}")
    if own != (settings.ENCODER, settings.LANGUAGE_MODEL):  # the card is about others
        return None
    try:
        card = json.loads((settings.MODELS / "card.json").read_bytes())
        found = {name: " ".join(str(card[name]).split()) for name in ("name", "summary")}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return found if all(found.values()) else None


@register.filter
def percent(value: object) -> str:
    """A probability for people; nothing where it is none."""
    known = probability(value)
    return "" if known is None else f"{round(100 * known)} %"


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
