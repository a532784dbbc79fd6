"""Comparison of versions in numbers."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import numpy as np
from django.db.models import Count
from django.utils.safestring import SafeString

from captioner.admin import dashboard
from captioner.admin.plots import COLOURS, heat_map, score_bars
from captioner.jobs.job import UNFINISHED, Status
from captioner.models import Caption, Draft, DraftRequest, Image, MapperVersion
from clipcap.evaluation.names import NAMES
from clipcap.prefixes import distances, mean_distance

LOOKED_THROUGH = 1_000  # captions of each version that is compared


def colours_of(versions: Iterable[MapperVersion]) -> dict[str, int]:
    """The colour of each version by its name: that of its number, so that a version has the same one in every drawing.
    Where two versions would share one, the later gets the next that is free."""
    found: dict[str, int] = {}
    for version in versions:
        taken = set(found.values()) if len(found) < COLOURS else set()
        colour = version.number % COLOURS
        while colour in taken:
            colour = (colour + 1) % COLOURS
        found[str(version)] = colour
    return found


def scores_drawn(versions: list[MapperVersion]) -> SafeString:
    """The scores of versions as bars."""
    return score_bars(scores_of(versions), "Scores on the held-out images", colours_of(versions))


def scores_of(versions: list[MapperVersion]) -> dict[str, dict[str, float]]:
    """The versions' scores by the metric's name, then by version; without those that were not computed."""
    found = {name: {str(v): dashboard.score(v, metric) for v in versions} for metric, name in NAMES.items()}
    known = {m: {v: s for v, s in scores.items() if s is not None} for m, scores in found.items()}
    return {metric: scores for metric, scores in known.items() if scores}


def written_by(versions: list[MapperVersion], photos: int = 24) -> list[dict[str, Any]]:
    """What each version wrote last about the same photos: those of its newest captions, first the photos that most of
    the versions wrote about."""
    texts: dict[Any, dict[int, str]] = {}
    newest: dict[Any, datetime] = {}
    for version in versions:
        # What has a version has succeeded. To ask for that too would lead the database to another index.
        captions = Caption.objects.filter(version=version).order_by("-created_at", "-pk")
        for image, text, at in captions.values_list("image", "text", "created_at")[:LOOKED_THROUGH]:
            texts.setdefault(image, {}).setdefault(version.pk, text)
            newest[image] = max(at, newest.get(image, at))
    images = sorted(texts, key=lambda image: (len(texts[image]), newest[image]), reverse=True)[:photos]
    stored = Image.objects.in_bulk(images)
    return [
        {"image": stored[pk], "texts": [texts[pk].get(v.pk, "") for v in versions]} for pk in images if pk in stored
    ]


def standing(request: DraftRequest) -> dict[str, Any]:
    """How far a comparison is, and what its page shows of it."""
    counts = dict(request.drafts.values_list("status").annotate(count=Count("pk")))
    total, left = sum(counts.values()), sum(counts.get(status, 0) for status in UNFINISHED) + request.listing
    failed = request.drafts.filter(status=Status.FAILED).first()
    shown = {"request_": request, "total": total, "left": left, "written": counts.get(Status.SUCCEEDED, 0)}
    shown |= {"failed": counts.get(Status.FAILED, 0), "reason": failed.error_detail if failed else ""}
    if request.style:
        return shown
    drafts = list(request.drafts.select_related("image", "version__style").order_by("created_at", "pk"))
    images = sorted({draft.image for draft in drafts}, key=lambda image: (image.created_at, image.pk))
    versions = sorted({draft.version for draft in drafts}, key=lambda version: (version.style.slug, version.number))
    by_place = {(draft.image, draft.version): draft for draft in drafts}
    return shown | {
        "versions": versions,
        "photos": [{"image": i, "drafts": [by_place.get((i, v)) for v in versions]} for i in images],
        "spreads": [] if left else [spread for v in versions if (spread := spread_of(v, images, by_place))],
    }


def spread_of(
    version: MapperVersion, images: list[Image], drafts: dict[tuple[Image, MapperVersion], Draft]
) -> dict[str, Any] | None:
    """How far a version's prefixes of different photos differ; nothing where there are not two."""
    written = [(str(n), draft.prefix) for n, i in enumerate(images, 1) if (draft := drafts.get((i, version)))]
    found = {number: np.frombuffer(bytes(prefix), "<f2") for number, prefix in written if prefix}
    if len(found) < 2:
        return None
    prefixes = np.stack(list(found.values())).reshape(len(found), version.mapper.prefix_length, -1)
    title = f"Distances between the prefixes by {version}"
    return {
        "version": version,
        "mean": mean_distance(prefixes),
        "map": heat_map(distances(prefixes).tolist(), list(found), title),
    }
