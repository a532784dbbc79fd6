"""The caption worker's engine with the embedded models: what it makes of a batch, and in which order."""

from __future__ import annotations

import shutil
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from captioner import services, uploads
from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import Status
from captioner.jobs.wakeup import WAKE_UP
from captioner.models import Caption, CaptionRequest, Embedding, MapperVersion, Style, Viewer, Worker
from captioner.workers import worker_process
from captioner.workers.worker_process import WorkerProcess
from tests.servers import wait_until
from tests.worker.rows import GREEDY, again, ask, causes, statuses, stored


def test_mixed_styles_in_one_batch_give_the_same_captions_as_alone(engine: CaptionEngine) -> None:
    together = ask(3, "all", options={})
    assert engine.work() == 9
    alone = [row for style in ("factual", "humorous", "romantic") for row in ask(3, style, options={})]
    engine.batch_size, size = 1, engine.batch_size
    try:
        while engine.work():
            pass
    finally:
        engine.batch_size = size
    texts = {(row.name, row.style_id): row.text for row in again(alone)}
    assert len(set(texts.values())) > 3
    assert {(row.name, row.style_id): row.text for row in again(together)} == texts
    assert all(texts.values())


def test_mixed_options_are_decoded_each_in_its_own_way(engine: CaptionEngine) -> None:
    beam = ask(2, options={"method": "beam", "captions": 3})
    greedy = ask(2, options=GREEDY)
    samples = ask(2, options={"method": "nucleus", "captions": 2, "seed": 1})
    assert engine.work() == 6
    for rows, others in ((beam, 2), (greedy, 0), (samples, 1)):
        assert statuses(rows) == ["succeeded"] * 2
        assert [len(row.alternatives) for row in again(rows)] == [others] * 2
    assert all(row.confidence is not None and 0 < row.confidence < 1 for row in again(beam))
    assert [row.confidence for row in again(greedy) + again(samples)] == [None] * 4
    row = again(samples)[0]
    assert row.log_probability is not None
    assert row.log_probability >= row.alternatives[0]["log_probability"]


def test_a_result_says_which_version_wrote_it_and_how_long_it_took(engine: CaptionEngine) -> None:
    (row,) = ask()
    engine.work()
    (row,) = again([row])
    assert row.version == row.style.version_in_service
    assert row.encode_ms
    assert row.decode_ms
    assert row.started_at
    assert row.finished_at
    assert (row.attempts, row.lease_token) == (1, None)


def add_version(style: str, of: str, media: Path) -> MapperVersion:
    """A further version of one style, with the mapper of another, which tells them apart."""
    source = stored(Style.objects.get(slug=of).version_in_service.file.name, media)  # type: ignore[union-attr]
    return services.register_version(
        style=Style.objects.get(slug=style), path=source, origin=MapperVersion.Origin.TRAINED
    )


def test_a_promotion_and_its_rollback_reach_the_next_batch(engine: CaptionEngine, media: Path) -> None:
    first = Style.objects.get(slug="factual").version_in_service
    assert first
    (before,), (other,) = ask(1, "factual"), ask(1, "romantic")
    engine.work()
    second = add_version("factual", "romantic", media)
    (unpromoted,) = ask(1, "factual")
    engine.work()
    services.promote(version=second)
    (promoted,) = ask(1, "factual")
    engine.work()
    services.promote(version=first)
    (rolled_back,) = ask(1, "factual")
    engine.work()
    factual, romantic = again([before, other])
    assert factual.text != romantic.text
    results = [(row.text, row.version) for row in again([unpromoted, promoted, rolled_back])]
    assert results == [(factual.text, first), (romantic.text, second), (factual.text, first)]


def test_a_version_that_does_not_load_leaves_the_old_one_in_service_and_says_why(
    engine: CaptionEngine, media: Path
) -> None:
    old = Style.objects.get(slug="factual").version_in_service
    broken = add_version("factual", "romantic", media)
    services.promote(version=broken)
    file = stored(broken.file.name, media)
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + b"x")
    (row,) = ask(1, "factual")
    engine.work()
    assert again([row])[0].version == old
    broken.refresh_from_db()
    assert "SHA-256" in broken.load_error
    file.write_bytes(sound)
    (row,) = ask(1, "factual")
    engine.work()
    assert again([row])[0].version == broken, "repaired, it is in service"
    broken.refresh_from_db()
    assert broken.load_error == ""


def test_a_style_of_which_no_version_loads_waits_and_the_others_go_on(engine: CaptionEngine, media: Path) -> None:
    version = Style.objects.get(slug="humorous").version_in_service
    assert version
    stored(version.file.name, media).unlink()
    rows = ask(1, "all")
    engine.work()
    for row in again(rows):
        expected = ("queued", ["style_unavailable"]) if row.style.slug == "humorous" else ("succeeded", [])
        assert (row.status, causes(row)) == expected
    version.refresh_from_db()
    assert "FileNotFoundError" in version.load_error
    assert str(media) not in version.load_error


def test_an_embedding_is_computed_once(engine: CaptionEngine, media: Path) -> None:
    browser = Viewer(visitor="of the same browser")
    first = ask(2, viewer=browser)
    engine.work()
    assert Embedding.objects.count() == 2
    shutil.rmtree(media / "images")  # which no longer matter
    second = ask(2, "romantic", viewer=browser)
    engine.work()
    assert statuses(second) == ["succeeded"] * 2
    assert [row.encode_ms for row in again(second)] == [0, 0]
    assert all(row.encode_ms for row in again(first))
    assert Embedding.objects.count() == 2


