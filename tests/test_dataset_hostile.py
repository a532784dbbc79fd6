"""Files of examples that were made to do harm, or are broken."""

import io
import json
import stat
import zipfile
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from captioner import uploads
from captioner.jobs.job import Status
from captioner.models import Style
from tests.dataset_files import json_lines, packed, pairs, picture, pictures
from tests.importing import assert_consistent, imported, processed, queued, reasons, stop_after
from training.datasets import annotations, files, refusals
from training.models import Import

pytestmark = pytest.mark.django_db


def member(name: str, *, mode: int = 0, flags: int = 0, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        info.compress_type = method
        archive.writestr(info, b"content")
        archive.writestr("captions.jsonl", json_lines(pairs()))
    content = out.getvalue()
    if flags:  # in the local header and in the table of contents
        for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            at = content.index(mark) + place
            content = content[:at] + flags.to_bytes(2, "little") + content[at + 2 :]
    return content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (member("../evil.jpg"), "points outside"),
        (member("a/../../evil.jpg"), "points outside"),
        (member("..\\evil.jpg"), "points outside"),
        (member("/etc/passwd"), "points outside"),
        (member("C:\\evil.jpg"), "points outside"),
        (member("link.jpg", mode=stat.S_IFLNK | 0o777), "link or a device"),
        (member("null.jpg", mode=stat.S_IFCHR | 0o666), "link or a device"),
        (member("pipe.jpg", mode=stat.S_IFIFO | 0o666), "link or a device"),
        (member("secret.jpg", flags=1), "encrypted"),
        (member("inner.zip"), "is an archive"),
        (member("inner.tar.gz"), "is an archive"),
        (member("odd.jpg", method=zipfile.ZIP_LZMA), "unsupported compression"),
        (member("captions.jsonX").replace(b"jsonX", b"jsonl"), "twice"),
        (packed({"inner": packed({"captions.jsonl": b""})}), "is an archive"),
        (member("a.jpg")[:-30], "damaged"),
        (b"PK\3\4" + b"x" * 100, "damaged"),
    ],
)
def test_a_zip_that_holds_what_it_should_not_is_refused_whole(content: bytes, reason: str, style: Style) -> None:
    batch = imported(style, content)
    assert batch.status == Status.FAILED
    assert reason in batch.error_detail
    assert not style.examples.exists()


def test_cancelling_is_heard_while_a_long_file_is_looked_through(style: Style) -> None:
    batch = queued(style, packed({"long.json": b'{"x": [' + b'"",' * 500_000 + b'""]}'}))
    calls = stop_after(5)
    assert processed(batch, calls).status == Status.QUEUED  # handed back before its end


@pytest.mark.parametrize("start", [json_lines([("one.jpg", "red")]), b"image,caption\none.jpg,red\n"])
def test_cancelling_is_heard_among_empty_lines(start: bytes, style: Style) -> None:
    batch = queued(style, packed({"long.txt": start + b"\n" * 100_000}))
    assert processed(batch, stop_after(20)).status == Status.QUEUED


def test_annotations_are_not_unpacked_to_learn_that_they_are_too_large(
    style: Style, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotations, "MAX_ANNOTATIONS", 1000)
    monkeypatch.setattr(annotations, "_json", None)  # what would read all of it
    batch = imported(style, packed({"long.json": b'{"x": [' + b'"",' * 2_000 + b'""]}'}))
    assert batch.error_code == "annotations_too_large"


