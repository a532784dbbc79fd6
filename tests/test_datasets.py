"""Importing examples: every format, what is refused and why, and that nothing is lost or doubled however it ends."""

import hashlib
import io
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection
from django.test import Client
from django.utils import timezone
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from PIL import Image as Pillow
from storages.backends.s3 import S3Storage

from captioner import uploads
from captioner.errors import Refused
from captioner.jobs import Status
from captioner.models import Image, Style
from training import services
from training.datasets import annotations, importer
from training.datasets.importer import refused_csv, work_off
from training.datasets.statistics import statistics
from training.models import Example, Import, TrainingRun, is_held_out

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).parent.parent
CAPTIONS = {
    "one.jpg": ["a red square", "nothing but red"],
    "two.jpg": ["grün, wie ein Wald"],
    "three.jpg": ['a "blue" thing'],
}


@cache
def picture(number: int) -> bytes:
    out = io.BytesIO()
    Pillow.new("RGB", (8, 8), (number * 8 % 256, 99, 200)).save(out, "JPEG")
    return out.getvalue()


def pictures(names: Any = CAPTIONS) -> dict[str, bytes]:
    return {name: picture(number) for number, name in enumerate(names)}


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def json_lines(pairs: Any) -> bytes:
    return "".join(json.dumps({"image": image, "caption": text}) + "\n" for image, text in pairs).encode()


def pairs() -> list[tuple[str, str]]:
    return [(name, text) for name, texts in CAPTIONS.items() for text in texts]


def coco(images_first: bool) -> bytes:
    number = {name: 100 + n for n, name in enumerate(CAPTIONS)}
    images = {"images": [{"id": n, "file_name": name, "width": 8} for name, n in number.items()]}
    texts = {"annotations": [{"id": n, "image_id": number[i], "caption": t} for n, (i, t) in enumerate(pairs())]}
    info = {"info": {"year": 2014, "nested": {"deeper": [1, 2.5, None, True]}}, "licenses": [{"id": 1}]}
    return json.dumps(info | (images | texts if images_first else texts | images), indent=1).encode()


FORMATS: dict[str, bytes] = {
    "COCO": coco(True),
    "COCO, images last": coco(False),
    "Karpathy": json.dumps(
        {
            "images": [
                {
                    "filepath": "val2014",
                    "filename": n,
                    "split": "test",
                    "sentences": [{"raw": t, "tokens": []} for t in ts],
                }
                for n, ts in CAPTIONS.items()
            ],
            "dataset": "coco",
        }
    ).encode(),
    "CSV": b"image,caption\n" + b"".join(f'{i},"{t}"\n'.replace('"blue"', '""blue""').encode() for i, t in pairs()),
    "CSV of a spreadsheet": b"\xef\xbb\xbfsep;FILE;Text\r\n"
    + b"".join(f'1;{i};"{t}"\r\n'.replace('"blue"', '""blue""').encode() for i, t in pairs())
    + b";;\r\n",
    "TSV": b"file_name\tid\tsentence\n" + b"".join(f"{i}\t7\t{t}\n".encode() for i, t in pairs()),
    "JSONL": json_lines(pairs()),
    "JSONL with lists": b"".join(
        json.dumps({"file": i, "captions": t}).encode() + b"\n\n" for i, t in CAPTIONS.items()
    ),
    "JSON list": json.dumps([{"file": i, "captions": t, "licence": "CC"} for i, t in CAPTIONS.items()]).encode(),
    "JSON list of Windows": b"\xef\xbb\xbf" + json.dumps([{"image": i, "text": t} for i, t in pairs()]).encode(),
}


@pytest.fixture
def style(media: Path) -> Style:
    return Style.objects.create(slug="plain", name="Plain")


def queued(style: Style, content: bytes, name: str = "dataset") -> Import:
    return services.start_import(style=style, file=ContentFile(content), name=name)


def worked_off(batch: Import, stopping: Callable[[], bool] = lambda: False) -> Import:
    (claimed,) = Import.objects.filter(pk=batch.pk).claim("tests", 1)
    work_off(claimed, stopping)
    batch.refresh_from_db()
    return batch


