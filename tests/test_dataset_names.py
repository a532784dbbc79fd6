"""Captions go to their own pictures, however names are written on other systems and in zips."""

import io
import os
import shutil
import struct
import subprocess
import unicodedata
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.errors import Refused
from captioner.jobs.job import Status
from captioner.models import Style
from tests.dataset_files import json_lines, packed, picture, pictures
from tests.importing import imported, processed, reasons, said_of
from training import services
from training.datasets.names import DatasetNames

pytestmark = pytest.mark.django_db

NFC, NFD = "caf\u00e9.jpg", "cafe\u0301.jpg"


@pytest.mark.parametrize(
    ("refs", "names"),
    [
        (["images/1.jpg"], ["top/images/1.jpg"]),
        (["./images\\1.jpg"], ["top/images/1.jpg"]),
        (["/home/me/coco/images/1.jpg", "C:\\coco\\images\\1.jpg"], ["images/1.jpg"]),
        (["a/1.jpg", "b/1.jpg"], ["top/a/1.jpg", "top/b/1.jpg"]),
        (["1.jpg"], ["top/1.jpg", "top/thumbnails/1.jpg"]),
        (["Stra\u00dfe \u00e9.jpg"], ["Stra\u00dfe e\u0301.jpg"]),
        (["../images/1.jpg", "images/1.jpg"], ["images/1.jpg"]),
    ],
)
def test_files_are_found_wherever_the_folder_was_packed(refs: list[str], names: list[str], style: Style) -> None:
    files = {"top/captions.jsonl": json_lines((ref, f"caption {n}") for n, ref in enumerate(refs))}
    batch = imported(style, packed(files | pictures(names)))
    assert (batch.accepted, reasons(batch)) == (len(refs), [])


@pytest.mark.parametrize("ref", ["1.jpg", "c/1.jpg", "jpg", "..", "/"])
def test_no_picture_is_taken_for_another(ref: str, style: Style) -> None:
    batch = imported(style, packed({"captions.jsonl": json_lines([(ref, "x")])} | pictures(["a/1.jpg", "b/1.jpg"])))
    assert (batch.status, batch.accepted, batch.rejected.count()) == (Status.SUCCEEDED, 0, 1)


SEVERAL = "several"


@pytest.mark.parametrize(
    ("names", "ref", "meant"),
    [
        ([NFC, NFD], NFC, NFC),
        ([NFC, NFD], NFD, NFD),
        ([NFC], NFD, NFC),
        ([NFD], NFC, NFD),
        (["A.JPG"], "a.jpg", "A.JPG"),
        (["a.jpg", "A.jpg"], "A.jpg", "A.jpg"),
        (["a.jpg", "A.jpg"], "a.JPG", SEVERAL),
        ([NFC, NFD.upper()], "CAFE\u0301.jpg", SEVERAL),
        (["a/x.jpg", "b/X.jpg"], "X.jpg", "b/X.jpg"),
        (["a/x.jpg", "b/X.jpg"], "x.JPG", SEVERAL),
        (["Images/x.jpg", "x.jpg"], "images/x.jpg", "Images/x.jpg"),
        (["set/\u00c4/x.jpg", "set/B/x.jpg"], "a\u0308/X.jpg", "set/\u00c4/x.jpg"),
        (["Masse.jpg"], "Ma\u00dfe.jpg", None),
        (["\u039f\u0394\u039f\u03a3.jpg"], "\u03bf\u03b4\u03bf\u03c2.jpg", "\u039f\u0394\u039f\u03a3.jpg"),
        (["a\\b.jpg", "a/b.jpg"], "a\\b.jpg", "a\\b.jpg"),
        (["a/b.jpg"], "A\\b.jpg", "a/b.jpg"),
        (["1.jpg", "1.jpeg"], "1.jpe", None),
    ],
)
def test_a_name_spelled_alike_comes_first_and_others_only_alone(names: list[str], ref: str, meant: str | None) -> None:
    if meant == SEVERAL:
        with pytest.raises(Refused, match="may be"):
            DatasetNames(names).find(ref, "")
    else:
        found = DatasetNames(names).find(ref, "")
        assert (found and found.name) == meant