def test_a_zip_that_explodes_is_refused_before_it_is_unpacked(style: Style, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SMALL_UNPACKED", 1_000_000)
    batch = imported(style, packed({"captions.jsonl": json_lines(pairs()), "zeros.jpg": bytes(5_000_000)}))
    assert batch.error_code == "zip_too_large"
    monkeypatch.setattr(refusals, "MAX_FILES", 2)
    assert imported(style, packed({"captions.jsonl": json_lines(pairs())} | pictures())).error_code == "too_many_files"
    monkeypatch.setattr(files, "MAX_DIRECTORY", 100)
    assert imported(style, packed({"captions.jsonl": json_lines(pairs())} | pictures())).error_code == "too_many_files"


def test_no_more_of_a_picture_is_read_than_may_be_uploaded(style: Style, settings: Any) -> None:
    settings.MAX_UPLOAD_BYTES = 1000
    files = {"one.jpg": bytes(3_000_000), "two.jpg": picture(2), "a.jsonl": json_lines(pairs()[:3])}
    batch = imported(style, packed(files))
    assert [reason[:22] for _, reason in reasons(batch)] == ["'one.jpg': the file ha"] * 2
    assert batch.accepted == 1


def test_a_picture_whose_bytes_are_damaged_in_the_zip_is_refused_alone(style: Style) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:  # not compressed
        for name, data in {"a.jsonl": json_lines(pairs()), **pictures()}.items():
            archive.writestr(name, data)
    batch = imported(style, out.getvalue().replace(picture(0), bytes(len(picture(0)))))
    assert [reason for _, reason in reasons(batch)] == ["'one.jpg': it is damaged in the zip; create the zip again"] * 2
    assert batch.accepted == 2


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 1_000_000,
        b'[{"file": "a", "captions": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}]",
        b'{"info": ' + b"[" * 100_000,
        b'[{"file": "a", "captions": ["' + b"x" * 5_000_000 + b'"]}]',
        b'[{"file": "a", "captions": ["' + b'\\"' * 600_000 + b'"]}]',
        b'[{"file": "a", "captions": [' + b'"x",' * 1_100_000 + b'"x"]}]',
        b"[" + b"9" * 10_000 + b"]",
        b'[{"file": "a", "captions": ["x"]}, {"file"',
        b'[{"file": "a", "captions": ["x"]}] trailing',
        b'[{"file": "a", "captions": ["\xff"]}]',
        b'{"image": "a", "caption": "x"}\n' + b"x" * 1_100_000,
    ],
)
def test_hostile_json_is_refused_before_anything_is_imported(content: bytes, style: Style) -> None:
    uploads.store(picture(0))
    batch = imported(style, content)
    assert batch.status == Status.FAILED
    assert batch.error_code in ("bad_json", "line_too_long")
    assert (batch.rows, style.examples.count()) == (0, 0)


fuzzed = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_ended(batch: Import) -> None:
    assert batch.status in (Status.SUCCEEDED, Status.FAILED)
    assert batch.error_code != "internal_error"
    assert "\0" not in batch.error_detail
    assert_consistent(batch)


STARTS = [
    b"",
    b"image,caption\n",
    b"file\ttext\n",
    b'{"image": "a", "caption": "b"}\n',
    b"[",
    b'{"images": [',
    b"\xef\xbb\xbf",
]


@fuzzed
@given(
    st.sampled_from(STARTS), st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace"))
)
@example(b"image,caption\n", b'"a,b\n' * 10)
@example(b"image,caption\n", b"a\0b,c\rd\n")
def test_whatever_is_uploaded_is_imported_or_refused(style: Style, start: bytes, rest: bytes) -> None:
    assert_ended(imported(style, start + rest or b" "))


KEYS = (
    "images",
    "annotations",
    "id",
    "image_id",
    "file_name",
    "filename",
    "file",
    "caption",
    "captions",
    "sentences",
    "raw",
)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["one.jpg", "1"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=20,
)


@fuzzed
@given(VALUES, VALUES, VALUES, st.integers(0, 4))
def test_json_of_any_shape_is_imported_or_refused(style: Style, one: Any, other: Any, third: Any, shape: int) -> None:
    shapes = (
        one,
        [{"file": "one.jpg", "captions": "x"}, {"file": one, "captions": other}, third],
        {
            "images": [
                {"filename": "x", "sentences": []},
                {"filename": one, "sentences": other, "filepath": third},
                third,
            ]
        },
        {"annotations": [{"image_id": 1, "caption": "x"}, {"image_id": one, "caption": other}], "images": third},
        {"images": [{"id": one, "file_name": other}, third], "annotations": [{"image_id": one, "caption": "x"}]},
    )
    assert_ended(imported(style, json.dumps(shapes[shape]).encode()))


@fuzzed
@given(st.data())
def test_a_zip_with_changed_bytes_is_imported_or_refused(style: Style, data: st.DataObject) -> None:
    content = bytearray(packed({"a/captions.jsonl": json_lines(pairs()), "one.jpg": picture(0)}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert_ended(
        imported(
            style, bytes(content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content)
        )
    )