def imported(style: Style, content: bytes, name: str = "dataset") -> Import:
    return worked_off(queued(style, content, name))


def stop_after(calls: int) -> Callable[[], bool]:
    counter = itertools.count()
    return lambda: next(counter) >= calls


def examples(style: Style) -> set[tuple[str, str]]:
    """Sha-256 and text of all examples."""
    return set(style.examples.values_list("image__sha256", "text"))


def expected() -> set[tuple[str, str]]:
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in pictures().items()}
    return {(digests[name], text) for name, text in pairs()}


def reasons(batch: Import) -> list[tuple[int, str]]:
    return list(batch.refused.values_list("line", "reason"))


def assert_consistent(batch: Import) -> None:
    """Every row read is an example, a duplicate or refused, and the examples are there."""
    batch.refresh_from_db()
    assert batch.rows == batch.accepted + batch.duplicates + batch.refused.count()
    assert batch.accepted == batch.examples.count()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_beside_its_images_gives_the_same_examples(kind: str, style: Style) -> None:
    files = {"set/LICENSE.txt": b"do what you like", "set/annotations": FORMATS[kind]}
    batch = imported(style, packed(files | {f"set/images/{n}": data for n, data in pictures().items()}))
    assert (batch.status, batch.error_detail, reasons(batch)) == (Status.SUCCEEDED, "", [])
    assert (batch.rows, batch.total, batch.accepted, batch.duplicates) == (4, 4, 4, 0)
    assert examples(style) == expected()
    assert Image.objects.count() == 3
    for one in Example.objects.select_related("image"):
        assert one.held_out == is_held_out(one.image)
        assert (one.source, one.batch) == (Example.Source.IMPORTED, batch)


