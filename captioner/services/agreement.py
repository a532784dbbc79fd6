"""How far people who label agree: which captions two of them are asked about, and what came of it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import SequenceMatcher
from statistics import fmean

from django.conf import settings
from django.db.models import Count, Max, Q

from captioner.models import Caption, Correction, Style
from captioner.services.gate import decimal, whole

MOST_CAPTIONS = 5000  # newest that two people labelled
FEWEST_CAPTIONS = 20  # below that, the figure says little
# Krippendorff, "Content Analysis", on what may be concluded from labels: firmly, and tentatively.
RELIABLE, TENTATIVE = 0.8, 0.667


@dataclass(frozen=True)
class Labeller:
    """What one person has labelled in a style."""

    name: str
    labels: int
    fine: int
    last: datetime


@dataclass(frozen=True)
class Agreement:
    """Of captions that two people labelled: what both said.

    Args:
        fine: captions that both found fine as they were.
        edited: captions that both changed.
        split: captions that one found fine and the other changed.
        alike: of those that both changed, the mean share of words in common, 0 to 1; None without any.
    """

    fine: int = 0
    edited: int = 0
    split: int = 0
    alike: float | None = None

    @property
    def captions(self) -> int:
        """How many captions two people labelled."""
        return self.fine + self.edited + self.split

    @property
    def alpha(self) -> float | None:
        """Krippendorff's alpha for "fine as it is" or not: 1 if people agree, 0 if only as often as by chance, below 0
        if less. None where it says nothing, as everybody always said the same."""
        labels, fine, edited = 2 * self.captions, 2 * self.fine + self.split, 2 * self.edited + self.split
        if not fine or not edited:
            return None
        return 1 - self.split * (labels - 1) / (fine * edited)

    @property
    def sentence(self) -> str:
        """All of this in words; empty where no caption has two labels."""
        if not self.captions:
            return ""
        same = self.fine + self.edited
        counted = (
            f"Two people labelled {whole(self.captions)} caption{'' if self.captions == 1 else 's'}, and agree on "
            f"{whole(same)} of them ({round(100 * same / self.captions)} %) whether they are fine as they are: "
        )
        if self.captions < FEWEST_CAPTIONS:
            return f"{counted}too few to tell how far labels can be trusted; {FEWEST_CAPTIONS} are needed"
        if self.alpha is None:
            return f"{counted}everybody always said the same, so there is nothing to measure agreement by"
        if self.alpha >= RELIABLE:
            means = "people agree well, and one person's labels can be trusted"
        elif self.alpha >= TENTATIVE:
            means = "people agree fairly well, and labels allow tentative conclusions"
        else:
            means = "people agree too little to trust one person's labels; settle together what makes a caption fine"
        return f"{counted}{means} (Krippendorff's alpha {decimal(self.alpha)})"


def asked_twice(image: uuid.UUID) -> bool:
    """Whether two people are asked about the captions of a photo: chosen by its id, which is random."""
    share: float = settings.LABELLED_TWICE
    return image.int % 10_000 < share * 10_000


def is_labelled(caption: Caption) -> bool:
    """Whether nobody needs to be asked about a caption any more; all who are not signed in count as one person."""
    people = set(Correction.objects.filter(caption=caption).values_list("author", flat=True))
    return len(people) >= (2 if asked_twice(caption.image_id) else 1)


def labellers(style: Style) -> list[Labeller]:
    """Who has labelled captions of a style, the most diligent first."""
    rows = (
        Correction.objects.filter(caption__style=style)
        .order_by()
        .values_list("author__username")
        .annotate(labels=Count("pk"), fine=Count("pk", filter=Q(confirms=True)), last=Max("created_at"))
        .order_by("-labels", "author__username")
    )
    return [Labeller(name or "people who are not signed in", *counts) for name, *counts in rows]


def agreement(style: Style) -> Agreement:
    """How far people agree on the captions of a style, by the last label of each of the first two who labelled one."""
    labels = Correction.objects.filter(caption__style=style, author__isnull=False).order_by()
    twice = labels.values("caption").annotate(people=Count("author", distinct=True)).filter(people__gte=2)
    captions = list(twice.order_by("-caption").values_list("caption", flat=True)[:MOST_CAPTIONS])
    said: dict[uuid.UUID, dict[int, tuple[bool, str]]] = {}
    for start in range(0, len(captions), 500):
        found = labels.filter(caption__in=captions[start : start + 500]).order_by("pk")
        for caption, author, confirms, text in found.values_list("caption", "author", "confirms", "text"):
            said.setdefault(caption, {})[author] = (confirms, text)
    return compared([tuple(people.values())[:2] for people in said.values()])


def compared(pairs: Sequence[Sequence[tuple[bool, str]]]) -> Agreement:
    """How far people agree.

    Args:
        pairs: of each caption two labels: whether it was found fine, and its text.
    """
    fine = sum(first[0] and second[0] for first, second in pairs)
    edits = [(first[1], second[1]) for first, second in pairs if not first[0] and not second[0]]
    alike = fmean(_in_common(*texts) for texts in edits) if edits else None
    return Agreement(fine=fine, edited=len(edits), split=len(pairs) - fine - len(edits), alike=alike)


def _in_common(first: str, second: str) -> float:
    """The share of the words of two texts that both have in the same order, 0 to 1 (Ratcliff and Obershelp 1988)."""
    return SequenceMatcher(None, first.casefold().split(), second.casefold().split(), autojunk=False).ratio()
