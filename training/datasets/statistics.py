"""Statistics of a style's dataset, for people to judge it."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from django.db.models import Count, QuerySet

from captioner.models import Style
from training.models import Example

SAMPLES, MOST, MOST_REPEATED = 12, 50, 10  # examples, words and texts shown of a dataset
PART = 5000  # examples read at a time

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")


def statistics(style: Style) -> dict[str, Any]:
    """Statistics of a style's dataset, for people to judge it.

    `splits` and `sources` count examples and images; `words` tells how long captions are; `duplicates` are texts that
    several images have; `vocabulary` has the most frequent words; `samples` are the same examples every time, as long
    as nothing is added.
    """
    dataset = Example.objects.filter(style=style)
    lengths: Counter[int] = Counter()
    words: Counter[str] = Counter()
    chance = random.Random(0)
    samples: list[int] = []
    for place, (key, text) in enumerate(dataset.order_by("pk").values_list("pk", "text").iterator(PART)):
        found = _WORD.findall(text.lower())
        words.update(found)
        lengths[len(found)] += 1
        if place < SAMPLES:
            samples.append(key)
        elif (spot := chance.randrange(place + 1)) < SAMPLES:  # every example has the same chance in the end
            samples[spot] = key
    count = lengths.total()
    by_length = sorted(lengths.items())
    texts = dataset.order_by().values("text").annotate(images=Count("pk")).filter(images__gt=1)
    repeated: list[int] = []  # how many images have each of these texts, the most frequent first
    most: list[dict[str, Any]] = []
    for row in texts.order_by("-images", "text").iterator(PART):
        repeated.append(row["images"])
        if len(most) < MOST_REPEATED:
            most.append(dict(row))
    split = {row["held_out"]: row for row in _counted(dataset, "held_out")}
    nothing = {"examples": 0, "images": 0}
    return {
        "examples": count,
        "images": sum(row["images"] for row in split.values()),  # an image is in one split
        "splits": {
            name: {**nothing, **{key: split[held_out][key] for key in nothing if held_out in split}}
            for name, held_out in (("training", False), ("held_out", True))
        },
        "sources": {row["source"]: {key: row[key] for key in nothing} for row in _counted(dataset, "source")},
        "words": {
            "mean": sum(words * times for words, times in by_length) / count if count else 0.0,
            "median": _median(by_length, count),
            "shortest": by_length[0][0] if count else 0,
            "longest": by_length[-1][0] if count else 0,
            "histogram": by_length,
        },
        "duplicates": {"texts": len(repeated), "examples": sum(repeated), "most": most},
        "vocabulary": {"words": len(words), "running": words.total(), "most": words.most_common(MOST)},
        "samples": list(dataset.filter(pk__in=samples).select_related("image").order_by("pk")),
    }


def _counted(dataset: QuerySet[Example], by: str) -> Iterator[dict[str, Any]]:
    yield from dataset.order_by(by).values(by).annotate(examples=Count("pk"), images=Count("image", distinct=True))


def _median(by_length: list[tuple[int, int]], count: int) -> int:
    """The length that half of the captions do not exceed."""
    seen = 0
    for length, times in by_length:
        seen += times
        if 2 * seen >= count:
            return length
    return 0
