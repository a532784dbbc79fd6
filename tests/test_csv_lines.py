"""No cell of a CSV file that people download begins a formula, whatever their spreadsheet takes for a separator."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.csv_lines import csv_line

FORMULAS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # noqa: RUF001
SEPARATORS = (",", ";", "\t", "|")
NASTY = st.text(
    st.sampled_from([*FORMULAS, *SEPARATORS, '"', "'", " ", "\t", "\r", "\n", "\u2028", "a", "1"]), max_size=12
)


def cells(line: str) -> list[str]:
    """What readers make of it: with each separator, heeding quotes or not."""
    found = []
    for separator in SEPARATORS:
        for row in csv.reader(io.StringIO(line, newline=""), delimiter=separator):
            found += row
        for part in line.splitlines():
            found += part.split(separator)
    return found


@given(st.lists(st.one_of(NASTY, st.text()), min_size=1, max_size=4))
def test_no_cell_begins_a_formula_whatever_separates_cells(row: list[str]) -> None:
    for cell in cells(csv_line(row)):
        assert not cell.strip(' "\t\r\n').startswith(FORMULAS), cell


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        ("a dog, a cat", '"a dog, a cat"'),
        ("=1+1", "'=1+1"),
        ("a;=1+1", "a;'=1+1"),
        ('a\t"=1+1"', 'a\t"\'=1+1"'),
        ("\tb", "'\tb"),
        (-0.25, "-0.25"),
        ("a well-known 2+2", "a well-known 2+2"),
    ],
)
def test_what_is_no_formula_stays_as_it_is(cell: object, line: str) -> None:
    text = csv_line([cell]).removesuffix("\r\n")
    assert text == line or next(csv.reader([text])) == next(csv.reader([line]))


@given(st.text(st.characters(blacklist_characters="=+-@＝＋－＠\t\r\n", codec="utf-8"), min_size=1))  # noqa: RUF001
def test_every_other_text_is_read_as_it_was_written(text: str) -> None:
    assert next(csv.reader(io.StringIO(csv_line([text]), newline=""))) == [text]
