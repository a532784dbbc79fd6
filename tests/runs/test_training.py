"""Retraining a style: from its examples to a version in service."""

import itertools
import threading
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from django.db import close_old_connections
from django.utils import timezone

from captioner import services as captioner_services
from captioner import uploads
from captioner.errors import Refused
from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import Status
from captioner.models import Image, MapperVersion, Promotion, Style, Viewer, Worker
from captioner.reports import MapperReport
from captioner.workers.worker_process import WorkerProcess, capacity_of
from clipcap.checkpoint import load_mapper, save_mapper
from clipcap.language_model import LanguageModel
from clipcap.training.recomputing import recomputed
from tests.runs.ended import QUICK, succeeds, trained, work_and_cancel
from tests.runs.photos import caption
from training import memory, reports, services
from training.examples import captioned_images
from training.models import Example, TrainingRun, is_held_out
from training.options import RunOptions
from training.worker import TrainingEngine


@pytest.mark.embedded_models
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
    assert [report.epoch for report in run.reports.all()] == [1, 2]
    assert all(len(c.samples) == len(run.reports.get(epoch=1).samples) > 0 for c in run.reports.all())
    assert run.curve[-1][0] > 1
    assert not services.run_folder(run).exists()
    assert factual.version_in_service == before.version  # it waits for a person

    captioner_services.promote(version=run.version, reason="to see it in service")
    after = caption(factual, photo, engine)
    assert after.version == run.version

    captioner_services.promote(version=before.version, reason="back again")
    again = caption(factual, photo, engine)
    assert (again.text, again.version) == (before.text, before.version)
    assert Promotion.objects.filter(style=factual).count() == 3


def test_going_on_from_the_version_in_service_keeps_its_architecture(factual: Style, trainer: TrainingEngine) -> None:
    run = services.start_run(style=factual, options={"epochs": 1})
    trainer.work()
    run.refresh_from_db()
    assert run.version is not None
    assert run.base is not None
    assert run.version.config == run.base.config
    assert run.version.sha256 != run.base.sha256


@pytest.mark.parametrize(
    ("phase", "begun"),
    [("", False), ("embedding", False), ("tokenizing", False), ("training", True), ("evaluating", True)],
    ids=lambda value: str(value) or "at once",
)
def test_a_run_that_is_interrupted_goes_on_to_the_same_bytes(
    factual: Style, engine: CaptionEngine, phase: str, begun: bool
) -> None:
    options = {**QUICK, "start": "scratch", "prefix_length": 3, "layers": 1}
    whole = trained(factual, engine, options)

    run = services.start_run(style=factual, options=options)

    def asked_to_stop() -> bool:
        run.refresh_from_db()
        return run.progress.get("phase", "") == phase and run.reports.exists() == begun

    trainer = TrainingEngine(engine, stopping=asked_to_stop)
    trainer.report_every = 0.0
    trainer.work()
    run.refresh_from_db()
    assert (run.status, run.attempts) == (Status.QUEUED, 0)  # handed back
    assert services.run_folder(run).exists() == begun
    succeeds(run, engine)
    assert run.version is not None
    assert whole.version is not None
    assert run.version.sha256 == whole.version.sha256


@pytest.mark.parametrize("phase", ["reading", "embedding", "tokenizing", "training", "evaluating"])
def test_cancelling_is_heard_in_every_phase_and_the_run_can_be_resumed(
    factual: Style, engine: CaptionEngine, phase: str
) -> None:
    run = services.start_run(style=factual, options={**QUICK, "start": "scratch", "prefix_length": 3, "layers": 1})

    work_and_cancel(run, engine, TrainingRun.objects.filter(pk=run.pk, progress__phase=phase).exists)
    assert run.version is None
    services.resume_run(run)
    succeeds(run, engine)


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


@pytest.mark.embedded_models
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
    monkeypatch.setattr(reports, "POINTS_KEPT", 4)
    run = trained(factual, engine, {**QUICK, "epochs": 5, "batch_size": 5})
    steps = [point[0] for point in run.curve]
    assert 2 < len(steps) <= 4
    assert len({after - before for before, after in itertools.pairwise(steps)}) == 1