LETTERS = st.text(alphabet="aA\u00e9\u00c9\u0301e/\u03c3\u03c2\u03a3\u00df\ud800\\", min_size=1, max_size=4)


@given(st.lists(LETTERS.filter(lambda name: name[0] != "/"), unique=True, max_size=8))
def test_every_name_finds_itself_among_any_others(names: list[str]) -> None:
    there = DatasetNames(names)
    for name in names:
        if name == "/".join(part for part in name.split("/") if part not in ("", ".")):
            found = there.find(name, "")
            assert found
            assert found.name == name


def test_references_that_leave_out_different_folders_do_not_share_a_picture(style: Style) -> None:
    there = pictures(["1.jpg", "2.jpg"])
    pairs = [("/home/a/1.jpg", "of a"), ("/home/b/1.jpg", "of b"), ("1.jpg", "its own"), ("/home/a/2.jpg", "alone")]
    batch = imported(style, packed({"a.jsonl": json_lines(pairs)} | there))
    assert said_of(style, there) == {("1.jpg", "its own"), ("2.jpg", "alone")}
    assert [line for line, _ in reasons(batch)] == [1, 2]
    assert "may belong to another" in reasons(batch)[0][1]


def table(pairs: list[tuple[str, str]]) -> bytes:
    return ("image,caption\n" + "".join(f"{name},{text}\n" for name, text in pairs)).encode()


UMLAUTS = ["caf\u00e9 \u00fc.jpg", "\u65e5\u672c/\u732b.jpg", "\u092c\u093f\u0932\u094d\u0932\u0940.jpg", "plain.jpg"]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_zip_by_info_zip_keeps_its_names(locale: str, style: Style, tmp_path: Path) -> None:
    if not shutil.which("zip"):
        pytest.skip("there is no zip; on Debian and Ubuntu: apt install zip")
    files = pictures(UMLAUTS)
    folder = tmp_path / "set"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "captions.csv").write_bytes(table([(name, f"caption {n}") for n, name in enumerate(UMLAUTS)]))
    subprocess.run(["zip", "-q", "-r", "set.zip", "set"], cwd=tmp_path, check=True, env=os.environ | {"LC_ALL": locale})
    content = (tmp_path / "set.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert not any(entry.flag_bits & 0x800 for entry in archive.infolist())  # which is what this test is about
    batch = imported(style, content)
    assert reasons(batch) == []
    assert said_of(style, files) == {(name, f"caption {n}") for n, name in enumerate(UMLAUTS)}


def zip_of_macos(files: dict[str, bytes]) -> bytes:
    """The bytes that Finder and `ditto -c -k --sequesterRsrc` write: UTF-8 without the flag, sizes behind the content,
    and beside each file its resource fork under __MACOSX."""
    body, directory, count = b"", b"", 0
    double = b"\0\5\x16\7\0\2\0\0Mac OS X        \0\2\0\0\0\x09\0\0\0\x32\0\0\0\xb0"
    for name, content in files.items():
        folder, _, last = name.rpartition("/")
        for path, data in ((name, content), (f"__MACOSX/{folder}/._{last}", double)):
            raw = path.encode()
            squeeze = zlib.compressobj(wbits=-15)
            packed = squeeze.compress(data) + squeeze.flush()
            sizes = struct.pack("<LLL", zlib.crc32(data), len(packed), len(data))
            offset = len(body)
            body += b"PK\3\4" + struct.pack("<HHHHHLLLHH", 20, 8, 8, 0, 0x5A21, 0, 0, 0, len(raw), 16)
            body += raw + b"UX\x0c\0" + bytes(12) + packed + b"PK\7\10" + sizes
            directory += b"PK\1\2" + struct.pack("<BBHHHHH", 21, 3, 20, 8, 8, 0, 0x5A21) + sizes
            directory += struct.pack("<HHHHHLL", len(raw), 12, 0, 0, 0, 0o100644 << 16 | 0x4000, offset)
            directory += raw + b"UX\x08\0" + bytes(8)
            count += 1
    return body + directory + b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, count, count, len(directory), len(body), 0)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_zip_by_macos_keeps_its_names_and_its_own_files_are_passed_over(form: str, style: Style) -> None:
    names = [unicodedata.normalize("NFD", f"set/{name}") for name in UMLAUTS]
    files = pictures(names)
    refs = [unicodedata.normalize(form, name) for name in UMLAUTS]  # type: ignore[arg-type]  # one of its words
    captions = {"set/captions.csv": table([(name, f"caption {n}") for n, name in enumerate(refs)])}
    batch = imported(style, zip_of_macos(captions | files))
    assert reasons(batch) == []
    assert said_of(style, files) == {(name, f"caption {n}") for n, name in enumerate(names)}


