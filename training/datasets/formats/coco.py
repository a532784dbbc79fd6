"""COCO's captions: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from training.datasets import refusals
from training.datasets.formats.base import Annotations, Row, no_object, number_or_name, rows_of
from training.datasets.keys import Keys
from training.datasets.reading import entries
from training.datasets.refusals import shown

_LONGEST = 1000  # characters of an id or a file's name


class Coco(Annotations):
    """Captions of numbered images, and the images' files, before or behind them."""

    format = "COCO"

    # Which file each number stands for, or the two that it stands for by mistake: the one part of a dataset that is in
    # memory as a whole.
    _named: dict[str, str | tuple[str, str]] | None = None

    @staticmethod
    def fits(section: str, entry: Any, keys: Keys) -> bool:
        """Whether this entry shows that the file is one of COCO's."""
        return section == "annotations" and isinstance(entry, dict) and "caption" in entry

    def rows(self) -> Iterator[Row]:
        """See `Annotations`."""
        if self._named is None:
            self._named = self._images()
        for number, entry in self.objects("annotations"):
            if entry is None:
                yield no_object(number)
                continue
            key = number_or_name(entry.get("image_id"))
            named = self._named.get(key, key)
            if isinstance(named, tuple):
                yield Row(
                    number,
                    problem=f"image id {shown(key)} is used for {shown(named[0])} and {shown(named[1])}; give each "
                    f"image its own id",
                )
            else:
                yield from rows_of(number, named, entry.get("caption"))

    def _images(self) -> dict[str, str | tuple[str, str]]:
        found: dict[str, str | tuple[str, str]] = {}
        with self.files.open(self.name) as file:
            for section, entry in entries(file, self.name, self.files.check):
                if section != "images" or not isinstance(entry, dict):
                    continue
                key, name = number_or_name(entry.get("id")), entry.get("file_name")
                if not key or not isinstance(name, str) or max(len(key), len(name)) > _LONGEST:
                    continue
                other = found.setdefault(key, name)
                if isinstance(other, str) and other != name:
                    found[key] = (other, name)
                if len(found) > refusals.MAX_FILES:
                    raise refusals.too_many_files()
        return found
