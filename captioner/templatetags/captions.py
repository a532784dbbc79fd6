"""How pages write numbers and moments, the site's and the admin's."""

import json
from datetime import datetime, timedelta
from typing import Literal

from django import template
from django.conf import settings
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.timesince import timesince, timeuntil

from captioner import services
from captioner.models import probability

register = template.Library()


@register.simple_tag
def models_card() -> dict[str, str] | None:
    """`name` and `summary` of the models in use, from the card.json that lies with them; None where there is none."""
    own = (f"local-dir:{settings.MODELS / 'encoder'}", f"local-dir:{settings.MODELS / 'lm'}")
    if own != services.sources_here():  # the card is about others
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
    """How far away, in words: `just now`, `3 minutes ago`, `in 2 hours`."""
    apart = timezone.now() - moment
    if abs(apart) < timedelta(minutes=1):
        return "just now" if apart >= timedelta(0) else "in a moment"
    return f"{timesince(moment)} ago" if apart > timedelta(0) else f"in {timeuntil(moment)}"


@register.filter
def when(moment: datetime | str | None, words: str = "") -> SafeString:
    """A moment as pages show it: how far away, and on hover the date (static/locale.js puts it as the reader does).

    Args:
        moment: or as it is written in JSON; nothing is shown for None.
        words: in place of how far away it is.
    """
    if not moment:
        return mark_safe("")
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    local = timezone.localtime(moment)
    full = f"{local:%-d %B %Y, %H:%M} {local.tzname()}"
    return format_html('<time datetime="{}" title="{}">{}</time>', moment.isoformat(), full, words or ago(moment))


@register.filter
def number(value: float | Literal[""] | None, digits: int = 0) -> SafeString:
    """A number as pages show it; static/locale.js puts it as the reader does. Nothing is shown for None.

    Django passes an empty text where the template names something that is not there, as the scores of a first version's
    predecessor.
    """
    if value is None or value == "":
        return mark_safe("")
    return format_html('<data value="{}">{}</data>', f"{value:.{digits}f}", f"{value:,.{digits}f}")
