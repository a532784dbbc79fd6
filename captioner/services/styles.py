"""The styles that can be requested; a style's way from service to its end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import PROTECT, Exists, ManyToOneRel, OuterRef, ProtectedError, QuerySet
from django.utils.text import slugify

from captioner import audit
from captioner.errors import Refused
from captioner.jobs.job import UNFINISHED, Job
from captioner.models import Promotion, Style
from captioner.services.visibility import not_found

Status = Style.Status
LONGEST_NAME, LONGEST_SLUG = 80, 50  # characters


def styles_in_service() -> QuerySet[Style]:
    """Those that are available and have a version in service, the default one first."""
    promoted = Exists(Promotion.objects.on().filter(style=OuterRef("pk")))
    return Style.objects.filter(promoted, status=Status.AVAILABLE)


def get_style(slug: str) -> Style:
    """One style in service.

    Raises:
        Refused: there is none.
    """
    style = styles_in_service().filter(slug=slug).first()
    if style is None:
        if Style.objects.filter(slug=slug).exclude(status=Status.AVAILABLE).exists():
            raise Refused(
                "style_withdrawn", f"style {slug!r} was withdrawn; its captions can still be read", status=404
            )
        raise not_found("style", slug)
    return style


def find_style(slug: str) -> Style:
    """One style, in service or not: for those who manage styles.

    Raises:
        Refused: there is none.
    """
    style = Style.objects.filter(slug=slug).first()
    if style is None:
        raise not_found("style", slug)
    return style


def choose_styles(names: Sequence[str]) -> list[Style]:
    """The styles of these slugs; of `all`, every style in service; of none, the default one.

    Raises:
        Refused: no such style, or it was withdrawn or has no version in service.
    """
    in_service = styles_in_service()
    if not in_service:
        raise Refused("no_styles", "no style is in service; an administrator must promote a version first", status=503)
    if "all" in names:
        return list(in_service)
    if not names:
        return [in_service[0]]
    found = {style.slug: style for style in in_service}
    missing = [name for name in names if name not in found]
    if missing:
        slugs = ", ".join(found)
        gone = Style.objects.filter(slug=missing[0]).exclude(status=Status.AVAILABLE).exists()
        raise Refused(
            "style_withdrawn" if gone else "unknown_style",
            f"style {missing[0]!r} {'was withdrawn' if gone else 'is not in service'}; the styles in service are "
            f"{slugs}",
            status=422,
        )
    return [found[name] for name in dict.fromkeys(names)]


def create_style(
    *, name: str, slug: str = "", description: str = "", starts_from: Style | None = None, person: Any = None
) -> Style:
    """A new style, without versions; it can be requested once a version of it is in service.

    Args:
        slug: its name in addresses and commands; made of the name if it is empty.
        starts_from: the style whose version in service its training starts from.

    Raises:
        Refused: name or slug cannot be used or are too long, another style has the slug, or the style to start from
            has no version in service.
    """
    name = " ".join(name.split())
    if not 1 <= len(name) <= LONGEST_NAME:
        raise Refused(
            "invalid_name", f"a style's name must have 1 to {LONGEST_NAME} characters", status=422, field="name"
        )
    slug = slug or slugify(name)[:LONGEST_SLUG].strip("-")
    if not re.fullmatch(rf"[-a-zA-Z0-9_]{{1,{LONGEST_SLUG}}}", slug):
        raise Refused(
            "invalid_slug",
            f"the short name must have 1 to {LONGEST_SLUG} letters from a to z, digits, hyphens or underscores",
            status=422,
            field="slug",
        )
    if starts_from and starts_from.version_in_service is None:
        raise Refused(
            "no_active_version",
            f"{starts_from.name} has no version in service to start from; choose another style",
            status=422,
            field="starts_from",
        )
    try:
        with transaction.atomic():
            style = Style.objects.create(slug=slug, name=name, description=description, starts_from=starts_from)
            audit.record(audit.Action.SERVICE, f"style {style}", "created", person)
    except IntegrityError as error:
        raise Refused(
            "style_exists", f"there is a style {slug!r} already; choose another short name", status=409, field="slug"
        ) from error
    return style


def set_default_style(style: Style) -> None:
    """Use a style wherever a request names none.

    Raises:
        Refused: it was withdrawn.
    """
    with transaction.atomic():
        if _locked(style).status != Status.AVAILABLE:
            raise Refused("style_withdrawn", f"{style.name} was withdrawn; bring it back first", status=409)
        Style.objects.filter(is_default=True).update(is_default=False)
        Style.objects.filter(pk=style.pk).update(is_default=True)
        audit.record(audit.Action.SERVICE, f"style {style}", "used when a request names none")


def withdraw_style(style: Style, person: Any = None) -> None:
    """Take a style out of service: it can be requested no more. Captions of it that were requested before are still
    written, and all of them stay readable.

    Raises:
        Refused: it is withdrawn already, or it is the default style.
    """
    with transaction.atomic():
        locked = _locked(style)
        if locked.is_default:
            raise Refused(
                "default_style",
                f"{style.name} is the default style; make another one the default before you withdraw it",
                status=409,
            )
        if locked.status != Status.AVAILABLE:
            raise Refused("already_withdrawn", f"{style.name} is {locked.status} already", status=409)
        _set(style, Status.WITHDRAWN, "withdrawn", person)


def restore_style(style: Style, person: Any = None) -> None:
    """Make a withdrawn or archived style available again, with the version that was in service.

    Raises:
        Refused: it is available already.
    """
    with transaction.atomic():
        if _locked(style).status == Status.AVAILABLE:
            raise Refused("already_available", f"{style.name} is available already", status=409)
        _set(style, Status.AVAILABLE, "brought back", person)


def archive_style(style: Style, person: Any = None) -> None:
    """Put a withdrawn style away: it takes no imports, training runs and promotions any more, and its captions stay
    as they are; all of its history can be read.

    Raises:
        Refused: it is not withdrawn, or something of it is unfinished.
    """
    with transaction.atomic():
        locked = _locked(style)
        if locked.status != Status.WITHDRAWN:
            why = "withdraw it first" if locked.status == Status.AVAILABLE else "it is archived already"
            raise Refused("not_withdrawn", f"{style.name} cannot be archived: {why}", status=409)
        unfinished = [rows.filter(status__in=UNFINISHED) for rows in _rows_of(style) if issubclass(rows.model, Job)]
        if names := _counted(unfinished):
            raise Refused(
                "unfinished",
                f"{style.name} cannot be archived yet; still unfinished: {names}; wait or cancel",
                status=409,
            )
        _set(style, Status.ARCHIVED, "archived", person)


def delete_style(style: Style, person: Any = None) -> None:
    """Delete a style that nothing needs.

    Raises:
        Refused: it is the default style, or has captions, versions, examples or other history.
    """
    try:
        with transaction.atomic():
            locked = _locked(style)
            needed_by = _counted(_rows_of(style))
            if locked.is_default and not needed_by:
                needed_by = "requests that name no style"
            if needed_by:
                raise Refused(
                    "style_in_use",
                    f"{style.name} cannot be deleted: it is needed by {needed_by}; archive it",
                    status=409,
                )
            audit.record(audit.Action.DELETED, f"style {style}", style.slug, person)
            locked.delete()
    except ProtectedError as error:
        raise Refused("style_in_use", f"{style.name} has just come into use; archive it", status=409) from error


def check_not_archived(style: Style) -> None:
    """Refuse imports, training runs, promotions and new captions of an archived style. The style is locked: call it
    within the transaction that adds them.

    Raises:
        Refused: it is archived, or was deleted meanwhile.
    """
    if _locked(style).status == Status.ARCHIVED:
        raise Refused("style_archived", f"{style.name} is archived; bring it back first", status=409)


def _locked(style: Style) -> Style:
    locked = Style.objects.select_for_update(no_key=True).filter(pk=style.pk).first()
    if locked is None:
        raise not_found("style", style.slug)
    return locked


def _set(style: Style, status: Status, what: str, person: Any) -> None:
    Style.objects.filter(pk=style.pk).update(status=status)
    style.status = status
    audit.record(audit.Action.SERVICE, f"style {style}", what, person)


def _rows_of(style: Style) -> list[QuerySet[Any]]:
    """The rows that must not lose their style, by kind: captions, versions, promotions, and those of other apps."""
    return [
        relation.related_model._default_manager.filter(**{relation.field.name: style})
        for relation in Style._meta.get_fields(include_hidden=True)
        if isinstance(relation, ManyToOneRel) and relation.on_delete is PROTECT
    ]


def _counted(kinds: Sequence[QuerySet[Any]]) -> str:
    """How many rows there are of each kind that has some, for people."""
    counts = [(rows.model._meta, rows.count()) for rows in kinds]
    return ", ".join(
        f"{count:,} {options.verbose_name if count == 1 else options.verbose_name_plural}"
        for options, count in counts
        if count
    )
