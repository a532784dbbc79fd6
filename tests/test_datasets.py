"""Importing examples: nothing is lost or doubled however it ends; what a dataset holds, and what is left behind."""

import io
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core.files.storage import FileSystemStorage, default_storage
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.utils import timezone
from moto.server import ThreadedMotoServer
from storages.backends.s3 import S3Storage

from captioner import uploads
from captioner.errors import Refused
from captioner.jobs.job import Status
from captioner.models import Image, Style
from tests.dataset_files import (
    FORMATS,
    assert_consistent,
    examples,
    expected,
    imported,
    json_lines,
    packed,
    pairs,
    picture,
    pictures,
    queued,
    reasons,
    run_command,
    stop_after,
    worked_off,
)
from training import services
from training.datasets import importer
from training.datasets.importer import refused_csv
from training.datasets.statistics import statistics
from training.models import Import, TrainingRun, is_held_out

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).parent.parent


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
    with pytest.raises(Refused, match="is not a directory"):
        services.start_folder_import(style=style, folder=tmp_path / "none")
    with pytest.raises(Refused, match="is not UTF-8; rename it"):
        services.start_folder_import(style=style, folder=tmp_path / "caf\udce9")
    batch = queued(style, b"x", "etc")
    Import.objects.filter(pk=batch.pk).update(file="")
    assert worked_off(batch).error_code == "file_missing"


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


def test_a_folder_that_goes_away_costs_no_row_and_the_import_can_be_resumed(
    style: Style, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "CHUNK", 2)
    folder = tmp_path / "set"
    folder.mkdir()
    for n in range(6):
        (folder / f"{n}.jpg").write_bytes(picture(n))
    (folder / "a.jsonl").write_bytes(json_lines((f"{n}.jpg", f"caption {n}") for n in range(6)))
    opened = importer._picture

    def goes_away(files: Any, name: str) -> Any:
        if name == "3.jpg" and folder.exists():
            folder.rename(tmp_path / "away")
        return opened(files, name)

    with monkeypatch.context() as patch:
        patch.setattr(importer, "_picture", goes_away)
        batch = worked_off(services.start_folder_import(style=style, folder=folder))
    assert (batch.status, batch.error_code, batch.rows) == (Status.FAILED, "file_error", 2)
    assert str(tmp_path) not in batch.error_detail
    (tmp_path / "away").rename(folder)
    assert worked_off(services.resume_import(batch)).status == Status.SUCCEEDED
    assert (style.examples.count(), reasons(batch)) == (6, [])


def test_an_import_that_got_on_since_it_cost_a_worker_has_all_its_attempts(
    style: Style, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    monkeypatch.setattr(importer, "CHUNK", 2)
    batch = queued(
        style, packed({"a.jsonl": json_lines(("1.jpg", f"text {n}") for n in range(8))} | pictures(["1.jpg"]))
    )
    save, seen = importer._Importer._save, []

    def save_and_die(self: Any, chunk: Any) -> None:
        save(self, chunk)
        raise Killed

    monkeypatch.setattr(importer._Importer, "_save", save_and_die)
    for _ in range(3):
        with pytest.raises(Killed):
            worked_off(batch)
        batch.refresh_from_db()
        seen.append((batch.rows, batch.attempts))
        Import.objects.update(lease_expires_at=timezone.now() - timedelta(minutes=1))
        Import.objects.all().reap()
        Import.objects.update(ready_at=None)
    assert seen == [(2, 1), (4, 1), (6, 1)]


def test_a_file_that_vanishes_from_a_folder_is_named(style: Style, tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_bytes(FORMATS["CSV"])

    def delete() -> bool:  # asked when the folder has been listed
        (tmp_path / "captions.csv").unlink()
        return False

    batch = worked_off(services.start_folder_import(style=style, folder=tmp_path), delete)
    assert batch.error_code == "file_error"
    assert batch.error_detail.startswith("No such file or directory: captions.csv; ")


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
    worked_off(batch)
    assert (batch.status, batch.error_detail) == (Status.SUCCEEDED, "")
    assert examples(style) == expected()
    assert not s3.exists(name)
    lost = queued(style, b"x")
    s3.delete(str(lost.file.name))
    assert worked_off(lost).error_code == "file_error"


def test_the_command_imports_and_writes_what_was_refused(style: Style, tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    archive.write_bytes(packed({"a.jsonl": json_lines([*pairs(), ("gone.jpg", "x")])} | pictures()))
    told = run_command("plain", str(archive), "--refused", str(tmp_path / "refused.csv"))
    assert "5 rows: 4 new examples, 0 already present, 1 refused" in told
    assert (tmp_path / "refused.csv").read_text().splitlines()[1].startswith("a.jsonl,5,\"'gone.jpg': there")
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
    with pytest.raises(CommandError, match="is in progress"):
        run_command("--resume", str(batch.pk))
    Import.objects.update(lease_expires_at=batch.created_at)
    assert "10000 rows: 10000 new examples" in run_command("--resume", str(batch.pk))
    assert_consistent(batch)


@pytest.mark.django_db(transaction=True)
def test_ctrl_c_stops_the_command_and_resume_goes_on(style: Style, many: Path) -> None:
    process = outside(many)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[0].decode()
    batch = Import.objects.get()
    assert batch.status == Status.CANCELED
    assert f"to resume: import_examples --resume {batch.pk}" in told
    assert "Traceback" not in told
    assert 0 < batch.rows < 10_000
    assert_consistent(batch)
    assert "10000 rows: 10000 new examples" in run_command("--resume", str(batch.pk))


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


def test_a_failed_import_is_resumed_from_its_page_until_its_file_is_pruned(
    style: Style, django_capture_on_commit_callbacks: Any
) -> None:
    batch = queued(style, packed(pictures() | {"captions.jsonl": json_lines(pairs())}))
    services.cancel_import(batch)
    boss = Client()
    boss.force_login(User.objects.create_superuser("boss"))
    page = f"/admin/training/import/{batch.pk}/"
    assert 'id="resume"' in boss.get(f"{page}change/").content.decode()
    boss.post(f"{page}resume/")
    assert worked_off(batch).status == Status.SUCCEEDED
    assert examples(style) == expected()
    with pytest.raises(Refused, match="only failed or canceled imports can be resumed"):
        services.resume_import(batch)

    other = queued(style, packed(pictures() | {"captions.jsonl": json_lines(pairs())}))
    services.cancel_import(other)
    name, storage = str(other.file.name), other.file.storage
    assert services.prune(timedelta(days=1)) == {"uploads": 0, "run folders": 0}
    Import.objects.filter(pk=other.pk).update(finished_at=timezone.now() - timedelta(days=2))
    with django_capture_on_commit_callbacks(execute=True):
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
