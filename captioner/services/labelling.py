"""Labelling: which caption a person is asked about next, and what they have said so far."""

from __future__ import annotations

import math
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce
from itertools import pairwise
from operator import or_

from django.db import models, transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone
from django.utils.timesince import timesince

from captioner.errors import Refused
from captioner.jobs.job import Status
from captioner.models import Caption, Correction, Draft, Image, Skip, Style, Viewer
from captioner.services.agreement import is_labelled
from captioner.services.visibility import get_caption, with_parts

LATELY = 30  # the newest labels, which tell the pace
FEWEST = 5  # intervals between labels; fewer tell no pace
BREAK = timedelta(minutes=5)  # whoever labels nothing for so long does something else


class LabelOrder(models.TextChoices):
    """In which order captions are asked about."""

    DOUBT = "doubt", "Least sure first"
    DISPUTE = "dispute", "Versions disagree"
    RANDOM = "random", "Random"


@dataclass(frozen=True)
class LabelProgress:
    """How far a person is."""

    today: int  # captions labelled since midnight, in the service's time zone
    left: int  # captions of the style that are still to be labelled
    each: timedelta | None = None  # for a caption, lately; None where too little is known

    @property
    def pace(self) -> str:
        """How fast they label, and how long the rest takes at that: "12 a minute, about 20 minutes left"; empty where
        too little is known."""
        if not self.each:
            return ""
        minute, hour = timedelta(minutes=1), timedelta(hours=1)
        pace = f"{round(minute / self.each)} a minute" if self.each <= minute else f"{round(hour / self.each)} an hour"
        if not self.left:
            return pace
        start, rest = timezone.now(), math.ceil(self.each * self.left / minute) * minute
        return f"{pace}, about {timesince(start, start + rest)} left"


def styles_to_label() -> QuerySet[Style]:
    """The styles whose captions are worth labelling, the default one first."""
    return Style.objects.exclude(status=Style.Status.ARCHIVED)


def unlabelled(style: Style) -> QuerySet[Caption]:
    """The finished captions of a style that somebody has still to label."""
    # `labelled` is compared with a value, for which SQLite takes the index.
    return Caption.objects.filter(style=style, status=Status.SUCCEEDED, labelled__in=[False]).order_by()


def captions_to_label(viewer: Viewer, style: Style) -> QuerySet[Caption]:
    """The finished captions of a style that the viewer is asked about: nobody has labelled them, or one person where
    two are asked, and the viewer has neither labelled nor skipped them."""
    mine = Correction.objects.filter(caption=OuterRef("pk"), author=viewer.user)
    skipped = Skip.objects.filter(caption=OuterRef("pk"), person=viewer.user)
    return unlabelled(style).filter(viewer.labels()).exclude(Exists(mine)).exclude(Exists(skipped))


def caption_to_label(
    viewer: Viewer,
    style: Style,
    order: LabelOrder,
    *,
    at: uuid.UUID | None = None,
    after: uuid.UUID | None = None,
) -> Caption | None:
    """The caption to ask the viewer about; None if all are labelled, or none is left that versions disagree on.

    Args:
        order: of those that versions disagree on, the least sure comes first too.
        at: the one to ask about, if it is still to be labelled.
        after: the one that was asked about before; after the last one, the first follows again.
    """
    captions = captions_to_label(viewer, style)
    if order == LabelOrder.DISPUTE:
        captions = _disputed(captions)
    if at and captions.filter(pk=at).exists():
        found: uuid.UUID | None = at
    elif order == LabelOrder.RANDOM:
        others = captions.exclude(pk=after) if after else captions
        found = _any(others) or _any(captions)
    else:
        before = Caption.objects.filter(pk=after).first() if after else None
        parts = _least_sure(captions, before)
        found = next((pk for part in parts if (pk := part.values_list("pk", flat=True).first())), None)
    return with_parts(Caption.objects.filter(pk=found)).first() if found else None


def label_progress(viewer: Viewer, style: Style) -> LabelProgress:
    """How many captions the viewer has labelled today, of all styles, how fast, and how many of this style are left."""
    today = Correction.objects.filter(author=viewer.user, created_at__gte=_midnight())
    return LabelProgress(
        today=today.order_by().values("caption").distinct().count(),
        left=captions_to_label(viewer, style).count(),
        each=_time_of_each(today),
    )


