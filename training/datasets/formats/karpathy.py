"""Karpathy's JSON: `{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from training.datasets.formats.base import SPLIT_KEY, Annotations, Row, rows_of
from training.datasets.reading import entries


class Karpathy(Annotations):
    """Images with their captions, and with the split that they belong to."""

    @staticmethod
    def fits(section: str, entry: Any) -> bool:
        """Whether the file is told by this entry to be one of these."""
        return section == "images" and isinstance(entry, dict) and "sentences" in entry

    def rows(self) -> Iterator[Row]:
        """See `Annotations`."""
        with self.files.open(self.name) as file:
            number = 0
            for section, entry in entries(file, self.name, self.files.check):
                if section != "images":
                    continue
                number += 1
                if not isinstance(entry, dict):
                    yield Row(number, problem="this is not a JSON object")
                    continue
                folder = entry.get("filepath")
                yield from rows_of(
                    number,
                    entry.get("filename"),
                    entry.get("sentences"),
                    folder=folder if isinstance(folder, str) and len(folder) <= 1000 else "",
                    split=entry.get(SPLIT_KEY),
                )
