"""Karpathy's JSON: `{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from training.datasets.formats.base import Annotations, Row, no_object, rows_of
from training.datasets.keys import SPLIT_KEY, Keys


class Karpathy(Annotations):
    """Images with their captions, and with the split that they belong to."""

    format = "Karpathy's JSON"

    @staticmethod
    def fits(section: str, entry: Any, keys: Keys) -> bool:
        """Whether this entry shows that the file is one of these."""
        return section == "images" and isinstance(entry, dict) and "sentences" in entry

    def rows(self) -> Iterator[Row]:
        """See `Annotations`."""
        for number, entry in self.objects("images"):
            if entry is None:
                yield no_object(number)
                continue
            folder = entry.get("filepath")
            yield from rows_of(
                number,
                entry.get("filename"),
                entry.get("sentences"),
                folder=folder if isinstance(folder, str) and len(folder) <= 1000 else "",
                split=entry.get(SPLIT_KEY),
            )
