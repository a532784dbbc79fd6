"""Runs that are interrupted, find no room or lose what they need: nothing is lost, and the run says why."""

import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from django.db import OperationalError
from django.utils import timezone

from captioner import services as captioner_services
from captioner.errors import Refused
from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import Status
from captioner.models import Image, MapperVersion, Style
from captioner.workers.breaker import STRIKES
from tests.runs.ended import QUICK, succeeds, trained, work_and_cancel
from tests.servers import small_disk
from training import services
from training.models import Example, RunEvent, TrainingRun
from training.worker import TrainingEngine

pytestmark = pytest.mark.usefixtures("both_databases")


def test_a_full_disk_ends_the_run_with_its_reason_and_keeps_what_it_had(
    factual: Style, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = services.start_run(style=factual, options={**QUICK, "start": "scratch", "prefix_length": 3, "layers": 1})
    real = captioner_services.stored_version

    def full(**_: Any) -> MapperVersion:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(captioner_services, "stored_version", full)
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert (run.status, run.error_code) == (Status.FAILED, "disk_full")
    assert "resume" in run.error_detail
    assert (services.run_folder(run) / "mapper.safetensors").exists()
    monkeypatch.setattr(captioner_services, "stored_version", real)
    services.resume_run(run)
    succeeds(run, engine)


@pytest.mark.embedded_models
def test_a_run_whose_folder_or_temporary_files_find_no_room_says_so_without_a_path_and_can_be_resumed(
    factual: Style, engine: CaptionEngine, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = services.start_run(style=factual, options={**QUICK, "start": "scratch", "prefix_length": 3, "layers": 1})
    home = settings.HOME
    with small_disk(tmp_path / "disk"):
        settings.HOME = tmp_path / "disk"
        TrainingEngine(engine).work()
        settings.HOME = home
        scratch.refresh_from_db()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
        active = services.start_run(style=factual, options=QUICK)
        TrainingEngine(engine).work()
        monkeypatch.setattr(tempfile, "tempdir", None)
        active.refresh_from_db()
    for run in (scratch, active):
        assert (run.status, run.error_code) == (Status.FAILED, "disk_full")
        assert run.error_detail.startswith("No space left on device")
        assert "/" not in run.error_detail
    services.resume_run(active)
    succeeds(active, engine)


@pytest.mark.embedded_models
def test_a_run_whose_photos_cannot_be_read_for_a_while_waits_and_leaves_none_out(
    factual: Style, engine: CaptionEngine, media: Path
) -> None:
    run = services.start_run(style=factual, options={"epochs": 1, "start": "scratch", "layers": 1})
    media.rename(media.with_name("away"))
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert (run.status, run.attempts) == (Status.QUEUED, 0)
    assert [failure["code"] for failure in run.failures] == ["image_missing"]
    assert TrainingEngine(engine).work() == 0, "not at once"
    media.with_name("away").rename(media)
    TrainingRun.objects.update(ready_at=None)
    succeeds(run, engine)
    assert not RunEvent.objects.filter(run=run, message__contains="left out").exists()


@pytest.mark.embedded_models
def test_a_training_worker_that_paused_itself_is_well_again_when_no_run_is_left(
    factual: Style, engine: CaptionEngine, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = services.start_run(style=factual, options={"epochs": 1, "start": "scratch", "layers": 1})
    media.rename(media.with_name("away"))
    trainer = TrainingEngine(engine)
    for _ in range(STRIKES):
        assert trainer.work() == 1
        TrainingRun.objects.update(ready_at=None)
    assert trainer.work() == 0, "it has paused itself"
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 3600)
    assert trainer.work() == 1, "it tries again"
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 3600)
    assert trainer.work() == 0, "not at once"
    assert trainer.breaker.trouble
    services.cancel_run(run)
    assert trainer.work() == 0
    assert trainer.breaker.trouble == ""


def test_only_workers_that_a_run_lost_since_it_last_got_on_count_against_it(
    factual: Style, engine: CaptionEngine
) -> None:
    class Killed(BaseException):
        pass

    def kill_at_the_next_look_after(epoch: int) -> Callable[[], bool]:
        def look() -> bool:
            if run.reports.filter(epoch=epoch).exists():
                raise Killed
            return False

        return look

    run = services.start_run(
        style=factual, options={"epochs": 3, "batch_size": 20, "start": "scratch", "prefix_length": 3, "layers": 1}
    )
    seen = []
    for epoch in (1, 1, 2, 2):
        with pytest.raises(Killed):
            TrainingEngine(engine, stopping=kill_at_the_next_look_after(epoch)).work()
        run.refresh_from_db()
        seen.append(run.attempts)
        TrainingRun.objects.update(lease_expires_at=timezone.now() - timedelta(minutes=1))
        TrainingRun.objects.all().reap()
        TrainingRun.objects.update(ready_at=None)
    assert seen == [1, 2, 1, 2]


def mapper_files(style: Style) -> set[str]:
    """The names of all stored mappers, filed as versions or not."""
    storage = MapperVersion._meta.get_field("file").storage
    folder = Path(str(MapperVersion.objects.filter(style=style).values_list("file", flat=True)[0])).parent
    return {str(folder / name) for name in storage.listdir(str(folder))[1]}


def test_a_run_canceled_while_it_is_filed_leaves_no_version_and_no_file(
    factual: Style, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_version = captioner_services.file_version
    before = mapper_files(factual)
    stored: list[bool] = []

    def canceled(version: MapperVersion) -> None:
        stored.append(str(version.file.name) in mapper_files(factual))
        file_version(version)
        services.cancel_run(run)

    run = services.start_run(style=factual, options={"epochs": 1})
    monkeypatch.setattr(captioner_services, "file_version", canceled)
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert run.version is None
    assert stored == [True], "the file is stored before it is filed"
    assert factual.versions.count() == 1
    assert mapper_files(factual) == before


def test_a_database_lost_at_the_very_commit_costs_no_version_its_file(factual: Style) -> None:
    in_service = factual.version_in_service
    assert in_service is not None
    mapper = Path(in_service.file.path)

    def lose_the_answer() -> None:
        origin = MapperVersion.Origin.TRAINED
        with captioner_services.stored_version(style=factual, path=mapper, origin=origin) as version:
            captioner_services.file_version(version)
            raise OperationalError("server closed the connection unexpectedly")

    with pytest.raises(OperationalError):
        lose_the_answer()
    filed = factual.versions.latest("number")
    assert filed.number == in_service.number + 1
    assert filed.file.storage.exists(str(filed.file.name))


def test_images_that_vanish_are_left_out_and_the_log_says_so(factual: Style, engine: CaptionEngine) -> None:
    for image in Image.objects.all()[:3]:
        image.file.storage.delete(str(image.file.name))
    run = trained(factual, engine, {"epochs": 1})
    assert (run.status, run.error_detail) == (Status.SUCCEEDED, "")
    assert RunEvent.objects.filter(run=run, level="warning", message__contains="3 images cannot be read").exists()


def test_a_run_that_a_lost_worker_left_behind_is_in_nobodys_way(factual: Style) -> None:
    run = services.start_run(style=factual, options=QUICK)
    TrainingRun.objects.claim("lost", 1)
    TrainingRun.objects.filter(pk=run.pk).update(lease_expires_at=timezone.now() - timedelta(minutes=1))
    cache.clear()
    services.rescue_stale()
    run.refresh_from_db()
    assert run.status == Status.QUEUED


def test_a_run_whose_state_was_pruned_starts_over_and_shows_nothing_of_before(
    factual: Style, engine: CaptionEngine
) -> None:
    run = services.start_run(style=factual, options={**QUICK, "epochs": 3, "start": "scratch", "layers": 1})
    work_and_cancel(run, engine, run.reports.exists)
    assert run.curve != []
    assert services.prune(timedelta(0))["run folders"] == 1
    run.reports.update(training_loss=99.0)
    services.resume_run(run)
    succeeds(run, engine)
    assert run.curve[0][0] == 1
    assert not run.reports.filter(training_loss=99.0).exists()
    assert [report.epoch for report in run.reports.all()] == [1, 2, 3]


def test_a_run_whose_worker_has_no_room_for_the_version_in_service_is_handed_back(
    factual: Style, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = services.start_run(style=factual, options={**QUICK, "start": "scratch", "prefix_length": 3, "layers": 1})
    monkeypatch.setattr(engine.mappers, "budget", 1)
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert (run.status, run.failures[-1]["code"]) == (Status.QUEUED, "out_of_memory")
    assert "CLIPCAP_MODEL_CACHE_BYTES" in run.failures[-1]["detail"]


def test_a_resumed_run_whose_examples_were_deleted_starts_over(factual: Style, engine: CaptionEngine) -> None:
    run = services.start_run(style=factual, options={**QUICK, "start": "scratch", "prefix_length": 3, "layers": 1})
    TrainingEngine(engine, stopping=run.reports.exists).work()
    assert (services.run_folder(run) / "state.pt").exists()
    Example.objects.filter(style=factual, held_out=False)[:1].get().delete()
    succeeds(run, engine)
    assert run.events.filter(message__contains="starting over").exists()
    assert [report.epoch for report in run.reports.all()] == [1, 2]


def test_a_promotion_of_a_version_whose_file_is_gone_is_refused(factual: Style) -> None:
    version = factual.version_in_service
    assert version is not None
    other = captioner_services.register_version(
        style=factual, path=Path(version.file.path), origin=MapperVersion.Origin.IMPORTED
    )
    other.file.storage.delete(str(other.file.name))
    with pytest.raises(Refused, match="missing from the storage"):
        captioner_services.promote(version=other)
    assert factual.version_in_service == version
