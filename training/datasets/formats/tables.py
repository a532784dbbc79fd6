"""CSV and TSV with a header.

In CSV (RFC 4180) a cell may stand in quotes, and then hold the separator and newlines. In TSV quotes mean nothing
(IANA, text/tab-separated-values), nor do they between bars, as in Flickr30k's `results.csv`; but where the header
stands in quotes, a program wrote the file that quotes every text.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from captioner.errors import Refused
from training.datasets.files import DatasetFiles
from training.datasets.formats.base import LOOK, Annotations, Row, rows_of
from training.datasets.keys import SPLIT_KEY, Keys
from training.datasets.names import is_picture
from training.datasets.reading import lines

DELIMITERS = ",\t;|"
MAX_LINES = 100  # of one row; behind a quote that nobody closes, the table goes on after its line

_QUOTING = ",;"
_SEP = re.compile(r'"?sep=([,;|:\t])"?\s*', re.IGNORECASE)  # Excel's own first line
_STORED_OR_NUMBER = re.compile(r"\d+(?:\.0+)?|[0-9a-f]{64}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True)
class _Columns:
    """Where in each line image, caption and perhaps split are."""

    image: int
    caption: int
    split: int | None
    width: int


@dataclass(frozen=True)
class Dialect:
    """How a table is written: its separator, whether quotes mean anything, and lines above the header."""

    delimiter: str
    quoting: bool
    above: int = 0


class Table(Annotations):
    """A header and a caption a line."""

    format = "table"

    def __init__(self, files: DatasetFiles, name: str, dialect: Dialect) -> None:
        super().__init__(files, name)
        self.dialect = dialect

    def columns(self) -> str:
        """See `Annotations`."""
        with self.files.open(self.name) as file:
            text = lines(file, self.name, self.files.check)
            header = next((cells for _, cells in _records(text, self.dialect, lambda cells: False)), [])
        found = None if isinstance(header, str) else _columns(header, self.files.keys)
        if found is None:
            return ""
        used = {"photo": found.image, "caption": found.caption, "split": found.split}
        return ", ".join(f"{what}: {header[place].strip()}" for what, place in used.items() if place is not None)

    def rows(self) -> Iterator[Row]:
        """See `Annotations`."""
        columns: _Columns | None = None
        with self.files.open(self.name) as file:
            text = lines(file, self.name, self.files.check)

            def is_row(cells: list[str]) -> bool:
                return columns is not None and _is_row(cells, columns)

            for line, cells in _records(text, self.dialect, is_row):
                if isinstance(cells, str):
                    yield Row(line, problem=cells)
                elif columns is None:
                    columns = _columns(cells, self.files.keys)
                    if columns is None:  # it was recognised by this line
                        raise Refused(
                            "bad_header", "the header's columns cannot be told apart; check its quotes", status=422
                        )
                elif len(cells) != columns.width:
                    remedy = f"put cells with {self.dialect.delimiter!r} in quotes"
                    if not self.dialect.quoting:
                        remedy = f"no cell can contain {self.dialect.delimiter!r}"
                    yield Row(line, problem=f"it has {len(cells)} columns and the header {columns.width}; {remedy}")
                else:
                    split = None if columns.split is None else cells[columns.split]
                    yield from rows_of(line, cells[columns.image], cells[columns.caption], split=split)


def dialect_of(head: str, keys: Keys, *, prose: bool) -> Dialect | None:
    """How the table is written that begins like this; None if it is none.

    Args:
        prose: whether the file may as well be a text that happens to begin like a header: then one of the lines behind
            it has to be as wide.
    """
    text = head.split("\n")
    above = next((place for place, line in enumerate(text) if line.strip()), None)
    if above is None:
        return None
    sep = _SEP.fullmatch(text[above].strip("\r"))
    above += sep is not None
    first = text[above] if above < len(text) else ""
    for delimiter in sep[1] if sep else DELIMITERS:
        for quoting in (True,) if delimiter in _QUOTING else (False, True):
            dialect = Dialect(delimiter, quoting, above)
            columns = _columns(_divided(first, dialect, strict=True), keys)
            if columns and (not prose or _has_rows(text, dialect, columns)):
                return dialect
    return None


def beginning(head: str) -> list[tuple[str, str]]:
    """The cells of what may be a table's header, each with the value below it; none where no separator divides it."""
    text = [f"{line}\n" for line in head.split("\n")[: 1 + LOOK]]
    found: list[list[list[str]]] = []
    for delimiter in DELIMITERS:
        rows = _records(iter(text), Dialect(delimiter, delimiter in _QUOTING), lambda cells: False)
        cells = [cells for _, cells in rows if isinstance(cells, list)]
        found.append([row for row in cells if len(row) == len(cells[0])])
    best = max(found, key=lambda rows: len(rows[0]) if len(rows) > 1 else 0)
    if len(best) < 2 or len(best[0]) < 2:
        return []
    return [(name.strip(), value.strip()) for name, value in zip(best[0], best[1], strict=True)]


