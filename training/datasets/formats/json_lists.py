"""JSON Lines, and a JSON list of the same entries: `{"file": ..., "captions": [...]}`, or a caption each.

The ClipCap authors' `train_caption.json` is such a list, whose pictures are named by their numbers in COCO.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from training.datasets.formats.base import LOOK, SPLIT_KEY, Annotations, Row, file_and_captions, fits, rows_of
from training.datasets.reading import entries, lines, parsed


class JsonLines(Annotations):
    """An entry a line."""

    format = "JSON Lines"

    @staticmethod
    def fits(head: str) -> bool:
        """Whether one of the file's first lines is such an entry, in a file that is not one JSON document with an entry
        on a line of its own."""
        first, *others = head.lstrip().split("\n")[:LOOK] or [""]
        return not first.rstrip().endswith(("{", "[", ",")) and any(fits(parsed(line)) for line in (first, *others))

    def rows(self) -> Iterator[Row]:
        """See `Annotations`."""
        with self.files.open(self.name) as file:
            for number, line in enumerate(lines(file, self.name, self.files.check), start=1):
                if line.strip():
                    yield from _rows(number, parsed(line))


class JsonList(Annotations):
    """A list of entries."""

    format = "JSON list"

    @staticmethod
    def fits(section: str, entry: Any) -> bool:
        """Whether the file is told by this entry to be such a list."""
        return section == "" and fits(entry)

    def rows(self) -> Iterator[Row]:
        """See `Annotations`."""
        with self.files.open(self.name) as file:
            number = 0
            for section, entry in entries(file, self.name, self.files.check):
                if section == "":
                    number += 1
                    yield from _rows(number, entry)


def _rows(number: int, entry: Any) -> Iterator[Row]:
    if isinstance(entry, dict):
        ref, captions = file_and_captions(entry)
        yield from rows_of(number, ref, captions, split=entry.get(SPLIT_KEY))
    else:
        yield Row(number, problem="this is not a JSON object")
