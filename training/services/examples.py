"""Examples: add them, take them from corrections, leave them out."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import Count, Exists, OuterRef, QuerySet

from captioner import services as captioner_services
from captioner.errors import Refused
from captioner.jobs.job import clock
from captioner.models import Correction, Image, Style
from clipcap.evaluation.comparison import HELD_OUT_SHARE
from training.models import Example, TrainingRun, is_held_out
from training.options import RunOptions
from training.splits import settle
from training.texts import caption_text

LEAST_TRAINING, LEAST_HELD_OUT = 2, 1  # photos; so few show how a style may become, and prove nothing
PART = 500  # corrections taken in one transaction


@dataclass(frozen=True)
class Photos:
    """How many photos with captions there are in each split."""

    training: int
    held_out: int

    @property
    def enough(self) -> bool:
        """Whether a run can learn from them."""
        return self.training >= LEAST_TRAINING and self.held_out >= LEAST_HELD_OUT


def count_photos(examples: QuerySet[Example]) -> Photos:
    """The photos of some examples, by split."""
    images = Count("image", distinct=True)
    photos = dict(examples.order_by().values_list("held_out").annotate(images=images))
    return Photos(photos.get(False, 0), photos.get(True, 0))


def add_example(
    *, style: Style, image: Image, text: str, source: str, correction: Correction | None = None, batch: Any = None
) -> bool:
    """Add an image with a caption to a style's dataset.

    Returns:
        Whether it is new there.

    Raises:
        Refused: as `caption_text`.
    """
    with transaction.atomic():
        _, created = Example.objects.get_or_create(
            style=style,
            image=image,
            text=caption_text(text),
            defaults={
                "source": source,
                "held_out": settle({image.pk: is_held_out(image)}, {})[image.pk],
                "correction": correction,
                "batch": batch,
            },
        )
    return created


def add_sentences(style: Style, sentences: Sequence[tuple[Image, str]]) -> int:
    """Add what a person wrote about stored photos to a style's dataset.

    Of so few, chance may leave none to validate by. Then as many as `HELD_OUT_SHARE` asks for, one at least, are
    declared held out: rather photos that nobody has trained on.

    Returns:
        How many are new in the dataset.

    Raises:
        Refused: one is not a caption (see `caption_text`), or its photo was deleted meanwhile.
    """
    texts = [(image, caption_text(text)) for image, text in sentences]
    images = {image.pk: image for image, _ in texts}
    with transaction.atomic():
        captioner_services.check_not_archived(style)
        captioner_services.lock_images(set(images))
        held_out = settle({pk: is_held_out(image) for pk, image in images.items()}, _declared(style, images))
        rows = [
            Example.objects.get_or_create(
                style=style,
                image=image,
                text=text,
                defaults={"source": Example.Source.STORED, "held_out": held_out[image.pk]},
            )
            for image, text in texts
        ]
    return sum(created for _, created in rows)


def _declared(style: Style, images: Mapping[uuid.UUID, Image]) -> dict[uuid.UUID, bool]:
    """Which of some new images of a style have to be held out, that enough of its images are."""
    there = dict(style.examples.order_by().values_list("image", "held_out").distinct())
    known = dict(Example.objects.filter(image__in=images).order_by().values_list("image", "held_out").distinct())
    wanted = math.ceil(HELD_OUT_SHARE * len({*there, *images}))
    missing = wanted - sum(held_out for pk, held_out in there.items() if pk not in images)
    order = sorted(
        images, key=lambda pk: (not known.get(pk, is_held_out(images[pk])), pk in known, images[pk].sha256, pk)
    )
    return dict.fromkeys(order[: max(0, missing)], True)


def open_corrections(style: Style) -> QuerySet[Correction]:
    """The corrections of a style's captions that nobody has considered yet; of each caption the newest alone."""
    newer = Correction.objects.filter(caption=OuterRef("caption"), pk__gt=OuterRef("pk"))
    return (
        Correction.objects.filter(~Exists(newer), caption__style=style, considered_at=None)
        .select_related("caption__image", "caption__style")
        .order_by("pk")
    )


def take_corrections(corrections: QuerySet[Correction]) -> int:
    """Make examples of people's corrections; what has no word is left out.

    Returns:
        How many are new in their dataset.
    """
    count, last = 0, 0
    while part := list(corrections.filter(pk__gt=last).order_by("pk")[:PART]):
        last = part[-1].pk
        with transaction.atomic():
            Image.lock({correction.caption.image_id for correction in part})  # in one order, as imports do
            # Looked up again: until then, labels may have been undone and photos deleted.
            for correction in corrections.filter(pk__in=[correction.pk for correction in part]).order_by("pk"):
                with suppress(Refused):
                    count += add_example(
                        style=correction.caption.style,
                        image=correction.caption.image,
                        text=correction.text,
                        source=Example.Source.CORRECTION,
                        correction=correction,
                    )
            leave_out(part)
    return count


def leave_out(corrections: Iterable[Correction]) -> int:
    """Consider corrections without making examples of them: "take all" and policies pass them from now on.

    Returns:
        How many nobody had considered before.
    """
    chosen = Correction.objects.filter(pk__in=[correction.pk for correction in corrections], considered_at=None)
    return chosen.update(considered_at=clock("default"))


def dataset(style: Style, options: RunOptions, last: int | None = None) -> QuerySet[Example]:
    """The examples that a run learns from and is judged by; `last` is the newest that counts."""
    examples = Example.objects.filter(style=style, source__in=options.sources)
    return examples if last is None else examples.filter(pk__lte=last)


def held_out_captions(style: Style, most: int) -> dict[uuid.UUID, list[str]]:
    """Held-out photos of a style's dataset, `most` at most, with people's captions."""
    held_out = style.examples.filter(held_out=True)
    images = held_out.order_by("image").values_list("image", flat=True).distinct()[:most]
    found: dict[uuid.UUID, list[str]] = {}
    for image, text in held_out.filter(image__in=list(images)).order_by("pk").values_list("image", "text"):
        found.setdefault(image, []).append(text)
    return found


def newest_example(runs: QuerySet[TrainingRun], sources: set[str]) -> int:
    """The newest example that any of the runs could learn from, as far as they took all of these sources."""
    rows = runs.values_list("last_example", "options")
    return max((last for last, options in rows if sources <= set(RunOptions.read(options).sources)), default=0)