def info_zip_field(raw: bytes, name: str, *, right: bool = True) -> bytes:
    """The extra field in which Info-ZIP repeats a name in UTF-8, with the checksum of the name that it is for."""
    value = struct.pack("<BL", 1, zlib.crc32(raw if right else b"renamed since")) + name.encode()
    return struct.pack("<HH", 0x7075, len(value)) + value


@pytest.mark.parametrize(
    ("raw", "flag", "extra", "ref"),
    [
        (b"caf\x82.jpg", 0, b"", "caf\u00e9.jpg"),  # code page 437, by the book
        (b"caf\xe9.jpg", 0, b"", "caf\u0398.jpg"),  # which is what the book makes of other code pages, too
        (b"\x93\xfa\x96{.jpg", 0, info_zip_field(b"\x93\xfa\x96{.jpg", "\u65e5\u672c.jpg"), "\u65e5\u672c.jpg"),
        (b"caf\x82.jpg", 0, info_zip_field(b"", "other.jpg", right=False), "caf\u00e9.jpg"),
        ("\u65e5\u672c.jpg".encode(), 0x800, b"", "\u65e5\u672c.jpg"),
    ],
)
def test_a_zip_says_in_several_ways_what_its_names_are(
    raw: bytes, flag: int, extra: bytes, ref: str, style: Style
) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("x" * len(raw))
        info.extra = extra
        archive.writestr(info, picture(1))
        archive.writestr("a.jsonl", json_lines([(ref, "a thing")]))
    content = out.getvalue().replace(b"x" * len(raw), raw)
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = content.index(mark) + place
        content = content[:at] + flag.to_bytes(2, "little") + content[at + 2 :]
    batch = imported(style, content)
    assert reasons(batch) == []
    assert batch.accepted == 1


def test_a_name_that_leads_out_of_its_folder_is_seen_in_the_extra_field_too(style: Style) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("evil.jpg")
        info.extra = info_zip_field(b"evil.jpg", "../evil.jpg")
        archive.writestr(info, picture(1))
    assert "points outside" in imported(style, out.getvalue()).error_detail


def test_names_that_are_no_text_are_found_by_what_python_writes_of_them(style: Style, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb") as file:  # noqa: PTH123 (a path in bytes)
        file.write(picture(1))
    (folder / "._cafe.jpg").write_bytes(b"left by macOS")
    (folder / "line\u2028sep.jpg").write_bytes(picture(2))
    (folder / "a.jsonl").write_bytes(json_lines([("caf\udce9.jpg", "a thing"), ("line\u2028sep.jpg", "another")]))
    batch = processed(services.start_folder_import(style=style, folder=folder))
    assert (batch.status, reasons(batch)) == (Status.SUCCEEDED, [])
    assert set(style.examples.values_list("text", flat=True)) == {"a thing", "another"}
