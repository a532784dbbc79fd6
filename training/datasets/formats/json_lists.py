"""JSON Lines, and a JSON list of the same entries: `{"file": ..., "captions": [...]}`, or a caption each.

The ClipCap authors' `train_caption.json` is such a list, whose pictures are named by their numbers in COCO.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from training.datasets.formats.base import LOOK, Annotations, Row, file_and_captions, fits, rows_of
from training.datasets.keys import SPLIT_KEY, Keys
from training.datasets.reading import entries, lines, parsed


class JsonLines(Annotations):
    """An entry a line."""

    format = "JSON Lines"

    @staticmethod
    def fits(head: str, keys: Keys) -> bool:
        """Whether one of the file's first lines is such an entry, in a file that is not one JSON document with an entry
        on a line of its own."""
        first, *others = head.lstrip().split("\n")[:LOOK] or [""]
        return not first.rstrip().endswith(("{", "[", ",")) and any(
            fits(parsed(line), keys) for line in (first, *others)
        )

    def rows(self) -> Iterator[Row]:
        """See `Annotations`."""
        with self.files.open(self.name) as file:
            for number, line in enumerate(lines(file, self.name, self.files.check), start=1):
                if line.strip():
                    yield from _rows(number, parsed(line), self.files.keys)


class JsonList(Annotations):
    """A list of entries."""

    format = "JSON list"

    @staticmethod
    def fits(section: str, entry: Any, keys: Keys) -> bool:
        """Whether this entry shows that the file is such a list."""
        return section == "" and fits(entry, keys)

    def rows(self) -> Iterator[Row]:
        """See `Annotations`."""
        with self.files.open(self.name) as file:
            number = 0
            for section, entry in entries(file, self.name, self.files.check):
                if section == "":
                    number += 1
                    yield from _rows(number, entry, self.files.keys)


def _rows(number: int, entry: Any, keys: Keys) -> Iterator[Row]:
    if isinstance(entry, dict):
        ref, captions = file_and_captions(entry, keys)
        yield from rows_of(number, ref, captions, split=entry.get(SPLIT_KEY))
    else:
        yield Row(number, problem="this is not a JSON object")
