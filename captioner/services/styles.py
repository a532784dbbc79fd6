"""The styles that can be requested."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet

from captioner import audit
from captioner.errors import Refused
from captioner.models import Promotion, Style
from captioner.services.visibility import not_found


def styles_in_service() -> QuerySet[Style]:
    """Those that have a version in service, the default one first."""
    return Style.objects.filter(Exists(Promotion.objects.filter(style=OuterRef("pk"))))


def get_style(slug: str) -> Style:
    """One style in service.

    Raises:
        Refused: there is none.
    """
    style = styles_in_service().filter(slug=slug).first()
    if style is None:
        raise not_found("style", slug)
    return style


def choose_styles(names: Sequence[str]) -> list[Style]:
    """The styles of these slugs; of `all`, every style in service; of none, the default one.

    Raises:
        Refused: no such style, or it has no version in service.
    """
    in_service = styles_in_service()
    if not in_service:
        raise Refused("no_styles", "no style is in service; an administrator must promote a version first", status=503)
    if "all" in names:
        return list(in_service)
    if not names:
        return [in_service[0]]
    found = {style.slug: style for style in in_service.filter(slug__in=names)}
    missing = [name for name in names if name not in found]
    if missing:
        slugs = ", ".join(in_service.values_list("slug", flat=True))
        raise Refused(
            "unknown_style", f"style {missing[0]!r} is not in service; the styles in service are {slugs}", status=422
        )
    return [found[name] for name in dict.fromkeys(names)]


def set_default_style(style: Style) -> None:
    """Use a style wherever a request names none."""
    with transaction.atomic():
        Style.objects.filter(is_default=True).update(is_default=False)
        Style.objects.filter(pk=style.pk).update(is_default=True)
        audit.record(audit.Action.SERVICE, f"style {style}", "used when a request names none")
