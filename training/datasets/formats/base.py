"""What all formats have in common: a file of annotations, and the rows that it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from captioner.errors import Refused
from training.datasets.files import DatasetFiles
from training.datasets.keys import FILE_KEYS, Keys
from training.datasets.reading import entries
from training.texts import caption_text

LOOK = 20  # lines or entries that are looked at to tell a format

_LONGEST_REF = 1000
_EXACT = 2**53  # above it a float does not tell one whole number from the next
_WHOLE = re.compile(r"(-?\d+)\.0+")
_SPLITS = {word: False for word in ("train", "training", "restval")} | {
    word: True for word in ("val", "valid", "validation", "dev", "test", "testing")
}


@dataclass(frozen=True, slots=True)
class Row:
    """A caption and the image it names, or the problem with it.

    folder: where the image may lie, in formats that tell it apart.
    held_out: whether the file says that the image is for validation or test; None if it says nothing.
    """

    line: int
    ref: str = ""
    text: str = ""
    problem: str = ""
    folder: str = ""
    held_out: bool | None = None


class Annotations:
    """A file that says which images have which captions."""

    format = ""  # as people call it

    def __init__(self, files: DatasetFiles, name: str) -> None:
        self.files, self.name = files, name

    @property
    def folder(self) -> str:
        """The folder that it lies in."""
        return self.name.rpartition("/")[0]

    def columns(self) -> str:
        """Which of its columns are used, if it has any."""
        return ""

    def rows(self) -> Iterator[Row]:
        """What it says, one caption after the other, in the same order every time.

        Raises:
            Refused: the file cannot be read on; all that can be reported row by row is reported in the rows instead.
        """
        raise NotImplementedError

    def objects(self, section: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """The entries of one list of a JSON file, numbered from 1; None for one that is not an object.

        Raises:
            Refused: see `entries`.
        """
        with self.files.open(self.name) as file:
            found = (entry for name, entry in entries(file, self.name, self.files.check) if name == section)
            for number, entry in enumerate(found, start=1):
                yield number, entry if isinstance(entry, dict) else None


class Unreadable(Annotations):
    """A file that is called like annotations and cannot be read."""

    format = "unreadable"

    def __init__(self, files: DatasetFiles, name: str, problem: str) -> None:
        super().__init__(files, name)
        self.problem = problem

    def rows(self) -> Iterator[Row]:
        """The problem, so that it is reported beside what others say."""
        yield Row(1, problem=self.problem)


def no_object(line: int) -> Row:
    """The row of an entry that is not a JSON object."""
    return Row(line, problem="this is not a JSON object")


def rows_of(line: int, ref: Any, captions: Any, *, folder: str = "", split: Any = None) -> Iterator[Row]:
    """One row for each caption of an entry; at least one."""
    ref = identifier(ref)
    if not ref or len(ref) > _LONGEST_REF:
        yield Row(line, problem=f"it has no image name; put the name in {', '.join(FILE_KEYS)}")
        return
    held_out = held_out_by(split)
    if not isinstance(captions, list):
        captions = [captions]
    for caption in captions or [None]:
        text = caption.get("raw") if isinstance(caption, dict) else caption
        if not isinstance(text, str):
            yield Row(line, problem="it has no caption, or the caption is not a text")
            continue
        try:
            yield Row(line, ref, caption_text(text), folder=folder, held_out=held_out)
        except Refused as error:
            yield Row(line, problem=error.detail)


def identifier(value: Any) -> str:
    """A name or number as text, "" if it is none. 1 and 1.0 are the same number: gaps in a column make floats of it."""
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.strip() if isinstance(value, str) else ""


def number_or_name(value: Any) -> str:
    """As `identifier`, for what is certainly no file's name: "1.0" is 1 as well."""
    text = identifier(value)
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def held_out_by(split: Any) -> bool | None:
    """Whether a split of this name is for validation or test; None if the word says nothing."""
    return _SPLITS.get(split.strip().lower()) if isinstance(split, str) else None


def file_and_captions(entry: dict[str, Any], keys: Keys) -> tuple[Any, Any]:
    """The first value that is none of nothing, of those that may name the image and that may be captions."""
    return tuple(  # type: ignore[return-value]  # which has two parts
        next((entry[key] for key in names if entry.get(key) is not None), None)
        for names in (keys.picture, keys.caption)
    )


def fits(entry: Any, keys: Keys) -> bool:
    """Whether an entry has the keys of an image and a caption, whatever their values."""
    return isinstance(entry, dict) and all(any(key in entry for key in names) for names in (keys.picture, keys.caption))