def test_bulk_work_lets_everything_else_pass(engine: CaptionEngine) -> None:
    (bulk,) = ask(1, "humorous", bulk=True)
    (interactive,) = ask(1, "romantic")
    engine.batch_size, size = 1, engine.batch_size
    try:
        for expected in (interactive, bulk):
            assert engine.work() == 1
            assert statuses([expected]) == ["succeeded"]
    finally:
        engine.batch_size = size


def test_a_caption_of_somebody_else_does_not_wait_for_the_end_of_a_batch(
    engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two tokens it is written, and the batch goes on, its lease renewed all the while."""
    batch = ask(3, "humorous")
    others: list[Caption] = []
    between = engine.captioner.between

    def meanwhile() -> None:
        if not others:
            others.extend(ask(1, "factual", viewer=Viewer(address="192.0.2.1")))
            others.extend(ask(1, "factual"))
            WAKE_UP.set()
        between()

    monkeypatch.setattr(engine.captioner, "between", meanwhile)
    assert engine.work() == 3
    passed, own = again(others)
    assert passed.finished_at
    assert all(row.finished_at and row.finished_at > passed.finished_at for row in again(batch))
    assert statuses(batch) == ["succeeded"] * 3
    assert own.status == "queued", "who has captions in the batch does not pass it"
    assert engine.holding is None


def test_what_passes_a_batch_is_held_beside_it(engine: CaptionEngine, instead: Any) -> None:
    """Both leases are renewed, and both are handed back at an orderly end."""
    (batch,) = ask(1, "humorous")
    others: list[Caption] = []
    held: list[Caption] = []

    def happening(size: int) -> None:
        if not others:
            others.extend(ask(1, "factual", viewer=Viewer(address="192.0.2.1")))
            WAKE_UP.set()
            engine.captioner.between()
        else:
            assert engine.holding
            Caption.objects.filter(status="running").update(lease_expires_at=timezone.now())
            engine.holding.renew()
            held.extend(Caption.objects.filter(lease_expires_at__gt=timezone.now() + timedelta(seconds=5)))
            assert engine.holding.hand_back() == 2

    instead(happening)
    engine.work()
    assert len(held) == 2
    assert statuses([batch, *others]) == ["queued"] * 2


def test_what_nobody_begins_before_its_deadline_fails(engine: CaptionEngine) -> None:
    (row,) = ask(1, deadline=timedelta(seconds=-1))
    assert engine.work() == 0
    Caption.objects.reap()
    assert statuses([row]) == ["deadline_exceeded"]


@pytest.mark.django_db(transaction=True)
def test_a_worker_process_that_ends_hands_back_what_it_cannot_finish(
    engine: CaptionEngine, instead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "GRACE", 0.1)
    busy, go_on = threading.Event(), threading.Event()

    def take_long(size: int) -> None:
        busy.set()
        go_on.wait()

    instead(take_long)
    rows = ask(2)
    working = WorkerProcess(engine, "captions", {}, (Caption,))
    working.start()
    assert busy.wait(60)
    assert Worker.objects.filter(name=engine.name).exists()
    working.join()
    try:
        assert statuses(rows) == ["queued"] * 2
        assert [row.attempts for row in again(rows)] == [0, 0]
        assert not Worker.objects.filter(name=engine.name).exists()
    finally:
        go_on.set()
        for thread in working.threads:
            thread.join()
    assert statuses(rows) == ["queued"] * 2, "its late answer changed nothing"


@pytest.mark.django_db(transaction=True)
def test_a_worker_process_works_until_it_is_stopped_and_survives_what_goes_wrong(
    engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, failures = engine.work, iter([OSError("the storage is away"), ValueError("a bug")])

    def stumble() -> int:
        for failure in failures:
            raise failure
        return work()

    monkeypatch.setattr(engine, "work", stumble)
    rows = ask(2)
    working = WorkerProcess(engine, "captions", {}, (Caption,))
    working.start()
    wait_until(lambda: statuses(rows) == ["succeeded"] * 2, "both captions")
    working.stop()
    working.join()
    assert not any(thread.is_alive() for thread in working.threads)
    assert CaptionRequest.objects.get().status == Status.SUCCEEDED
    connection.close()


def test_an_idle_worker_embeds_the_images_of_datasets_once(
    engine: CaptionEngine, media: Path, db: None, photo: bytes
) -> None:
    image = uploads.store(photo)
    assert engine.work() == 0
    assert engine.idle() == 1
    assert Embedding.objects.get(image=image).encoder == engine.captioner.encoder.identity
    assert engine.idle() == 0


def test_a_picture_whose_file_is_gone_comes_back_with_its_next_upload(
    styles: dict[str, Style], engine: CaptionEngine, photo: bytes
) -> None:
    image = uploads.store(photo)
    image.file.storage.delete(str(image.file.name))
    assert uploads.store(photo).pk == image.pk
    request = services.request_captions(viewer=Viewer(), images=[services.Upload(photo)])
    engine.work()
    assert request.captions.get().status == "succeeded"
