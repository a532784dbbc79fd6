"""Photos are found in folders, and their captions written, in one way by all commands."""

import json
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from clipcap.jsonl import photos_in, read, written

ANYTHING = st.text(st.characters(), max_size=9)  # lone surrogates, too
RECORDS = st.fixed_dictionaries({"image": ANYTHING, "caption": ANYTHING, "confidence": st.none() | st.floats(0, 1)})


@given(st.lists(RECORDS, max_size=4))
def test_a_record_is_one_line_for_every_reader_and_is_read_as_it_was(records: list[dict[str, object]]) -> None:
    text = "".join(map(written, records))
    assert [json.loads(line) for line in text.splitlines()] == records
    assert read(text.encode()) == records


def test_what_is_readable_stays_so() -> None:
    assert written({"image": "päivä/बिल्ली.jpg"}) == '{"image": "päivä/बिल्ली.jpg"}\n'
    assert written({"image": "a\u2028b\udce9"}) == '{"image": "a\\u2028b\\udce9"}\n'


def test_lines_of_earlier_versions_are_read(tmp_path: Path) -> None:
    old = b'{"image": "line\xe2\x80\xa8sep.jpg"}\n\n{"image": "caf\xe9.jpg"}\r\n'
    assert read(old) == [{"image": "line\u2028sep.jpg"}, {"image": "caf\udce9.jpg"}]


def test_photos_are_recognised_by_the_ends_of_their_names(tmp_path: Path) -> None:
    names = ["a.JPG", "b.jfif", "c.jpe", "d.HEIC", "g.hif", "line\u2028sep.jpg", "sub/e.tiff"]
    others = ["._a.JPG", "notes.txt", "jpg", "sub/f.jpg.txt"]
    (tmp_path / "sub").mkdir()
    for name in [*names, *others]:
        (tmp_path / name).touch()
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb"):  # noqa: PTH123 (a path in bytes)
        pass
    (tmp_path / "folder.jpg").mkdir()
    photos, left = photos_in(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in photos} == {*names, "caf\udce9.jpg"}
    assert photos == sorted(photos)
    assert left == len(others)
