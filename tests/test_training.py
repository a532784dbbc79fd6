"""Retraining a style: from its examples to a version in service."""

import dataclasses
import itertools
import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from django.core.cache import cache
from django.db import OperationalError, close_old_connections, transaction
from django.test import override_settings
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from captioner import services as captioner_services
from captioner import uploads
from captioner.errors import Refused
from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import Status
from captioner.jobs.worker_process import WorkerProcess
from captioner.models import Caption, CaptionRequest, Correction, Image, MapperVersion, Promotion, Style, Viewer, Worker
from captioner.services import Upload
from clipcap.checkpoint import load_mapper, save_mapper
from clipcap.evaluation import comparison
from clipcap.evaluation.comparison import paired_bootstrap, verdict
from clipcap.options import DecodingOptions
from tests.servers import small_disk
from training import examples as training_examples
from training import memory, services
from training import worker as training_worker
from training.examples import captioned_images
from training.models import Example, Policy, RunEvent, TrainingRun, is_held_out
from training.worker import TrainingEngine

COCO = Path(__file__).parent.parent / "examples" / "coco_cc"
QUICK = {"epochs": 2, "batch_size": 20}


@pytest.fixture(scope="session")
def captioned_photos() -> list[tuple[bytes, list[str]]]:
    """The photos that come with the project, with people's captions."""
    rows = json.loads((COCO / "captions.json").read_text(encoding="utf-8"))
    return [((COCO / row["file"]).read_bytes(), row["captions"]) for row in rows]