def _has_rows(text: list[str], dialect: Dialect, columns: _Columns) -> bool:
    begin = iter([f"{line}\n" for line in text[: dialect.above + LOOK]])
    _, *found = (cells for _, cells in _records(begin, dialect, lambda cells: False))
    return any(len(cells) == columns.width for cells in found if isinstance(cells, list))


def _records(
    text: Iterator[str], dialect: Dialect, is_row: Callable[[list[str]], bool]
) -> Iterator[tuple[int, list[str] | str]]:
    """The cells of each row with the number of its first line, or why that line cannot be divided.

    Args:
        is_row: whether such cells are a row of their own, where they stand within a quoted cell.
    """
    waiting: deque[str] = deque()  # read, and given back
    number = 1 + dialect.above
    for _ in range(dialect.above):
        next(text, None)
    while True:
        taken: list[str] = []
        cells = _record(_supply(taken, waiting, text, MAX_LINES if dialect.quoting else 1), dialect)
        if not taken:
            return
        if not isinstance(cells, str) and any(is_row(_divided(line, dialect, strict=False)) for line in taken[1:]):
            cells = 'its quotes enclose lines that look like separate rows; write "" for a quote within a cell'
        if isinstance(cells, str):  # which costs one line: the others may be sound
            waiting.extendleft(reversed(taken[1:]))
            del taken[1:]
        if isinstance(cells, str) or any(cell.strip() for cell in cells):
            yield number, cells
        number += len(taken)


def _supply(taken: list[str], waiting: deque[str], text: Iterator[str], most: int) -> Iterator[str]:
    while len(taken) < most and (line := waiting.popleft() if waiting else next(text, "")):
        taken.append(line)
        yield line


def _record(text: Iterator[str], dialect: Dialect) -> list[str] | str:
    """The next row's cells, or why it cannot be divided."""
    if not dialect.quoting:
        return _divided(next(text, ""), dialect, strict=True)
    try:
        return next(csv.reader(text, delimiter=dialect.delimiter, strict=True), [])
    except csv.Error as error:
        cause = f"a quote is not closed within {MAX_LINES} lines" if "end of data" in str(error) else str(error)
        return f"it cannot be split into columns ({cause}); check its quotes"


def _divided(line: str, dialect: Dialect, *, strict: bool) -> list[str]:
    """A line's cells; none if it cannot be divided."""
    line = line.rstrip("\r\n")
    if not dialect.quoting:
        return line.split(dialect.delimiter)
    try:
        return next(csv.reader([line], delimiter=dialect.delimiter, strict=strict), [])
    except csv.Error:
        return []


def _columns(cells: list[str], keys: Keys) -> _Columns | None:
    """Where a header names image, caption and split; None if it does not name the first two."""
    names = [cell.strip().lower() for cell in cells]
    image = next((names.index(key.lower()) for key in keys.picture if key.lower() in names), None)
    caption = next((names.index(key.lower()) for key in keys.caption if key.lower() in names), None)
    if image is None or caption is None:
        return None
    return _Columns(image, caption, names.index(SPLIT_KEY) if SPLIT_KEY in names else None, len(names))


def _is_row(cells: list[str], columns: _Columns) -> bool:
    """Whether these are the cells of a row: as many as the header has, and its image is called like one."""
    if len(cells) != columns.width:
        return False
    ref = cells[columns.image].strip()
    return is_picture(ref) or bool(_STORED_OR_NUMBER.fullmatch(ref))