def test_a_folder_is_imported_and_links_and_pipes_in_it_are_not_followed(style: Style, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name, data in pictures().items():
        (folder / name).write_bytes(data)
    (tmp_path / "secret.jpg").write_bytes(picture(77))
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    os.mkfifo(folder / "pipe.jpg")
    rows = [*pairs(), ("link.jpg", "a secret"), ("../secret.jpg", "another"), ("pipe.jpg", "endless")]
    (folder / "captions.jsonl").write_bytes(json_lines(rows))
    batch = worked_off(services.start_folder_import(style=style, folder=folder))
    assert batch.status == Status.SUCCEEDED
    assert examples(style) == expected()
    assert [line for line, _ in reasons(batch)] == [5, 6, 7]
    assert all("no such file" in reason for _, reason in reasons(batch))


def test_only_a_folder_is_imported_as_one(style: Style, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="is no folder"):
        services.start_folder_import(style=style, folder=tmp_path / "none")
    batch = queued(style, b"x", "etc")
    Import.objects.filter(pk=batch.pk).update(file="")
    assert worked_off(batch).error_code == "file_missing"


@pytest.mark.parametrize("by", ["id", "sha256", "sha256 and ending"])
def test_annotations_alone_mean_images_that_are_stored(by: str, style: Style) -> None:
    stored = {name: uploads.store(data) for name, data in pictures().items()}

    def key(image: Image) -> str:
        return {"id": str(image.pk), "sha256": image.sha256, "sha256 and ending": f"{image.sha256}.jpg"}[by]

    batch = imported(style, json_lines([(key(stored[name]), text) for name, text in pairs()] + [("f" * 64, "lost")]))
    assert examples(style) == expected()
    assert set(style.examples.values_list("source", flat=True)) == {"stored"}
    ((line, reason),) = reasons(batch)
    assert line == 5
    assert "no stored image" in reason


def test_coco_annotations_may_mean_stored_images_without_listing_them(style: Style) -> None:
    image = uploads.store(picture(0))
    content = {"annotations": [{"image_id": str(image.pk), "caption": "red"}, {"image_id": 5, "caption": "lost"}]}
    batch = imported(style, json.dumps(content).encode())
    assert examples(style) == {(image.sha256, "red")}
    assert [line for line, _ in reasons(batch)] == [2]


def test_each_refused_row_is_told_with_line_and_reason(style: Style) -> None:
    table = (
        "image,caption\n"
        "one.jpg,  good\tand\x00 tidy \n"
        "one.jpg,\n"
        ",a caption\n"
        '"one.jpg","two\nlines"\n'
        "one.jpg,a man, a dog\n"
        'one.jpg,"a" man\n'
        f"one.jpg,{'long ' * 101}\n"
        "gone.jpg,lost\n"
        "broken.jpg,cut short\n"
        "notes.jpg,no picture\n"
        "one.jpg,good again\n"
    )
    files = {"broken.jpg": picture(1)[:200], "notes.jpg": b"hello", "captions.csv": table.encode(), **pictures()}
    batch = imported(style, packed(files))
    assert set(style.examples.values_list("text", flat=True)) == {"good and tidy", "two lines", "good again"}
    told = [(line, reason[:35]) for line, reason in reasons(batch)]
    assert told == [
        (3, "a caption has between 1 and 500 cha"),
        (4, "it names no image; the name belongs"),
        (7, "it has 3 columns and the header 2; "),
        (8, "it cannot be divided into columns ("),
        (9, "a caption has between 1 and 500 cha"),
        (10, "'gone.jpg': there is no such file b"),
        (11, "'broken.jpg': the JPEG picture is d"),
        (12, "'notes.jpg': this is no picture in "),
    ]
    assert_consistent(batch)
    assert {row.file for row in batch.refused.all()} == {"captions.csv"}


def test_a_malformed_entry_of_json_is_refused_alone(style: Style) -> None:
    entries = [
        {"file": "one.jpg", "captions": ["fine", 7, {"raw": "raw"}, None]},
        ["no object"],
        {"file": {"a": 1}, "captions": ["x"]},
        {"file": "one.jpg", "captions": []},
        {"file": "one.jpg"},
        {"file": True, "captions": "fine too"},
        {"file": "one.jpg", "captions": "last"},
    ]
    batch = imported(style, packed({"a.json": json.dumps(entries).encode()} | pictures()))
    assert set(style.examples.values_list("text", flat=True)) == {"fine", "raw", "last"}
    assert [line for line, _ in reasons(batch)] == [1, 1, 2, 3, 4, 5, 6]
    assert_consistent(batch)


def test_refused_rows_are_downloaded_without_formulas(style: Style) -> None:
    batch = imported(style, b'{"image": "=x", "caption": "y"}\n')
    batch.refused.update(file="=cmd()", reason='@SUM(1), "2"')
    batch.refused.create(file="+1", line=2, reason="-3")
    assert "".join(refused_csv(batch)) == ('file,line,reason\r\n\'=cmd(),1,"\'@SUM(1), ""2"""\r\n\'+1,2,\'-3\r\n')


def test_what_was_there_counts_as_duplicate(style: Style) -> None:
    content = packed({"a.jsonl": json_lines([*pairs(), *pairs()[:2], ("one.jpg", " a  red square")])} | pictures())
    first = imported(style, content)
    assert (first.rows, first.accepted, first.duplicates) == (7, 4, 3)
    again = imported(style, content)
    assert (again.rows, again.accepted, again.duplicates) == (7, 0, 7)
    assert style.examples.filter(batch=first).count() == 4
    assert_consistent(again)


@pytest.mark.parametrize(
    ("refs", "names"),
    [
        (["images/1.jpg"], ["top/images/1.jpg"]),
        (["./images\\1.jpg"], ["top/images/1.jpg"]),
        (["/home/me/coco/images/1.jpg", "C:\\coco\\images\\1.jpg"], ["images/1.jpg"]),
        (["a/1.jpg", "b/1.jpg"], ["top/a/1.jpg", "top/b/1.jpg"]),
        (["1.jpg"], ["top/1.jpg", "top/thumbnails/1.jpg"]),
        (["Stra\u00dfe \u00e9.jpg"], ["Stra\u00dfe e\u0301.jpg"]),
    ],
)
def test_files_are_found_wherever_the_folder_was_packed(refs: list[str], names: list[str], style: Style) -> None:
    files = {"top/captions.jsonl": json_lines((ref, f"caption {n}") for n, ref in enumerate(refs))}
    batch = imported(style, packed(files | pictures(names)))
    assert (batch.accepted, reasons(batch)) == (len(refs), [])


@pytest.mark.parametrize("ref", ["1.jpg", "c/1.jpg", "jpg", "..", "/"])
def test_no_picture_is_taken_for_another(ref: str, style: Style) -> None:
    batch = imported(style, packed({"captions.jsonl": json_lines([(ref, "x")])} | pictures(["a/1.jpg", "b/1.jpg"])))
    assert (batch.status, batch.accepted, batch.refused.count()) == (Status.SUCCEEDED, 0, 1)


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
        (member("../evil.jpg"), "leads out"),
        (member("a/../../evil.jpg"), "leads out"),
        (member("..\\evil.jpg"), "leads out"),
        (member("/etc/passwd"), "leads out"),
        (member("C:\\evil.jpg"), "leads out"),
        (member("link.jpg", mode=stat.S_IFLNK | 0o777), "link or a device"),
        (member("null.jpg", mode=stat.S_IFCHR | 0o666), "link or a device"),
        (member("pipe.jpg", mode=stat.S_IFIFO | 0o666), "link or a device"),
        (member("secret.jpg", flags=1), "encrypted"),
        (member("inner.zip"), "archive inside"),
        (member("inner.tar.gz"), "archive inside"),
        (member("odd.jpg", method=zipfile.ZIP_LZMA), "uncommon"),
        (member("captions.jsonX").replace(b"jsonX", b"jsonl"), "twice"),
        (packed({"inner": packed({"captions.jsonl": b""})}), "archive inside"),
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
    batch = queued(style, packed({"long.json": b'{"x": [' + b'"",' * 2_000_000 + b'""]}'}))
    calls = stop_after(20)
    assert worked_off(batch, calls).status == Status.QUEUED  # handed back before its end


@pytest.mark.parametrize("start", [json_lines([("one.jpg", "red")]), b"image,caption\none.jpg,red\n"])
def test_cancelling_is_heard_among_empty_lines(start: bytes, style: Style) -> None:
    batch = queued(style, packed({"long.txt": start + b"\n" * 100_000}))
    assert worked_off(batch, stop_after(20)).status == Status.QUEUED


def test_annotations_are_not_unpacked_to_learn_that_they_are_too_large(
    style: Style, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotations, "MAX_ANNOTATIONS", 1000)
    monkeypatch.setattr(annotations, "_json_kind", None)  # what would read all of it
    batch = imported(style, packed({"long.json": b'{"x": [' + b'"",' * 2_000 + b'""]}'}))
    assert batch.error_code == "annotations_too_large"


def test_a_zip_that_explodes_is_refused_before_it_is_unpacked(style: Style, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "SMALL_UNPACKED", 1_000_000)
    batch = imported(style, packed({"captions.jsonl": json_lines(pairs()), "zeros.jpg": bytes(5_000_000)}))
    assert batch.error_code == "zip_too_large"
    monkeypatch.setattr(annotations, "MAX_FILES", 2)
    assert imported(style, packed({"captions.jsonl": json_lines(pairs())} | pictures())).error_code == "too_many_files"
    monkeypatch.setattr(annotations, "MAX_DIRECTORY", 100)
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
    assert [reason for _, reason in reasons(batch)] == ["'one.jpg': it is damaged in the zip; pack it again"] * 2
    assert batch.accepted == 2


def test_several_files_with_captions_are_refused_by_name(style: Style) -> None:
    files = {f"{n}.json": content for n, content in enumerate(FORMATS.values())}
    batch = imported(
        style, packed({"a.csv": FORMATS["CSV"], "b/c.txt": FORMATS["COCO"], "boxes.json": b'{"annotations": []}'})
    )
    assert batch.error_code == "several_annotations"
    assert "'a.csv', 'b/c.txt';" in batch.error_detail
    assert imported(style, packed(files)).error_code == "several_annotations"


def test_annotations_are_told_from_others_by_their_content(style: Style) -> None:
    boxes = {"images": [{"id": 1, "file_name": "one.jpg"}], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}] * 30}
    files = {
        "instances.json": json.dumps(boxes).encode(),
        "list.txt": b"one.jpg\ntwo.jpg\n",
        "sizes.csv": b"image,width\none.jpg,8\n",
        "empty.json": b"",
        "broken.json": b'{"images": [',
        "captions.json": FORMATS["COCO"],
    }
    assert imported(style, packed(files | pictures())).accepted == 4