@pytest.mark.embedded_models
def test_more_of_anything_is_estimated_to_take_more_memory(engine: CaptionEngine) -> None:
    capacity = WorkerProcess(TrainingEngine(engine), "training", {}, ()).capacity

    shape = MapperReport("transformer", 10, layers=4)

    def needed(batch_size: int = 40, images: int = 1000, **changes: Any) -> float:
        return memory.megabytes(replace(shape, **changes), batch_size, capacity, images)

    assert 100 < needed() < 1000, "the usual options fit anywhere"
    for more in ({"batch_size": 80}, {"prefix_length": 20}, {"layers": 8}, {"clip_length": 40}, {"images": 10**6}):
        assert needed(**more) > needed(), more
    assert needed(kind="mlp", prefix_length=60) > needed(kind="mlp") > 0
    assert needed(kind="mlp", hidden_size=9000) > needed(kind="mlp")
    learning = [
        memory.megabytes(shape, 40, capacity, 1000, *more)
        for more in (
            ("frozen",),
            ("adapters", 8, "attention"),
            ("adapters", 8, "mlp"),
            ("adapters", 8),
            ("adapters", 64),
            ("finetuned",),
        )
    ]
    assert learning == sorted(learning)
    assert learning[0] == needed()
    assert memory.megabytes(shape, 40, capacity, 1000, recompute=True) < needed()
    together = capacity_of(engine.captioner, 2)
    assert together == replace(capacity, processes=2), "on a CPU they share the memory"
    added = memory.megabytes(shape, 40, together, 1000) - needed()
    assert added > 2 * 8_175_616 * 4 / 2**20, "each process has an LM of its own"
    apart = memory.megabytes(shape, 40, replace(capacity, apart=True), 1000) - needed()
    assert 8_175_616 * 4 / 2**20 < apart < added, "beside other machines the worker has one more than its process"
    small = memory.megabytes(shape, 1, capacity, 1000, "finetuned")
    parameters = 8_175_616  # of the LM; weights, gradient, both moments and the best, and once more while it is stored
    assert small * 2**20 / 4 > 8 * parameters, "AdamW's state is counted, however small the batch"


@pytest.mark.embedded_models
def test_a_run_that_would_train_a_copy_is_checked_with_the_copys_size(factual: Style, engine: CaptionEngine) -> None:
    WorkerProcess(TrainingEngine(engine), "training", {}, ())._beat()
    worker = Worker.objects.get()
    capacity = worker.capacity
    worker.capacity = {**capacity, "vocabulary": 50_257, "lm_size": 1600, "lm_layers": 48, "memory_mb": 30_000}
    worker.save()
    with pytest.raises(Refused, match="or train adapters in place of the whole language model"):
        services.start_run(style=factual, options={"language_model": "finetuned", "batch_size": 2})
    base = factual.version_in_service
    assert base
    base.config["language_model"] = "finetuned"
    base.save()
    with pytest.raises(Refused, match="or train adapters in place of the whole"):
        services.start_run(style=factual, options={"batch_size": 2})
    services.start_run(style=factual, options={"batch_size": 2, "language_model": "adapters"})


