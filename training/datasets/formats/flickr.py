"""Flickr8k and Flickr30k as they were published.

A line of captions is `1000268201_693b08cb0e.jpg#0<tab>A child in a pink dress .`; `Flickr_8k.testImages.txt` and the
like list the pictures of a split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from captioner.errors import Refused
from training.datasets.files import DatasetFiles
from training.datasets.formats.base import LOOK, Annotations, Row, held_out_by, rows_of
from training.datasets.names import is_picture
from training.datasets.reading import lines

_TOKEN = re.compile(r"([^\t]+?)#\d+\t(.*)", re.DOTALL)
_LIST = re.compile(r"(?:.*[._ -])?(train|dev|val|valid|validation|test)(?:_?images)?\.txt", re.IGNORECASE)


class Tokens(Annotations):
    """A caption a line, behind its picture and its number."""

    format = "Flickr tokens"

    @staticmethod
    def fits(name: str, head: str) -> bool:
        """Whether the file's first line is of this kind. Flickr8k.lemma.token.txt has lemmas and not captions."""
        return ".lemma." not in name.lower() and bool(_TOKEN.match(head.lstrip()))

    def rows(self) -> Iterator[Row]:
        """See `Annotations`."""
        with self.files.open(self.name) as file:
            for number, line in enumerate(lines(file, self.name, self.files.check), start=1):
                if match := _TOKEN.fullmatch(line.rstrip("\r\n")):
                    yield from rows_of(number, match[1], match[2])
                elif line.strip():
                    yield Row(number, problem="it is not a picture, #, a number, a tab and a caption")


def split_of_list(name: str, head: str) -> bool | None:
    """Whether the pictures that this file lists are held out; None if it is no list of pictures."""
    listed = _LIST.fullmatch(name.rpartition("/")[2])
    if not listed:
        return None
    refs = head.split("\n")[:LOOK]
    return held_out_by(listed[1]) if all(is_picture(ref.strip()) for ref in refs if ref.strip()) else None


def listed_pictures(files: DatasetFiles, name: str) -> Iterator[str]:
    """Those of the dataset's files that the list names."""
    with files.open(name) as file:
        for line in lines(file, name, files.check):
            try:
                match = files.names.find(line.strip(), name.rpartition("/")[0]) if line.strip() else None
            except Refused:  # then no row can mean it either
                continue
            if match:
                yield match.name