@pytest.mark.parametrize("content", [b"hello", b"PK\5\6" + bytes(18), b"[]", b"{}", b"[[1], 2]", b"image\none.jpg\n"])
def test_a_file_without_captions_is_refused_with_what_is_accepted(content: bytes, style: Style) -> None:
    batch = imported(style, content, "notes\n.txt")
    assert batch.error_code == "no_annotations"
    assert "COCO or Karpathy JSON" in batch.error_detail


@pytest.mark.parametrize(
    "content",
    [
        "image,caption\na.jpg,fine\nb.jpg,caf\u00e9\n".encode("latin-1"),
        '{"image": "a.jpg", "caption": "fine"}\n\n{"image": "b.jpg", "caption": "caf\u00e9"}\n'.encode("latin-1"),
        "image,caption\na.jpg,fine\n".encode("utf-16"),
    ],
)
def test_another_encoding_is_refused_rather_than_misread(content: bytes, style: Style) -> None:
    batch = imported(style, content)
    assert batch.error_code == "not_utf8"
    assert ("line 3" if b"fine" in content else "line 1") in batch.error_detail
    assert batch.rows == 0


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


def test_an_import_that_is_handed_back_goes_on_where_it_was(style: Style, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "CHUNK", 2)
    rows = [(f"{n % 3}.jpg" if n % 4 else "gone.jpg", f"caption {n % 9}") for n in range(20)]
    batch = queued(style, packed({"a.jsonl": json_lines(rows)} | pictures(["0.jpg", "1.jpg", "2.jpg"])))
    stops = 0
    seen = []
    while worked_off(batch, stop_after(27)).status == Status.QUEUED:
        stops += 1
        seen.append(batch.rows)
        assert batch.attempts == 0
        assert_consistent(batch)
    assert stops > 2
    assert seen == sorted(set(seen))
    assert (batch.status, batch.rows) == (Status.SUCCEEDED, 20)
    assert_consistent(batch)
    assert [line for line, _ in reasons(batch)] == [1, 5, 9, 13, 17]
    assert style.examples.count() == len({row for row in rows if row[0] != "gone.jpg"})


