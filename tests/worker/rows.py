"""Captions that a worker is asked for, and what became of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captioner import services
from captioner.models import Caption, Viewer

PHOTOS = sorted((Path(__file__).parents[2] / "examples/coco_cc").glob("*.jpg"))[:6]
GREEDY = {"method": "greedy"}


def ask(
    count: int = 1, *styles: str, options: dict[str, Any] = GREEDY, viewer: Viewer | None = None, **more: Any
) -> list[Caption]:
    """Queue captions of `count` photos; all rows of the request."""
    photos = [services.Upload(path.read_bytes(), path.name) for path in PHOTOS[:count]]
    request = services.request_captions(
        viewer=viewer or Viewer(), images=photos, styles=styles, options=options, **more
    )
    return list(Caption.objects.filter(request=request).select_related("image", "style"))


def again(rows: list[Caption]) -> list[Caption]:
    """The rows as they are now; deleted ones are left out."""
    found = Caption.objects.in_bulk([row.pk for row in rows])
    return [found[row.pk] for row in rows if row.pk in found]


def statuses(rows: list[Caption]) -> list[str]:
    return [row.error_code or row.status for row in again(rows)]


def stored(name: str | None, media: Path) -> Path:
    assert name
    return media / name


def pause_is_over() -> None:
    """As time does: what was handed back may be claimed again."""
    Caption.objects.update(ready_at=None)


def causes(row: Caption) -> list[str]:
    return [failure["code"] for failure in again([row])[0].failures]
