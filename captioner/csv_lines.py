"""Lines of CSV files that a spreadsheet can open without running anything."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

# Where a cell begins, whatever separator the reader takes (RFC 4180 says a comma; a spreadsheet may be set
# another, and then reads other quotes too): at the start, and behind whatever may separate cells or lines.
_FORMULA = re.compile(r"(^|[,;|\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029])([\s\"]*)([=+\-@＝＋－＠])")  # noqa: RUF001
_BLANK = ("\t", "\r", "\n")  # some readers drop them, and what follows begins the cell


def csv_line(cells: Iterable[Any]) -> str:
    """One line, with its end. Of text, whatever a spreadsheet would take for a formula gets an apostrophe before it."""
    line = io.StringIO()
    csv.writer(line).writerow([_harmless(cell) if isinstance(cell, str) else cell for cell in cells])
    return line.getvalue()


def _harmless(text: str) -> str:
    text = _FORMULA.sub(r"\1\2'\3", text)
    return f"'{text}" if text.startswith(_BLANK) else text