def skip_caption(viewer: Viewer, pk: uuid.UUID) -> None:
    """Do not ask the viewer about a caption again.

    Raises:
        Refused: not there, or nobody is signed in.
    """
    if viewer.user is None:
        raise Refused("not_signed_in", "sign in to skip captions", status=403)
    caption = get_caption(viewer, pk, to="change")
    Skip.objects.get_or_create(caption=caption, person=viewer.user)


def last_label(viewer: Viewer) -> Correction | Skip | None:
    """What the viewer labelled or skipped last, today."""
    corrections = Correction.objects.filter(author=viewer.user, created_at__gte=_midnight())
    skips = Skip.objects.filter(person=viewer.user, created_at__gte=_midnight())
    newest = [
        rows.select_related("caption__style").order_by("-created_at", "-pk").first() for rows in (corrections, skips)
    ]
    return max((row for row in newest if row), key=lambda row: row.created_at, default=None)


def undo_label(viewer: Viewer, pk: uuid.UUID) -> Caption:
    """Take back what the viewer labelled or skipped last.

    Args:
        pk: the caption it is about, so that pressing twice does not undo two.

    Returns:
        The caption, which is to be labelled again.

    Raises:
        Refused: it is about another caption by now, or it was used in training examples.
    """
    with transaction.atomic():
        last = last_label(viewer)
        if last is None or last.caption_id != pk:
            raise Refused("not_last", "this is not your last label any more, so nothing was undone", status=409)
        Image.lock([last.caption.image_id])  # as those do who make examples of corrections
        if isinstance(last, Correction) and not Correction.objects.filter(pk=last.pk, considered_at=None).exists():
            raise Refused(
                "label_used",
                "this label was already considered for the training examples, so it cannot be undone; correct the "
                "caption on its photo's page instead",
                status=409,
            )
        last.delete()
        Caption.objects.filter(pk=pk).update(labelled=is_labelled(last.caption))
    return last.caption


def _midnight() -> datetime:
    return timezone.localtime().replace(hour=0, minute=0, second=0, microsecond=0)


def _time_of_each(labels: QuerySet[Correction]) -> timedelta | None:
    """How long a person took for each of their newest labels, without breaks; None where these are too few."""
    newest = labels.order_by("-created_at", "-pk").values_list("created_at", flat=True)[:LATELY]
    working = [taken for later, earlier in pairwise(newest) if (taken := later - earlier) < BREAK]
    return sum(working, timedelta()) / len(working) if len(working) >= FEWEST else None


def _any(captions: QuerySet[Caption]) -> uuid.UUID | None:
    place = random.randrange(captions.count() or 1)
    return next(iter(captions.values_list("pk", flat=True)[place : place + 1]), None)


def _disputed(captions: QuerySet[Caption]) -> QuerySet[Caption]:
    """Those of whose photo another version of the style has written something else, as a caption or in a comparison."""
    same = {"image": OuterRef("image"), "status": Status.SUCCEEDED}
    by_others = (
        Exists(rows.order_by().exclude(version=OuterRef("version")).exclude(text__in=("", OuterRef("text"))))
        for rows in (
            Caption.objects.filter(style=OuterRef("style"), **same),
            Draft.objects.filter(version__style=OuterRef("style"), **same),
        )
    )
    return captions.filter(reduce(or_, by_others))


def _least_sure(captions: QuerySet[Caption], before: Caption | None) -> Iterator[QuerySet[Caption]]:
    """The captions in parts, each in the order of an index; those whose confidence is unknown come last."""
    known = captions.filter(confidence__isnull=False).order_by("confidence", "pk")
    unknown = captions.filter(confidence=None).order_by("pk")
    if before and before.confidence is None:
        yield unknown.filter(pk__gt=before.pk)
    elif before:
        yield known.filter(confidence__gte=before.confidence).exclude(confidence=before.confidence, pk__lte=before.pk)
    yield from (unknown, known) if before and before.confidence is not None else (known, unknown)