def test_a_canceled_import_stops_with_what_it_had(style: Style, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "CHUNK", 2)
    batch = queued(
        style, packed({"a.jsonl": json_lines(("1.jpg", f"text {n}") for n in range(10))} | pictures(["1.jpg"]))
    )
    counter = itertools.count()

    def cancel_late() -> bool:
        if next(counter) == 17:
            Import.objects.filter(pk=batch.pk).cancel()
        return False

    worked_off(batch, cancel_late)
    assert (batch.status, batch.rows, style.examples.count()) == (Status.CANCELED, 4, 4)
    batch.retry(batch.deadline_at)
    assert worked_off(batch).status == Status.SUCCEEDED
    assert style.examples.count() == 10
    assert_consistent(batch)


@pytest.mark.django_db(transaction=True)
def test_a_picture_deleted_meanwhile_is_stored_anew(style: Style) -> None:
    batch = queued(style, packed({"a.jsonl": json_lines(pairs())} | pictures()))
    uploads.store(picture(0))
    counter = itertools.count()

    def prune() -> bool:
        if next(counter) == 8:
            Image.objects.all().delete()
        return False

    assert worked_off(batch, prune).error_detail == ""
    assert examples(style) == expected()
    assert_consistent(batch)


def test_a_full_disk_ends_the_import_and_keeps_what_it_had(style: Style, media: Path) -> None:
    batch = queued(style, packed({"a.jsonl": json_lines(pairs())} | pictures()))
    (media / "images").write_bytes(b"in the way")
    assert worked_off(batch).error_code == "storage_full"
    assert not batch.refused.exists()
    (media / "images").unlink()
    batch.retry(batch.deadline_at)
    assert worked_off(batch).status == Status.SUCCEEDED
    assert examples(style) == expected()


