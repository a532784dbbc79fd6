"""Imports that are handed back, canceled or killed: nothing is lost or doubled however they end."""

import io
import itertools
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.utils import timezone

from captioner.errors import Refused
from captioner.jobs.job import Status
from captioner.models import Style
from clipcap.progress import ProgressBar
from tests.dataset_files import FORMATS, expected, json_lines, packed, pairs, picture, pictures
from tests.importing import assert_consistent, examples, processed, queued, reasons, run_command, stop_after
from tests.people import client_of
from tests.servers import wait_until
from training import services
from training.datasets import importer
from training.management.commands import import_examples
from training.models import Import, TrainingRun

pytestmark = [pytest.mark.usefixtures("both_databases"), pytest.mark.django_db]
ROOT = Path(__file__).parent.parent


def test_an_import_that_is_handed_back_goes_on_where_it_was(style: Style, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "CHUNK", 2)
    rows = [(f"{n % 3}.jpg" if n % 4 else "gone.jpg", f"caption {n % 9}") for n in range(20)]
    batch = queued(style, packed({"a.jsonl": json_lines(rows)} | pictures(["0.jpg", "1.jpg", "2.jpg"])))
    stops = 0
    seen = []
    while processed(batch, stop_after(27)).status == Status.QUEUED:
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

    processed(batch, cancel_late)
    assert (batch.status, batch.rows, style.examples.count()) == (Status.CANCELED, 4, 4)
    batch.retry(batch.deadline_at)
    assert processed(batch).status == Status.SUCCEEDED
    assert style.examples.count() == 10
    assert_consistent(batch)


def test_a_full_disk_ends_the_import_and_keeps_what_it_had(style: Style, media: Path) -> None:
    batch = queued(style, packed({"a.jsonl": json_lines(pairs())} | pictures()))
    (media / "images").write_bytes(b"in the way")
    assert processed(batch).error_code == "storage_full"
    assert not batch.rejected.exists()
    (media / "images").unlink()
    batch.retry(batch.deadline_at)
    assert processed(batch).status == Status.SUCCEEDED
    assert examples(style) == expected()


def test_the_file_is_kept_until_the_import_has_succeeded(style: Style, media: Path) -> None:
    batch = queued(style, packed({"a.jsonl": json_lines(pairs())} | pictures()))
    processed(batch, lambda: True)
    assert len(list((media / "imports").iterdir())) == 1
    processed(batch)
    assert list((media / "imports").iterdir()) == []
    lost = queued(style, b"x", "holiday.zip")
    Path(lost.file.path).unlink()
    assert processed(lost).error_code == "file_error"
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
        batch = processed(services.start_folder_import(style=style, folder=folder))
    assert (batch.status, batch.error_code, batch.rows) == (Status.FAILED, "file_error", 2)
    assert str(tmp_path) not in batch.error_detail
    (tmp_path / "away").rename(folder)
    assert processed(services.resume_import(batch)).status == Status.SUCCEEDED
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
            processed(batch)
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

    batch = processed(services.start_folder_import(style=style, folder=tmp_path), delete)
    assert batch.error_code == "file_error"
    assert batch.error_detail.startswith("No such file or directory: captions.csv; ")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder with 10,000 captions of three pictures."""
    folder = tmp_path / "many"
    folder.mkdir()
    for name, data in pictures(["0.jpg", "1.jpg", "2.jpg"]).items():
        (folder / name).write_bytes(data)
    (folder / "a.jsonl").write_bytes(json_lines((f"{n % 3}.jpg", f"caption {n}") for n in range(10_000)))
    return folder


def outside(folder: Path, database: str) -> subprocess.Popen[bytes]:
    """The command in a process of its own, on the tests' database, at its first committed rows."""
    environment = os.environ | {"CLIPCAP_DATABASE_URL": database}
    process = subprocess.Popen(
        [sys.executable, ROOT / "manage.py", "import_examples", "plain", folder],
        env=environment | {"CLIPCAP_HOME": str(Path(django_settings.MEDIA_ROOT).parent), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )

    def begun() -> bool:
        assert process.poll() is None, process.communicate()[0].decode()
        return Import.objects.filter(rows__gt=0).exists()

    wait_until(begun, "the first rows are there")
    return process


@pytest.mark.django_db(transaction=True)
def test_after_a_kill_nothing_is_lost_or_doubled(style: Style, many: Path, both_databases: str) -> None:
    process = outside(many, both_databases)
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
def test_ctrl_c_stops_the_command_and_resume_goes_on(style: Style, many: Path, both_databases: str) -> None:
    process = outside(many, both_databases)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[0].decode()
    batch = Import.objects.get()
    assert batch.status == Status.CANCELED
    assert f"to resume: import_examples --resume {batch.pk}" in told
    assert "Traceback" not in told
    assert 0 < batch.rows < 10_000
    assert_consistent(batch)
    assert "10000 rows: 10000 new examples" in run_command("--resume", str(batch.pk))


def test_ctrl_c_while_the_progress_is_looked_up_stops_the_command_too(
    style: Style, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_examples, "LOOK", 0.0)
    monkeypatch.setattr(ProgressBar, "show", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(CommandError, match="the import is canceled; to resume"):
        run_command("plain", str(many))
    assert Import.objects.get().status == Status.CANCELED


def test_a_failed_import_is_resumed_from_its_page_until_its_file_is_pruned(
    style: Style, django_capture_on_commit_callbacks: Any
) -> None:
    batch = queued(style, packed(pictures() | {"captions.jsonl": json_lines(pairs())}))
    services.cancel_import(batch)
    boss = client_of(User.objects.create_superuser("boss"))
    page = f"/admin/training/import/{batch.pk}/"
    assert 'id="resume"' in boss.get(f"{page}change/").content.decode()
    boss.post(f"{page}resume/")
    assert processed(batch).status == Status.SUCCEEDED
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