@pytest.mark.embedded_models
def test_a_run_recomputes_where_memory_would_not_suffice_otherwise_unless_that_is_chosen(
    factual: Style, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = WorkerProcess(TrainingEngine(engine), "training", {}, ())
    few = {**QUICK, "epochs": 1, "batch_size": 1024}
    enough = replace(process.capacity, memory_mb=10**6)
    whole, again = (
        memory.of_run(RunOptions(batch_size=1024), factual.version_in_service, enough, 30, recompute=recompute)
        for recompute in (False, True)
    )
    assert again < whole
    monkeypatch.setattr("captioner.workers.worker_process.memory_mb", lambda device: int((again + whole) / 2))
    process.capacity = capacity_of(engine.captioner)
    process._beat()
    with pytest.raises(Refused, match="or let it recompute"):
        services.start_run(style=factual, options={**few, "recompute": "no"})
    recomputing: list[LanguageModel] = []

    def noted(lm: LanguageModel) -> AbstractContextManager[None]:
        recomputing.append(lm)
        return recomputed(lm)

    monkeypatch.setattr("clipcap.training.steps.recomputed", noted)
    run = trained(factual, engine, few)
    assert (run.status, run.error_detail) == (Status.SUCCEEDED, "")
    assert recomputing


@pytest.mark.parametrize("kind", ["adapters", "finetuned"])
def test_a_style_that_was_trained_with_language_model_weights_is_in_service_and_keeps_them_when_it_is_trained_further(
    kind: str, factual: Style, engine: CaptionEngine, photo: bytes
) -> None:
    before = engine.captioner.language_model.fingerprint()
    new = {"start": "scratch", "prefix_length": 3, "layers": 1, "language_model": kind, "rank": 2, "targets": "mlp"}
    first = trained(factual, engine, {**QUICK, **new})
    assert first.version is not None
    assert first.version.mapper.language_model == kind
    assert first.version.mapper.targets == ("mlp" if kind == "adapters" else None)
    captioner_services.promote(version=first.version, reason="to try it")
    second = trained(factual, engine, QUICK)
    assert second.version is not None
    assert second.version.mapper.language_model == kind
    assert second.version.mapper.targets == first.version.mapper.targets
    captioner_services.promote(version=second.version, reason="to try it")
    assert caption(factual, photo, engine).version == second.version
    assert engine.captioner.language_model.fingerprint() == before


@pytest.mark.embedded_models
def test_a_run_from_a_large_version_in_service_is_checked_by_that_versions_size(
    factual: Style, engine: CaptionEngine
) -> None:
    WorkerProcess(TrainingEngine(engine), "training", {}, ())._beat()
    worker = Worker.objects.get()
    worker.capacity["memory_mb"] = 8000
    worker.save()
    base = factual.version_in_service
    assert base is not None
    base.config |= {"prefix_length": 64, "layers": 16}
    base.save()
    with pytest.raises(Refused, match=r"lower batch_size$"):
        services.start_run(style=factual, options={"batch_size": 1024})


@pytest.mark.embedded_models
def test_a_version_that_stopped_at_full_stops_learns_to_end_without(
    factual: Style, engine: CaptionEngine, tmp_path: Path
) -> None:
    in_service = factual.version_in_service
    assert in_service is not None
    checkpoint = load_mapper(Path(in_service.file.path))
    checkpoint.mapper.config = replace(checkpoint.mapper.config, stop_text=".")
    save_mapper(checkpoint, tmp_path / "imported.safetensors")
    version = captioner_services.register_version(
        style=factual, path=tmp_path / "imported.safetensors", origin=MapperVersion.Origin.IMPORTED
    )
    captioner_services.promote(version=version)
    run = trained(factual, engine, {"epochs": 1})
    assert run.version is not None
    assert (version.config["stop_text"], run.version.config["stop_text"]) == (".", "")


def test_the_version_that_a_run_was_compared_with_gets_its_score_too(factual: Style, engine: CaptionEngine) -> None:
    shipped = factual.version_in_service
    assert shipped is not None
    run = trained(factual, engine, {"epochs": 1})
    shipped.refresh_from_db()
    assert shipped.metrics["candidate"] == run.metrics["active"]


def test_a_run_learns_from_the_embeddings_that_are_stored_whoever_computed_them(
    factual: Style, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = engine.embeddings

    def a_little_late(images: list[Image]) -> Any:
        made = compute(images)  # which stores them, as another worker would just before this one
        return replace(made, vectors={image: vector + 1e-3 for image, vector in made.vectors.items()})

    monkeypatch.setattr(engine, "embeddings", a_little_late)
    examples = Example.objects.filter(style=factual)
    first, *_ = captioned_images(engine, examples, lambda *_: None)
    monkeypatch.undo()
    again, *_ = captioned_images(engine, examples, lambda *_: None)
    assert torch.equal(first.embeddings, again.embeddings)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("same", [False, True])
def test_of_two_promotions_at_once_both_are_history_or_one_is_refused(factual: Style, same: bool) -> None:
    in_service = factual.version_in_service
    assert in_service is not None
    versions = [
        captioner_services.register_version(
            style=factual, path=Path(in_service.file.path), origin=MapperVersion.Origin.TRAINED
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
    assert (factual.version_in_service, factual.promotions.count()) == (newest.version, 2 if same else 3)


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