def test_the_file_is_kept_until_the_import_has_succeeded(style: Style, media: Path) -> None:
    batch = queued(style, packed({"a.jsonl": json_lines(pairs())} | pictures()))
    worked_off(batch, lambda: True)
    assert len(list((media / "imports").iterdir())) == 1
    worked_off(batch)
    assert list((media / "imports").iterdir()) == []
    lost = queued(style, b"x", "holiday.zip")
    Path(lost.file.path).unlink()
    assert worked_off(lost).error_code == "file_error"
    assert lost.error_detail.startswith("No such file or directory: holiday.zip; ")


def test_a_file_that_vanishes_from_a_folder_is_named(style: Style, tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_bytes(FORMATS["CSV"])

    def delete() -> bool:  # asked when the folder has been listed
        (tmp_path / "captions.csv").unlink()
        return False

    batch = worked_off(services.start_folder_import(style=style, folder=tmp_path), delete)
    assert batch.error_code == "file_error"
    assert batch.error_detail.startswith("No such file or directory: captions.csv; ")


class Watched(FileSystemStorage):
    """Remembers whether other writers to the database were kept waiting while it stored a file."""

    locked: ClassVar[list[bool]] = []

    def _save(self, name: str, content: Any) -> str:
        self.locked.append(connection.in_atomic_block)
        return str(super()._save(name, content))  # type: ignore[misc]  # a storage's own hook, which stubs leave out


@pytest.mark.django_db(transaction=True)
def test_a_file_is_stored_before_the_transaction_and_deleted_if_that_fails(
    style: Style, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Watched(tmp_path / "stored")
    monkeypatch.setattr(Import._meta.get_field("file"), "storage", storage)
    archive = tmp_path / "set.zip"
    archive.write_bytes(packed({"a.jsonl": json_lines(pairs())} | pictures()))
    assert "4 examples are new" in run_command("plain", str(archive))
    assert storage.locked == [False]
    with pytest.raises(IntegrityError):
        queued(Style(pk=style.pk + 1), b"x")  # deleted meanwhile
    assert list((tmp_path / "stored/imports").iterdir()) == []


@pytest.fixture
def s3() -> Iterator[S3Storage]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    storage = S3Storage(
        bucket_name="datasets",
        endpoint_url=f"http://{host}:{port}",
        access_key="tests",
        secret_key="tests",
        region_name="us-east-1",
    )
    storage.connection.create_bucket(Bucket="datasets")
    yield storage
    server.stop()


def test_a_file_in_s3_is_imported_and_deleted_there(
    style: Style, s3: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Import._meta.get_field("file"), "storage", s3)
    batch = queued(style, packed({"a.jsonl": json_lines(pairs())} | pictures()))
    name = str(batch.file.name)
    assert s3.exists(name)
    worked_off(batch)
    assert (batch.status, batch.error_detail) == (Status.SUCCEEDED, "")
    assert examples(style) == expected()
    assert not s3.exists(name)
    lost = queued(style, b"x")
    s3.delete(str(lost.file.name))
    assert worked_off(lost).error_code == "file_error"


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


def run_command(*arguments: str) -> str:
    out = io.StringIO()
    call_command("import_examples", *arguments, stdout=out, stderr=io.StringIO())
    return out.getvalue()


def test_the_command_imports_and_writes_what_was_refused(style: Style, tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    archive.write_bytes(packed({"a.jsonl": json_lines([*pairs(), ("gone.jpg", "x")])} | pictures()))
    told = run_command("plain", str(archive), "--refused", str(tmp_path / "refused.csv"))
    assert "5 rows: 4 examples are new, 0 were there, 1 refused" in told
    assert (tmp_path / "refused.csv").read_text().splitlines()[1].startswith("a.jsonl,5,\"'gone.jpg': there")
    assert examples(style) == expected()
    for arguments, reason in (
        (["plain", str(tmp_path / "none")], "cannot be read"),
        (["fancy", str(archive)], "there is no style 'fancy'; there are plain"),
        (["plain", str(archive), "--user", "nobody"], "there is no user"),
        (["plain"], "name a style and a file"),
        (["--resume", str(Import.objects.get().pk)], "has succeeded"),
        (["--resume", "0"], "there is no import 0"),
    ):
        with pytest.raises(CommandError, match=reason):
            run_command(*arguments)
    (tmp_path / "bad.json").write_bytes(b"[")
    with pytest.raises(CommandError, match="no sound JSON"):
        run_command("plain", str(tmp_path / "bad.json"))


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder with 10,000 captions of three pictures."""
    folder = tmp_path / "many"
    folder.mkdir()
    for name, data in pictures(["0.jpg", "1.jpg", "2.jpg"]).items():
        (folder / name).write_bytes(data)
    (folder / "a.jsonl").write_bytes(json_lines((f"{n % 3}.jpg", f"caption {n}") for n in range(10_000)))
    return folder


def outside(folder: Path) -> subprocess.Popen[bytes]:
    """The command in a process of its own, on the tests' database, at its first committed rows."""
    environment = os.environ | {"CLIPCAP_DATABASE_URL": f"sqlite:///{connection.settings_dict['NAME']}"}
    process = subprocess.Popen(
        [sys.executable, ROOT / "manage.py", "import_examples", "plain", folder],
        env=environment | {"CLIPCAP_HOME": str(Path(django_settings.MEDIA_ROOT).parent), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    ends = time.monotonic() + 60
    while not Import.objects.filter(rows__gt=0).exists():
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < ends
        time.sleep(0.02)
    return process


@pytest.mark.django_db(transaction=True)
def test_after_a_kill_nothing_is_lost_or_doubled(style: Style, many: Path) -> None:
    process = outside(many)
    process.kill()
    process.communicate()
    batch = Import.objects.get()
    assert batch.status == Status.RUNNING
    assert 0 < batch.rows < 10_000
    assert_consistent(batch)
    with pytest.raises(CommandError, match="is being worked on"):
        run_command("--resume", str(batch.pk))
    Import.objects.update(lease_expires_at=batch.created_at)
    assert "10000 rows: 10000 examples are new" in run_command("--resume", str(batch.pk))
    assert_consistent(batch)


@pytest.mark.django_db(transaction=True)
def test_ctrl_c_stops_the_command_and_resume_goes_on(style: Style, many: Path) -> None:
    process = outside(many)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[0].decode()
    batch = Import.objects.get()
    assert batch.status == Status.CANCELED
    assert f"to go on: import_examples --resume {batch.pk}" in told
    assert "Traceback" not in told
    assert 0 < batch.rows < 10_000
    assert_consistent(batch)
    assert "10000 rows: 10000 examples are new" in run_command("--resume", str(batch.pk))


def test_statistics_tell_what_a_dataset_holds(style: Style) -> None:
    assert statistics(style)["examples"] == 0
    stored = [uploads.store(picture(number)) for number in range(30)]
    texts = ["A man's red-haired dog.", "two dogs"]
    for number, image in enumerate(stored):
        services.add_example(style=style, image=image, text=texts[number % 2], source="imported")
        services.add_example(style=style, image=image, text=f"caption {number}", source="correction")
    told = statistics(style)
    held_out = sum(is_held_out(image) for image in stored)
    assert (told["examples"], told["images"]) == (60, 30)
    assert told["splits"] == {
        "training": {"examples": 60 - 2 * held_out, "images": 30 - held_out},
        "held_out": {"examples": 2 * held_out, "images": held_out},
    }
    assert told["sources"] == {key: {"examples": 30, "images": 30} for key in ("imported", "correction")}
    assert told["words"]["histogram"] == [(2, 45), (4, 15)]
    assert (told["words"]["mean"], told["words"]["median"], told["words"]["longest"]) == (2.5, 2, 4)
    assert told["duplicates"] == {
        "texts": 2,
        "examples": 30,
        "most": [{"text": text, "images": 15} for text in sorted(texts)],
    }
    assert told["vocabulary"]["most"][0] == ("caption", 30)
    assert told["vocabulary"]["words"] == len({"a", "man's", "red-haired", "dog", "two", "dogs", "caption"}) + 30
    assert len({sample.pk for sample in told["samples"]}) == 12
    assert told["samples"] == statistics(style)["samples"]


def test_a_failed_import_is_resumed_from_its_page_until_its_file_is_pruned(style: Style) -> None:
    batch = queued(style, packed(pictures() | {"captions.jsonl": json_lines(pairs())}))
    services.cancel_import(batch)
    boss = Client()
    boss.force_login(User.objects.create_superuser("boss"))
    page = f"/admin/training/import/{batch.pk}/"
    assert 'id="resume"' in boss.get(f"{page}change/").content.decode()
    boss.post(f"{page}resume/")
    assert worked_off(batch).status == Status.SUCCEEDED
    assert examples(style) == expected()
    with pytest.raises(Refused, match="only a failed or canceled import can be resumed; this has succeeded"):
        services.resume_import(batch)

    other = queued(style, packed(pictures() | {"captions.jsonl": json_lines(pairs())}))
    services.cancel_import(other)
    name, storage = str(other.file.name), other.file.storage
    assert services.prune(timedelta(days=1)) == {"uploads": 0, "run folders": 0}
    Import.objects.filter(pk=other.pk).update(finished_at=timezone.now() - timedelta(days=2))
    assert services.prune(timedelta(days=1)) == {"uploads": 1, "run folders": 0}
    assert not storage.exists(name)
    other.refresh_from_db()
    with pytest.raises(Refused, match="send it again"):
        services.resume_import(other)
    told = boss.get(f"/admin/training/import/{other.pk}/change/").content.decode()
    assert 'id="resume"' not in told
    assert "cannot be resumed" in told
    with pytest.raises(CommandError, match="send it again"):
        run_command("--resume", str(other.pk))


def test_an_import_of_a_folder_is_resumed_as_long_as_that_is_there(style: Style, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    batch = services.cancel_import(services.start_folder_import(style=style, folder=folder))
    assert services.is_there(batch)
    folder.rmdir()
    assert not services.is_there(batch)
    with pytest.raises(Refused, match="is gone"):
        services.resume_import(batch)


def test_what_stopped_runs_left_is_pruned(style: Style, settings: Any, tmp_path: Path) -> None:
    settings.HOME = tmp_path
    settings.KEEP_RESULTS = timedelta(days=1)
    now = timezone.now()
    old = now - timedelta(days=2)
    runs = {
        (status, finished_at): TrainingRun.objects.create(
            style=style, status=status, finished_at=finished_at, deadline_at=now
        )
        for status, finished_at in itertools.product((Status.FAILED, Status.CANCELED), (old, now))
    }
    runs[Status.QUEUED, now] = TrainingRun.objects.create(style=style, created_at=old, deadline_at=now)
    for run in runs.values():
        services.run_folder(run).mkdir(parents=True)
        (services.run_folder(run) / "state").write_bytes(b"x")
    said = io.StringIO()
    call_command("prune", stdout=said)
    assert "2 run folders" in said.getvalue()
    assert {key for key, run in runs.items() if services.run_folder(run).exists()} == {
        key for key in runs if key[1] == now
    }
