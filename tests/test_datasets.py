"""Importing examples: what is taken, what is refused, and what a dataset holds."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from django.core.files.storage import FileSystemStorage, default_storage
from django.core.management import CommandError
from django.db import connection
from moto.server import ThreadedMotoServer
from storages.backends.s3 import S3Storage

from captioner import uploads
from captioner.errors import Refused
from captioner.jobs.job import Status
from captioner.models import Image, Style
from tests.dataset_files import expected, json_lines, packed, pairs, picture, pictures
from tests.importing import assert_consistent, examples, imported, processed, queued, reasons, run_command
from training import services
from training.datasets.importer import rejected_csv
from training.datasets.statistics import statistics
from training.models import Import, is_held_out

pytestmark = pytest.mark.django_db


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
    batch = processed(services.start_folder_import(style=style, folder=folder))
    assert batch.status == Status.SUCCEEDED
    assert examples(style) == expected()
    assert [line for line, _ in reasons(batch)] == [5, 6, 7]
    assert all("no such file" in reason for _, reason in reasons(batch))


def test_only_a_folder_is_imported_as_one(style: Style, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="is not a directory"):
        services.start_folder_import(style=style, folder=tmp_path / "none")
    with pytest.raises(Refused, match="is not UTF-8; rename it"):
        services.start_folder_import(style=style, folder=tmp_path / "caf\udce9")
    batch = queued(style, b"x", "etc")
    Import.objects.filter(pk=batch.pk).update(file="")
    assert processed(batch).error_code == "file_missing"


def test_rejected_rows_are_downloaded_without_formulas(style: Style) -> None:
    batch = imported(style, b'{"image": "=x", "caption": "y"}\n')
    batch.rejected.update(file="=cmd()", reason='@SUM(1), "2"')
    batch.rejected.create(file="+1", line=2, reason="-3")
    assert "".join(rejected_csv(batch)) == ('file,line,reason\r\n\'=cmd(),1,"\'@SUM(1), ""2"""\r\n\'+1,2,\'-3\r\n')


def test_what_was_there_counts_as_duplicate(style: Style) -> None:
    content = packed({"a.jsonl": json_lines([*pairs(), *pairs()[:2], ("one.jpg", " a  red square")])} | pictures())
    first = imported(style, content)
    assert (first.rows, first.accepted, first.duplicates) == (7, 4, 3)
    again = imported(style, content)
    assert (again.rows, again.accepted, again.duplicates) == (7, 0, 7)
    assert style.examples.filter(batch=first).count() == 4
    assert_consistent(again)


@pytest.mark.django_db(transaction=True)
def test_a_picture_deleted_meanwhile_is_stored_again(style: Style) -> None:
    batch = queued(style, packed({"a.jsonl": json_lines(pairs())} | pictures()))
    uploads.store(picture(0))
    counter = itertools.count()

    def prune() -> bool:
        if next(counter) == 8:
            Image.objects.all().delete()
        return False

    assert processed(batch, prune).error_detail == ""
    assert examples(style) == expected()
    assert_consistent(batch)


class Watched(FileSystemStorage):
    """Remembers whether other writers to the database were kept waiting while it stored an import's file."""

    locked: ClassVar[list[bool]] = []

    def _save(self, name: str, content: Any) -> str:
        if name.startswith("imports/"):
            self.locked.append(connection.in_atomic_block)
        return str(super()._save(name, content))  # type: ignore[misc]  # a storage's own hook, which stubs leave out


@pytest.mark.django_db(transaction=True)
def test_a_file_is_stored_before_the_transaction_and_deleted_if_that_fails(
    style: Style, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Watched(tmp_path / "stored")
    monkeypatch.setattr(default_storage, "_wrapped", storage)
    archive = tmp_path / "set.zip"
    archive.write_bytes(packed({"a.jsonl": json_lines(pairs())} | pictures()))
    assert "4 new examples" in run_command("plain", str(archive))
    assert storage.locked == [False]
    with pytest.raises(Refused, match="was not found"):
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
    monkeypatch.setattr(default_storage, "_wrapped", s3)
    batch = queued(style, packed({"a.jsonl": json_lines(pairs())} | pictures()))
    name = str(batch.file.name)
    assert s3.exists(name)
    processed(batch)
    assert (batch.status, batch.error_detail) == (Status.SUCCEEDED, "")
    assert examples(style) == expected()
    assert not s3.exists(name)
    lost = queued(style, b"x")
    s3.delete(str(lost.file.name))
    assert processed(lost).error_code == "file_error"


@pytest.mark.parametrize("flag", ["--rejected", "--refused"])  # as it is called, and as 0.2.0 called it
def test_the_command_imports_and_writes_what_was_rejected(style: Style, tmp_path: Path, flag: str) -> None:
    archive = tmp_path / "set.zip"
    archive.write_bytes(packed({"a.jsonl": json_lines([*pairs(), ("gone.jpg", "x")])} | pictures()))
    told = run_command("plain", str(archive), flag, str(tmp_path / "rejected.csv"))
    assert "5 rows: 4 new examples, 0 already present, 1 rejected" in told
    assert (tmp_path / "rejected.csv").read_text().splitlines()[1].startswith("a.jsonl,5,\"'gone.jpg': there")
    assert examples(style) == expected()
    for arguments, reason in (
        (["plain", str(tmp_path / "none")], "cannot be read"),
        (["fancy", str(archive)], "there is no style 'fancy'; the styles are plain"),
        (["plain", str(archive), "--user", "nobody"], "there is no user"),
        (["plain"], "name a style and a file"),
        (["--resume", str(Import.objects.get().pk)], "the status of this one is succeeded"),
        (["--resume", "0"], "there is no import 0"),
    ):
        with pytest.raises(CommandError, match=reason):
            run_command(*arguments)
    (tmp_path / "bad.json").write_bytes(b"[")
    with pytest.raises(CommandError, match="not valid JSON"):
        run_command("plain", str(tmp_path / "bad.json"))


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