@pytest.fixture(scope="session")
def stored(
    django_db_setup: None,
    django_db_blocker: Any,
    captioned_photos: list[tuple[bytes, list[str]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[Image], Path]:
    """Thirty of them, stored once: images, of which there are no rows, and the folder of their files."""
    folder = tmp_path_factory.mktemp("stored")
    with django_db_blocker.unblock(), override_settings(MEDIA_ROOT=folder), transaction.atomic():
        images = [uploads.store(data) for data, _ in captioned_photos[:30]]
        transaction.set_rollback(True)
    return images, folder


@pytest.fixture
def factual(
    styles: dict[str, Style],
    captioned_photos: list[tuple[bytes, list[str]]],
    stored: tuple[list[Image], Path],
    media: Path,
) -> Style:
    """The factual style with thirty photos as its dataset, some of them held out."""
    style, (images, folder) = styles["factual"], stored
    shutil.copytree(folder, media, dirs_exist_ok=True)
    images = Image.objects.bulk_create(deepcopy(images))
    for image, (_, captions) in zip(images, captioned_photos, strict=False):
        for text in captions[:2]:
            services.add_example(style=style, image=image, text=text, source=Example.Source.IMPORTED)
    return style


@pytest.fixture(autouse=True)
def quick_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a checkpoint one photo is captioned, and captions are cut early: those of mappers that have learned next to
    nothing would never end."""
    monkeypatch.setattr(training_worker, "SAMPLES", 1)
    monkeypatch.setattr(training_examples, "DecodingOptions", partial(DecodingOptions, max_length=12))


@pytest.fixture
def trainer(engine: CaptionEngine) -> TrainingEngine:
    return TrainingEngine(engine)


def caption(style: Style, data: bytes, engine: CaptionEngine) -> Caption:
    request = captioner_services.request_captions(viewer=Viewer(), images=[Upload(data)], styles=[style.slug])
    assert engine.work() == 1
    return request.captions.get()


def test_a_run_is_trained_evaluated_filed_and_its_promotion_serves_the_next_caption(
    factual: Style, trainer: TrainingEngine, engine: CaptionEngine, photo: bytes
) -> None:
    before = caption(factual, photo, engine)
    assert before.version is not None
    run = services.start_run(style=factual, options={**QUICK, "start": "scratch", "prefix_length": 4, "layers": 1})
    assert trainer.work() == 1
    run.refresh_from_db()
    assert (run.status, run.error_detail) == (Status.SUCCEEDED, "")
    assert run.version is not None
    assert run.version.origin == MapperVersion.Origin.TRAINED
    assert run.verdict in (TrainingRun.Verdict.WORSE, TrainingRun.Verdict.UNCLEAR)  # so short, against the shipped one
    assert set(run.metrics) >= {"candidate", "active", "difference", "metric", "images"}
    assert run.comparison[0]["references"]
    assert [checkpoint.epoch for checkpoint in run.checkpoints.all()] == [1, 2]
    assert all(len(c.samples) == len(run.checkpoints.get(epoch=1).samples) > 0 for c in run.checkpoints.all())
    assert run.curve[-1][0] > 1
    assert not services.run_folder(run).exists()
    assert factual.active_version == before.version  # it waits for a person

    captioner_services.promote(version=run.version, reason="to see it in service")
    after = caption(factual, photo, engine)
    assert after.version == run.version

    captioner_services.promote(version=before.version, reason="back again")
    again = caption(factual, photo, engine)
    assert (again.text, again.version) == (before.text, before.version)
    assert Promotion.objects.filter(style=factual).count() == 3


def test_going_on_from_the_active_version_keeps_its_architecture(factual: Style, trainer: TrainingEngine) -> None:
    run = services.start_run(style=factual, options={"epochs": 1})
    trainer.work()
    run.refresh_from_db()
    assert run.version is not None
    assert run.base is not None
    assert run.version.config == run.base.config
    assert run.version.sha256 != run.base.sha256


@pytest.mark.parametrize(("look", "begun"), [(0, False), (1, False), (3, False), (8, True)])
def test_a_run_that_is_interrupted_goes_on_to_the_same_bytes(
    factual: Style, engine: CaptionEngine, look: int, begun: bool
) -> None:
    options = {**QUICK, "start": "scratch", "prefix_length": 3, "layers": 1}
    whole = services.start_run(style=factual, options=options)
    TrainingEngine(engine).work()
    whole.refresh_from_db()

    run = services.start_run(style=factual, options=options)
    looks = iter(range(100))
    TrainingEngine(engine, stopping=lambda: next(looks) >= look).work()
    run.refresh_from_db()
    assert (run.status, run.attempts) == (Status.QUEUED, 0)  # handed back
    assert services.run_folder(run).exists() == begun
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert (run.status, run.error_detail) == (Status.SUCCEEDED, "")
    assert run.version is not None
    assert whole.version is not None
    assert run.version.sha256 == whole.version.sha256


@pytest.mark.parametrize("phase", ["reading", "embedding", "tokenizing", "training", "evaluating"])
def test_cancelling_is_heard_in_every_phase_and_the_run_can_be_resumed(
    factual: Style, engine: CaptionEngine, phase: str
) -> None:
    run = services.start_run(style=factual, options={**QUICK, "start": "scratch", "prefix_length": 3, "layers": 1})

    def cancel_in_that_phase() -> bool:
        if TrainingRun.objects.filter(pk=run.pk, status=Status.RUNNING, progress__phase=phase).exists():
            services.cancel_run(run)
        return False

    trainer = TrainingEngine(engine, stopping=cancel_in_that_phase)
    trainer.tell_every = 0.0
    trainer.work()
    run.refresh_from_db()
    assert run.status == Status.CANCELED
    assert run.version is None
    services.resume_run(run)
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert (run.status, run.error_detail) == (Status.SUCCEEDED, "")


def test_only_one_run_of_a_style_is_unfinished_at_a_time(factual: Style) -> None:
    services.start_run(style=factual, options=QUICK)
    with pytest.raises(Refused, match="unfinished"):
        services.start_run(style=factual, options=QUICK)


@pytest.mark.django_db(transaction=True)
def test_of_two_runs_started_at_once_one_is_refused(factual: Style) -> None:
    outcomes: list[str] = []
    together = threading.Barrier(2)

    def start() -> None:
        together.wait()
        try:
            services.start_run(style=factual, options=QUICK)
            outcomes.append("started")
        except Refused as error:
            outcomes.append(error.code)
        finally:
            close_old_connections()

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["run_in_progress", "started"]


def test_a_key_is_its_persons_own_and_forgotten_after_a_day(factual: Style, viewer: Viewer) -> None:
    first = services.start_run(style=factual, options=QUICK, idempotency_key="k", person=viewer.user)
    services.cancel_run(first)
    other = services.start_run(style=factual, options=QUICK, idempotency_key="k")
    assert other != first
    services.cancel_run(other)
    assert services.start_run(style=factual, options=QUICK, idempotency_key="k", person=viewer.user) == first
    TrainingRun.objects.filter(pk=first.pk).update(created_at=timezone.now() - timedelta(days=2))
    third = services.start_run(style=factual, options={"epochs": 3}, idempotency_key="k", person=viewer.user)
    assert third not in (first, other)


def test_the_same_key_starts_one_run(factual: Style) -> None:
    first = services.start_run(style=factual, options=QUICK, idempotency_key="k")
    assert services.start_run(style=factual, options=QUICK, idempotency_key="k") == first
    with pytest.raises(Refused, match="other options"):
        services.start_run(style=factual, options={"epochs": 3}, idempotency_key="k")


def test_too_few_examples_are_refused_before_there_is_a_run(styles: dict[str, Style]) -> None:
    with pytest.raises(Refused, match="import more"):
        services.start_run(style=styles["romantic"])
    assert not TrainingRun.objects.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epochs": -1}, "epochs must be a whole number from 1 to 200"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number"),
        ({"sources": []}, "sources must be some of"),
        ({"start": "yesterday"}, "start must be"),
        ({"start": "active", "prefix_length": 20}, "prefix_length is fixed by the version in service"),
        ({"optimizer": "sgd"}, "unknown option 'optimizer'"),
    ],
)
def test_options_without_sense_are_refused_by_name(factual: Style, options: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused, match=says):
        services.start_run(style=factual, options=options)


def test_a_run_for_which_no_worker_has_the_memory_is_refused_before_it_is_queued(
    factual: Style, engine: CaptionEngine
) -> None:
    process = WorkerProcess(TrainingEngine(engine), "training", {}, ())
    process._beat()
    large = {"start": "scratch", "batch_size": 1024, "prefix_length": 64, "layers": 16}
    worker = Worker.objects.get()
    worker.capacity["memory_mb"] = 2000
    worker.save()
    with pytest.raises(Refused, match=r"the largest training worker has 2\.0; raise accumulation") as refused:
        services.start_run(style=factual, options=large)
    assert refused.value.code == "too_little_memory"
    services.start_run(style=factual, options={"start": "scratch"})


def test_a_long_curve_is_thinned_evenly(factual: Style, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_worker, "CURVE", 4)
    run = services.start_run(style=factual, options={**QUICK, "epochs": 5, "batch_size": 5})
    TrainingEngine(engine).work()
    run.refresh_from_db()
    steps = [point[0] for point in run.curve]
    assert 2 < len(steps) <= 4
    assert len({after - before for before, after in itertools.pairwise(steps)}) == 1


def test_more_of_anything_is_told_to_take_more_memory(engine: CaptionEngine) -> None:
    capacity = WorkerProcess(TrainingEngine(engine), "training", {}, ()).capacity

    def needed(batch_size: int = 40, images: int = 1000, **changes: Any) -> float:
        shape = {"kind": "transformer", "prefix_length": 10, "layers": 4, **changes}
        return memory.megabytes(shape, batch_size, capacity, images)

    assert 100 < needed() < 1000, "the usual options fit anywhere"
    for more in ({"batch_size": 80}, {"prefix_length": 20}, {"layers": 8}, {"clip_length": 40}, {"images": 10**6}):
        assert needed(**more) > needed(), more
    assert needed(kind="mlp", prefix_length=60) > needed(kind="mlp") > 0
    assert needed(kind="mlp", hidden_size=9000) > needed(kind="mlp")
    shape = {"kind": "transformer", "prefix_length": 10, "layers": 4}
    learning = [
        memory.megabytes(shape, 40, capacity, 1000, *more)
        for more in (("frozen",), ("adapters", 8), ("adapters", 64), ("finetuned",))
    ]
    assert learning == sorted(learning)
    assert learning[0] == needed()
    small = memory.megabytes(shape, 1, capacity, 1000, "finetuned")
    parameters = 8_175_616  # of the LM; weights, gradient, both moments and the best, and once more while it is stored
    assert small * 2**20 / 4 > 8 * parameters, "AdamW's state is counted, however small the batch"


def test_a_run_that_would_train_a_copy_is_checked_with_the_copys_size(factual: Style, engine: CaptionEngine) -> None:
    WorkerProcess(TrainingEngine(engine), "training", {}, ())._beat()
    worker = Worker.objects.get()
    capacity = worker.capacity
    worker.capacity = {**capacity, "vocabulary": 50_257, "lm_size": 1600, "lm_layers": 48, "memory_mb": 30_000}
    worker.save()
    with pytest.raises(Refused, match="or train adapters in place of the whole language model"):
        services.start_run(style=factual, options={"language_model": "finetuned", "batch_size": 2})
    base = factual.active_version
    assert base
    base.config["language_model"] = "finetuned"
    base.save()
    with pytest.raises(Refused, match="or train adapters in place of the whole"):
        services.start_run(style=factual, options={"batch_size": 2})
    services.start_run(style=factual, options={"batch_size": 2, "language_model": "adapters"})


@pytest.mark.parametrize("kind", ["adapters", "finetuned"])
def test_a_style_that_was_trained_with_language_model_weights_serves_and_keeps_them_when_it_is_trained_further(
    kind: str, factual: Style, engine: CaptionEngine, photo: bytes
) -> None:
    before = engine.captioner.language_model.fingerprint()
    new = {"start": "scratch", "prefix_length": 3, "layers": 1, "language_model": kind, "rank": 2}
    first = services.start_run(style=factual, options={**QUICK, **new})
    TrainingEngine(engine).work()
    first.refresh_from_db()
    assert first.version is not None
    assert first.version.kind == kind
    captioner_services.promote(version=first.version, reason="to try it")
    second = services.start_run(style=factual, options=QUICK)
    TrainingEngine(engine).work()
    second.refresh_from_db()
    assert second.version is not None
    assert second.version.kind == kind
    captioner_services.promote(version=second.version, reason="to try it")
    assert caption(factual, photo, engine).version == second.version
    assert engine.captioner.language_model.fingerprint() == before


def test_a_run_from_a_large_active_version_is_checked_by_that_versions_size(
    factual: Style, engine: CaptionEngine
) -> None:
    WorkerProcess(TrainingEngine(engine), "training", {}, ())._beat()
    worker = Worker.objects.get()
    worker.capacity["memory_mb"] = 8000
    worker.save()
    base = factual.active_version
    assert base is not None
    base.config |= {"prefix_length": 64, "layers": 16}
    base.save()
    with pytest.raises(Refused, match=r"lower batch_size$"):
        services.start_run(style=factual, options={"batch_size": 1024})


def test_a_version_that_stopped_at_full_stops_learns_to_end_without(
    factual: Style, engine: CaptionEngine, tmp_path: Path
) -> None:
    serving = factual.active_version
    assert serving is not None
    checkpoint = load_mapper(Path(serving.file.path))
    checkpoint.mapper.config = dataclasses.replace(checkpoint.mapper.config, stop_text=".")
    save_mapper(checkpoint, tmp_path / "imported.safetensors")
    version = captioner_services.register_version(
        style=factual, path=tmp_path / "imported.safetensors", origin=MapperVersion.Origin.IMPORTED
    )
    captioner_services.promote(version=version)
    run = services.start_run(style=factual, options={"epochs": 1})
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert run.version is not None
    assert (version.config["stop_text"], run.version.config["stop_text"]) == (".", "")


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
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert (run.status, run.error_detail) == (Status.SUCCEEDED, "")


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
    TrainingEngine(engine).work()
    active.refresh_from_db()
    assert (active.status, active.error_detail) == (Status.SUCCEEDED, "")


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
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert (run.status, run.error_detail) == (Status.SUCCEEDED, "")
    assert not RunEvent.objects.filter(run=run, message__contains="left out").exists()


def test_only_workers_that_a_run_lost_since_it_last_got_on_count_against_it(
    factual: Style, engine: CaptionEngine
) -> None:
    class Killed(BaseException):
        pass

    def kill_at_the_next_look_after(epoch: int) -> Callable[[], bool]:
        def look() -> bool:
            if run.checkpoints.filter(epoch=epoch).exists():
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
    serving = factual.active_version
    assert serving is not None
    mapper = Path(serving.file.path)

    def lose_the_answer() -> None:
        origin = MapperVersion.Origin.TRAINED
        with captioner_services.stored_version(style=factual, path=mapper, origin=origin) as version:
            captioner_services.file_version(version)
            raise OperationalError("server closed the connection unexpectedly")

    with pytest.raises(OperationalError):
        lose_the_answer()
    filed = factual.versions.latest("number")
    assert filed.number == serving.number + 1
    assert filed.file.storage.exists(str(filed.file.name))


def test_images_that_vanish_are_left_out_and_the_log_says_so(factual: Style, engine: CaptionEngine) -> None:
    for image in Image.objects.all()[:3]:
        image.file.storage.delete(str(image.file.name))
    run = services.start_run(style=factual, options={"epochs": 1})
    TrainingEngine(engine).work()
    run.refresh_from_db()
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


def test_a_run_whose_state_was_pruned_begins_anew_and_shows_nothing_of_before(
    factual: Style, engine: CaptionEngine
) -> None:
    run = services.start_run(style=factual, options={**QUICK, "epochs": 3, "start": "scratch", "layers": 1})
    second = threading.Event()

    def cancel_in_the_second_epoch() -> bool:
        if not second.is_set() and run.checkpoints.exists():
            second.set()
            services.cancel_run(run)
        return False

    trainer = TrainingEngine(engine, stopping=cancel_in_the_second_epoch)
    trainer.tell_every = 0.0
    trainer.work()
    run.refresh_from_db()
    assert (run.status, run.curve != []) == (Status.CANCELED, True)
    assert services.prune(timedelta(0))["run folders"] == 1
    run.checkpoints.update(training_loss=99.0)
    services.resume_run(run)
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert (run.status, run.error_detail) == (Status.SUCCEEDED, "")
    assert run.curve[0][0] == 1
    assert not run.checkpoints.filter(training_loss=99.0).exists()
    assert [checkpoint.epoch for checkpoint in run.checkpoints.all()] == [1, 2, 3]


def test_the_version_that_a_run_was_compared_with_gets_its_score_too(factual: Style, engine: CaptionEngine) -> None:
    shipped = factual.active_version
    assert shipped is not None
    run = services.start_run(style=factual, options={"epochs": 1})
    TrainingEngine(engine).work()
    run.refresh_from_db()
    shipped.refresh_from_db()
    assert shipped.metrics["candidate"] == run.metrics["active"]


def test_a_run_learns_from_the_embeddings_that_are_stored_whoever_computed_them(
    factual: Style, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = engine.embeddings

    def a_little_late(images: list[Image]) -> Any:
        made = compute(images)  # which stores them, as another worker would just before this one
        return dataclasses.replace(made, vectors={image: vector + 1e-3 for image, vector in made.vectors.items()})

    monkeypatch.setattr(engine, "embeddings", a_little_late)
    examples = Example.objects.filter(style=factual)
    first, *_ = captioned_images(engine, examples, lambda *_: None)
    monkeypatch.undo()
    again, *_ = captioned_images(engine, examples, lambda *_: None)
    assert torch.equal(first.embeddings, again.embeddings)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("same", [False, True])
def test_of_two_promotions_at_once_both_are_history_or_one_is_refused(factual: Style, same: bool) -> None:
    serving = factual.active_version
    assert serving is not None
    versions = [
        captioner_services.register_version(
            style=factual, path=Path(serving.file.path), origin=MapperVersion.Origin.TRAINED
        )
        for _ in range(2)
    ]
    outcomes: list[str] = []
    together = threading.Barrier(2)

    def promote(version: MapperVersion) -> None:
        together.wait()
        try:
            captioner_services.promote(version=version)
            outcomes.append("promoted")
        except Refused as error:
            outcomes.append(error.code)
        finally:
            close_old_connections()

    threads = [threading.Thread(target=promote, args=(versions[0 if same else i],)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == (["already_active", "promoted"] if same else ["promoted", "promoted"])
    newest = factual.promotions.order_by("-pk").first()
    assert newest is not None
    assert (factual.active_version, factual.promotions.count()) == (newest.version, 2 if same else 3)


@pytest.fixture
def easy_gate(factual: Style, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything clears it, on however few photos."""
    monkeypatch.setattr(comparison, "LEAST_JUDGED", 1)
    Policy.objects.create(style=factual, if_better=Policy.Action.PROMOTE, margin=-9.0)


@pytest.mark.usefixtures("easy_gate")
def test_a_policy_promotes_what_passes_the_gate(factual: Style, engine: CaptionEngine) -> None:
    run = services.start_run(style=factual, options={"epochs": 1})
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert run.verdict == TrainingRun.Verdict.BETTER
    assert factual.active_version == run.version


@pytest.mark.usefixtures("easy_gate")
def test_what_was_compared_with_another_version_than_serves_by_now_is_not_promoted_by_itself(
    factual: Style, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = factual.active_version
    assert version is not None
    newer = captioner_services.register_version(
        style=factual, path=Path(version.file.path), origin=MapperVersion.Origin.IMPORTED
    )
    compare = training_worker._Training._compare

    def while_a_person_promotes(*arguments: Any) -> Any:
        found = compare(*arguments)
        captioner_services.promote(version=newer, reason="by hand")
        return found

    monkeypatch.setattr(training_worker._Training, "_compare", while_a_person_promotes)
    run = services.start_run(style=factual, options={"epochs": 1})
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert (run.status, run.verdict) == (Status.SUCCEEDED, TrainingRun.Verdict.BETTER)
    assert factual.active_version == newer
    assert run.events.filter(level="warning", message__contains="the version in service has changed").exists()


@pytest.mark.usefixtures("easy_gate")
def test_what_could_not_be_compared_is_not_promoted_by_itself(factual: Style, engine: CaptionEngine) -> None:
    run = services.start_run(style=factual, options={**QUICK, "start": "scratch", "prefix_length": 3, "layers": 1})
    version = factual.active_version
    assert version is not None
    version.file.storage.delete(str(version.file.name))
    engine.mappers.clear()
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert (run.status, run.verdict) == (Status.SUCCEEDED, TrainingRun.Verdict.UNCLEAR)
    assert factual.active_version == version


def test_a_run_whose_worker_has_no_room_for_the_version_in_service_is_handed_back(
    factual: Style, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = services.start_run(style=factual, options={**QUICK, "start": "scratch", "prefix_length": 3, "layers": 1})
    monkeypatch.setattr(engine.mappers, "budget", 1)
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert (run.status, run.failures[-1]["code"]) == (Status.QUEUED, "out_of_memory")
    assert "CLIPCAP_MODEL_CACHE_BYTES" in run.failures[-1]["detail"]


def test_a_few_held_out_photos_are_too_few_to_judge_by(factual: Style, engine: CaptionEngine) -> None:
    Policy.objects.create(style=factual, if_better=Policy.Action.PROMOTE, margin=-9.0)
    run = services.start_run(style=factual, options={"epochs": 1})
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert run.verdict == TrainingRun.Verdict.UNCLEAR
    assert run.events.filter(message__contains="too few to judge a version by").exists()


def test_a_metric_that_was_not_computed_judges_nothing(
    factual: Style, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "LEAST_JUDGED", 1)
    Policy.objects.create(style=factual, if_better=Policy.Action.PROMOTE, metric="METEOR", margin=-9.0)
    run = services.start_run(style=factual, options={"epochs": 1})
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert run.verdict == TrainingRun.Verdict.UNCLEAR
    assert run.events.filter(message__contains="METEOR was not computed").exists()


def test_a_resumed_run_whose_examples_were_deleted_begins_anew(factual: Style, engine: CaptionEngine) -> None:
    run = services.start_run(style=factual, options={**QUICK, "start": "scratch", "prefix_length": 3, "layers": 1})
    looks = iter(range(100))
    TrainingEngine(engine, stopping=lambda: next(looks) >= 8).work()
    assert (services.run_folder(run) / "state.pt").exists()
    Example.objects.filter(style=factual, held_out=False)[:1].get().delete()
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert (run.status, run.error_detail) == (Status.SUCCEEDED, "")
    assert run.events.filter(message__contains="starting over").exists()
    assert [checkpoint.epoch for checkpoint in run.checkpoints.all()] == [1, 2]


def test_a_promotion_of_a_version_whose_file_is_gone_is_refused(factual: Style) -> None:
    version = factual.active_version
    assert version is not None
    other = captioner_services.register_version(
        style=factual, path=Path(version.file.path), origin=MapperVersion.Origin.IMPORTED
    )
    other.file.storage.delete(str(other.file.name))
    with pytest.raises(Refused, match="missing from the storage"):
        captioner_services.promote(version=other)
    assert factual.active_version == version


def test_corrections_become_examples_once_and_start_a_run(
    styles: dict[str, Style], factual: Style, engine: CaptionEngine, captioned_photos: list[tuple[bytes, list[str]]]
) -> None:
    Policy.objects.create(style=factual, after_corrections=2)
    for data, captions in captioned_photos[30:32]:
        row = caption(factual, data, engine)
        captioner_services.correct_caption(Viewer(), row.pk, "not this one")
        captioner_services.correct_caption(Viewer(), row.pk, captions[0])
    assert services.open_corrections(factual).count() == 2  # of each caption the newest
    assert services.start_due_runs() == 1
    run = TrainingRun.objects.get()
    assert run.reason == "2 new corrections"
    assert factual.examples.filter(source=Example.Source.CORRECTION).count() == 2
    assert services.open_corrections(factual).count() == 0
    assert services.start_due_runs() == 0
    end(run)
    assert services.start_due_runs() == 0, "nothing is new since that run"


def corrected(style: Style, photos: list[tuple[bytes, list[str]]], text: str = "") -> list[Correction]:
    """Captions of these photos, as a person corrected them."""
    made = []
    for data, captions in photos:
        image = uploads.store(data)
        now = timezone.now()
        row = Caption.objects.create(
            request=CaptionRequest.objects.create(),
            image=image,
            style=style,
            status=Status.SUCCEEDED,
            finished_at=now,
            deadline_at=now,
        )
        made.append(captioner_services.correct_caption(Viewer(), row.pk, text or captions[0]))
    return made


def end(run: TrainingRun) -> None:
    TrainingRun.objects.filter(pk=run.pk).update(status=Status.FAILED, finished_at=timezone.now())


def test_corrections_that_say_what_is_known_start_no_run_twice(
    factual: Style, captioned_photos: list[tuple[bytes, list[str]]]
) -> None:
    Policy.objects.create(style=factual, after_corrections=1)
    known = factual.examples.filter(source=Example.Source.IMPORTED).first()
    assert known
    photo = next(data for data, captions in captioned_photos if known.text in captions)
    corrected(factual, [(photo, [known.text])])
    assert services.start_due_runs() == 1
    end(TrainingRun.objects.get())
    assert services.start_due_runs() == 0


def test_corrections_taken_by_hand_count_for_the_policy(
    factual: Style, captioned_photos: list[tuple[bytes, list[str]]]
) -> None:
    Policy.objects.create(style=factual, after_corrections=2)
    corrected(factual, captioned_photos[30:32])
    services.take_corrections(services.open_corrections(factual))
    assert services.start_due_runs() == 1


def test_corrections_that_a_run_on_other_sources_passed_by_still_count_for_the_policy(
    factual: Style, captioned_photos: list[tuple[bytes, list[str]]]
) -> None:
    Policy.objects.create(style=factual, after_corrections=2)
    corrected(factual, captioned_photos[30:32])
    services.take_corrections(services.open_corrections(factual))
    image = uploads.store(captioned_photos[40][0])
    services.add_example(style=factual, image=image, text="something newer", source=Example.Source.IMPORTED)
    end(services.start_run(style=factual, options={"sources": ["imported"]}))
    assert services.start_due_runs() == 1


def test_a_correction_that_was_left_out_stays_out_unless_it_is_chosen(
    factual: Style, captioned_photos: list[tuple[bytes, list[str]]]
) -> None:
    bad, good = corrected(factual, captioned_photos[30:32])
    services.leave_out([bad])
    assert services.take_corrections(services.open_corrections(factual)) == 1
    assert not Example.objects.filter(correction=bad).exists()
    Example.objects.get(correction=good).delete()
    assert not services.open_corrections(factual).exists(), "what was deleted does not come back by itself"
    assert services.take_corrections(Correction.objects.filter(pk=bad.pk)) == 1


def test_a_correction_without_a_word_is_no_example(
    factual: Style, captioned_photos: list[tuple[bytes, list[str]]]
) -> None:
    corrected(factual, captioned_photos[30:31], "…!")
    assert services.take_corrections(services.open_corrections(factual)) == 0
    assert not services.open_corrections(factual).exists()


def test_a_run_that_is_due_and_refused_takes_nothing_and_tells_why(
    factual: Style, captioned_photos: list[tuple[bytes, list[str]]]
) -> None:
    policy = Policy.objects.create(style=factual, after_corrections=1)
    corrected(factual, captioned_photos[30:31])
    version = factual.active_version
    assert version is not None
    version.file.storage.delete(str(version.file.name))
    assert services.start_due_runs() == 0
    policy.refresh_from_db()
    assert "is gone" in policy.refusal
    assert services.open_corrections(factual).count() == 1
    Policy.objects.update(refused_at=timezone.now() - timedelta(hours=2))
    Path(version.file.path).write_bytes(b"back")
    assert services.start_due_runs() == 1
    policy.refresh_from_db()
    assert (policy.refusal, policy.refused_at) == ("", None)


def test_a_policy_that_asks_for_nothing_any_more_has_nothing_to_tell(factual: Style) -> None:
    hour = timezone.now() - timedelta(hours=2)
    policy = Policy.objects.create(style=factual, refusal="the file of factual v1 is gone", refused_at=hour)
    assert services.start_due_runs() == 0
    policy.refresh_from_db()
    assert (policy.refusal, policy.refused_at) == ("", None)


def test_every_night_there_is_one_run_if_anything_is_new(
    factual: Style, captioned_photos: list[tuple[bytes, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Policy.objects.create(style=factual, every_night=True)
    here = timezone.localtime()

    def at(hour: int, days: int = 0) -> None:
        now = (here + timedelta(days=days)).replace(hour=hour, minute=30)
        monkeypatch.setattr(timezone, "now", lambda: now)
        monkeypatch.setattr(services.policies, "clock", lambda _: now)

    at(12)
    assert services.start_due_runs() == 0
    at(23)
    by_hand = services.start_run(style=factual)
    end(by_hand)
    at(3, days=1)
    assert services.start_due_runs() == 1, "a run of the evening before does not count"
    run = TrainingRun.objects.exclude(pk=by_hand.pk).get()
    assert run.reason == "new examples"
    end(run)
    at(4, days=1)
    assert services.start_due_runs() == 0, "once a night, even if it failed"
    at(3, days=2)
    assert services.start_due_runs() == 1
    TrainingRun.objects.update(status=Status.SUCCEEDED, finished_at=timezone.now())
    at(3, days=3)
    assert services.start_due_runs() == 0, "nothing is new"


def test_an_image_is_in_one_split_in_all_styles(styles: dict[str, Style], photo: bytes) -> None:
    image = uploads.store(photo)
    for style in styles.values():
        services.add_example(style=style, image=image, text="A photo.", source=Example.Source.IMPORTED)
    assert set(Example.objects.values_list("held_out", flat=True)) == {is_held_out(image)}


def test_an_image_with_examples_outlives_its_captions(
    styles: dict[str, Style], engine: CaptionEngine, photo: bytes
) -> None:
    row = caption(styles["factual"], photo, engine)
    services.add_example(style=styles["factual"], image=row.image, text="A photo.", source=Example.Source.STORED)
    captioner_services.delete_caption(Viewer(), row.pk)
    Image.objects.update(created_at=timezone.now() - timedelta(days=1))
    assert captioner_services.prune()["images"] == 0
    assert Image.objects.filter(pk=row.image_id).exists()


@given(st.lists(st.floats(0, 10), min_size=2, max_size=30), st.floats(0.01, 5))
def test_the_interval_holds_a_constant_difference(scores: list[float], shift: float) -> None:
    active = {str(i): score for i, score in enumerate(scores)}
    difference = paired_bootstrap({i: s + shift for i, s in active.items()}, active)
    assert difference.low == pytest.approx(shift)
    assert difference.high == pytest.approx(shift)
    assert verdict(difference, 0.0, 20) == "better"
    assert verdict(difference, 0.0, 19) == "unclear"
    assert verdict(difference, shift + 1, 20) == "unclear"


def test_a_difference_that_may_be_chance_is_no_clear_difference() -> None:
    active = {str(i): float(i % 7) for i in range(40)}
    candidate = {str(i): float((i + 3) % 7) for i in range(40)}
    assert verdict(paired_bootstrap(candidate, active), 0.0, 40) == "unclear"
