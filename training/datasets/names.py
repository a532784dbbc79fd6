"""Which file of a dataset a reference means.

People zip a folder, or what is in it, and annotations carry the paths of the machine they were made on: a file is meant
if its path ends as the reference does, or the other way round. They also move between systems that spell accents in
another Unicode form, and that do not tell capitals: a name spelled exactly like the reference comes first, and one
spelled another way is meant only if there is one alone.
"""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple

from captioner.errors import Refused
from clipcap.image import SUFFIXES
from training.datasets.refusals import shown

MAX_PARTS = 32  # of a reference; people nest folders, but not that deep

# COCO's pictures are named after their numbers: COCO_train2014_000000000042.jpg, and 000000000042.jpg since 2017.
_NUMBERED = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})", re.IGNORECASE)
_NUMBER = re.compile(r"(\d{1,12})(?:\.0+)?")  # 42.0 is what becomes of a column of numbers that has gaps


class Match(NamedTuple):
    """A file that a reference means, and the folder in the reference that was left out to find it; "" if none was."""

    name: str
    left_out: str = ""


def is_picture(name: str) -> bool:
    """Whether a name ends as pictures' names do."""
    return name.lower().endswith(SUFFIXES)


def folded(name: str) -> str:
    """What names have in common that differ in Unicode form, capitals or the way slashes lean, and no others.

    Python's own `casefold` goes further: it would take "Masse.jpg" for "Maße.jpg".
    """
    if name.isascii():
        return name.lower().replace("\\", "/")
    composed = unicodedata.normalize("NFC", name)
    small = "".join(one if len(one := letter.casefold()) == 1 else letter.lower() for letter in composed)
    return unicodedata.normalize("NFC", small).replace("\\", "/")


class _Index:
    """Names by what they have in common with a reference, read from their ends."""

    def __init__(self, names: Iterable[str], spelled: Callable[[str], str]) -> None:
        self._spelled = spelled
        self._names = sorted(names, key=self._key)

    def _key(self, name: str) -> str:
        return self._spelled(f"/{name}")[::-1]

    def find(self, path: str) -> str | None:
        """The name that is this path; it raises `Refused` if there are several, as below."""
        return self._one(path, lambda key, end: key == end)

    def find_end(self, path: str) -> str | None:
        """The name that ends as this path."""
        return self._one(path, str.startswith)

    def _one(self, path: str, is_it: Callable[[str, str], bool]) -> str | None:
        end = self._key(path)
        place = bisect.bisect_left(self._names, end, key=self._key)
        # What is equal stands before what is longer, and two are enough to know that there are several.
        return _only([name for name in self._names[place : place + 2] if is_it(self._key(name), end)], path)


class DatasetNames:
    """The files of a dataset by their paths inside it, with "/" between folders."""

    def __init__(self, names: Iterable[str]) -> None:
        self.all = list(names)
        # Sorted backwards, all names with the same end are neighbours.
        self._exact = _Index(self.all, str)
        self._alike = _Index(self.all, folded)

    def find(self, ref: str, beside: str) -> Match | None:
        """The file that a reference in the folder `beside` means, if there is one.

        Raises:
            Refused: several files may be meant.
        """
        if "\\" in ref:  # which a file on a disk may well have in its name
            name = self._exact.find(_near(beside, ref)) or self._exact.find(ref)
            if name:
                return Match(name)
        parts = [part for part in ref.replace("\\", "/").split("/") if part not in ("", ".")]
        for first in range(min(len(parts), MAX_PARTS)):
            path = "/".join(parts[first:])
            for index in (self._exact, self._alike):
                name = index.find(_near(beside, path)) or index.find(path)
                if not name and first == 0:
                    name = index.find_end(path)
                if name:
                    before = parts[first - 1] if first else ".."
                    return Match(name, "" if before == ".." else folded(before))
        number = _NUMBER.fullmatch(ref)
        return self._numbered(int(number[1]), ref) if number else None

    def alike(self, path: str) -> str | None:
        """The file of exactly this path, spelled like that or, if there is one alone, another way.

        Raises:
            Refused: there are several.
        """
        return self._exact.find(path) or self._alike.find(path)

    def of_stem(self, stem: str) -> str | None:
        """The picture whose path without its ending is `stem`, if there is one.

        Raises:
            Refused: there are several.
        """
        alike = self._stems.get(folded(stem), [])
        return _only([name for name in alike if name.rpartition(".")[0] == stem] or alike, stem)

    def _numbered(self, number: int, ref: str) -> Match | None:
        name = _only(self._numbers.get(number, []), ref)
        return Match(name) if name else None

    @cached_property
    def _numbers(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for name in self.all:
            if is_picture(name) and (number := _NUMBERED.fullmatch(name.rpartition("/")[2].partition(".")[0])):
                found.setdefault(int(number[1]), []).append(name)
        return found

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.all:
            if is_picture(name):
                found.setdefault(folded(name.rpartition(".")[0]), []).append(name)
        return found


def _near(beside: str, path: str) -> str:
    return f"{beside}/{path}" if beside else path


def _only(meant: list[str], ref: str) -> str | None:
    """The one of these, if there is one.

    Raises:
        Refused: there are several.
    """
    if len(meant) > 1:
        raise Refused(
            "ambiguous_file", f"{shown(ref)} may be {shown(meant[0])} or {shown(meant[1])}; write the exact path"
        )
    return meant[0] if meant else None
