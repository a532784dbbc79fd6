"""Which columns or keys the files of a dataset have, so that a person can say which of them mean what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from captioner.errors import Refused
from training.datasets.annotations import MAX_ANNOTATIONS
from training.datasets.files import HEAD, DatasetFiles
from training.datasets.formats import tables
from training.datasets.keys import LONGEST_KEY
from training.datasets.names import is_picture
from training.datasets.reading import BOM, entries, parsed

MOST = 40  # columns that are offered
LOOKED_AT = 5  # files
_EXAMPLE = 60  # characters of a value


@dataclass(frozen=True)
class Column:
    """A column with a value of it."""

    name: str
    example: str


def columns_of(files: DatasetFiles) -> list[Column]:
    """The columns of tables and the keys of JSON entries among these files, each name once."""
    found: dict[str, Column] = {}
    others = [name for name in files.names.all if not is_picture(name)]
    for name in others[:LOOKED_AT]:
        if files.size(name) > MAX_ANNOTATIONS:
            continue
        with suppress(Refused):  # that is reported elsewhere
            for column in _columns(files, name):
                found.setdefault(column.name, column)
    return list(found.values())[:MOST]


def _columns(files: DatasetFiles, name: str) -> Iterator[Column]:
    with files.open(name) as file:
        text = file.read(HEAD).removeprefix(BOM).decode(errors="replace")
    rows = _entry(files, name, text) if text.lstrip()[:1] in ("{", "[") else tables.beginning(text)
    for key, value in rows:
        if key and len(key) <= LONGEST_KEY:
            yield Column(key, value[:_EXAMPLE])


def _entry(files: DatasetFiles, name: str, text: str) -> list[tuple[str, str]]:
    """Keys and values of the first entry of JSON Lines or a JSON list."""
    first = parsed(text.lstrip().partition("\n")[0])
    if not isinstance(first, dict):
        with files.open(name) as file:
            section, first = next(entries(file, name, files.check), ("", None))
        if section:
            return []
    return [(key, str(value)) for key, value in first.items()] if isinstance(first, dict) else []
