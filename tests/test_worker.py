"""The caption worker's engine with the embedded models: what it makes of a batch, whatever is wrong with it."""

from __future__ import annotations

import math
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from django.db import connection
from django.utils import timezone
from torch import Tensor

from captioner import services, uploads
from captioner.api import health
from captioner.inference.engine import CaptionEngine
from captioner.inference.failures import bisect_failures
from captioner.jobs import worker_process
from captioner.jobs.breaker import STRIKES, Breaker
from captioner.jobs.job import MAX_ATTEMPTS, JobQuerySet, Status
from captioner.jobs.wakeup import WAKE_UP
from captioner.jobs.worker_process import WorkerProcess
from captioner.models import Caption, CaptionRequest, Embedding, Image, MapperVersion, Style, Viewer, Worker
from clipcap.checkpoint import load_mapper, save_mapper
from clipcap.model import ClipCaptionModel
from clipcap.options import DecodingOptions
from tests.servers import wait_until

PHOTOS = sorted((Path(__file__).parent.parent / "examples/coco_cc").glob("*.jpg"))[:6]
GREEDY = {"method": "greedy"}


@pytest.fixture(autouse=True)
def in_service(styles: dict[str, Style]) -> None:
    """Every test here has the three styles."""


def ask(
    count: int = 1, *styles: str, options: dict[str, Any] = GREEDY, viewer: Viewer | None = None, **more: Any
) -> list[Caption]:
    """Queue captions of `count` photos; all rows of the request."""
    photos = [services.Upload(path.read_bytes(), path.name) for path in PHOTOS[:count]]
    request = services.request_captions(
        viewer=viewer or Viewer(), images=photos, styles=styles, options=options, **more
    )
    return list(Caption.objects.filter(request=request).select_related("image", "style"))


def again(rows: list[Caption]) -> list[Caption]:
    """The rows as they are now; deleted ones are left out."""
    found = Caption.objects.in_bulk([row.pk for row in rows])
    return [found[row.pk] for row in rows if row.pk in found]


def statuses(rows: list[Caption]) -> list[str]:
    return [row.error_code or row.status for row in again(rows)]


def stored(name: str | None, media: Path) -> Path:
    assert name
    return media / name


Captioning = Callable[[Tensor, Sequence[ClipCaptionModel], DecodingOptions], Any]


@pytest.fixture
def instead(engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Let something happen whenever the engine is about to decode a batch."""

    def install(happening: Callable[..., None]) -> None:
        caption = engine.captioner.caption

        def wrapped(embeddings: Tensor, models: Sequence[ClipCaptionModel], options: DecodingOptions) -> Any:
            happening(len(models))
            return caption(embeddings, models, options)

        monkeypatch.setattr(engine.captioner, "caption", wrapped)

    return install


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
    assert row.version == row.style.active_version
    assert row.encode_ms
    assert row.decode_ms
    assert row.started_at
    assert row.finished_at
    assert (row.attempts, row.lease_token) == (1, None)


def test_a_bad_image_fails_alone(engine: CaptionEngine, media: Path) -> None:
    rows = ask(3, "factual", "humorous")
    spoilt = rows[0].image
    stored(spoilt.file.name, media).write_bytes(b"no picture at all")
    engine.work()
    for row in again(rows):
        assert (row.error_code or row.status) == ("image_not_an_image" if row.image == spoilt else "succeeded")
        assert bool(row.error_detail) == (row.image == spoilt)


def pause_is_over() -> None:
    """As time does: what was handed back may be claimed again."""
    Caption.objects.update(ready_at=None)


def causes(row: Caption) -> list[str]:
    return [failure["code"] for failure in again([row])[0].failures]


def test_an_image_whose_file_is_missing_waits_alone_and_fails_when_another_worker_has_tried(
    engine: CaptionEngine, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ask(2)
    stored(rows[1].image.file.name, media).unlink()
    for _ in range(MAX_ATTEMPTS):
        engine.work()
        assert statuses(rows) == ["succeeded", "queued"], "one worker alone may be to blame itself"
        pause_is_over()
        engine.breaker = Breaker()
    monkeypatch.setattr(engine, "name", "another")
    engine.work()
    assert statuses(rows) == ["succeeded", "image_missing"]
    assert causes(rows[1]) == ["image_missing"] * (MAX_ATTEMPTS + 1)


def test_a_storage_that_is_away_costs_no_caption_however_often_it_is_tried_and_by_whom(
    engine: CaptionEngine, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    somebody = Viewer(visitor="somebody")
    ask(1, viewer=somebody)
    engine.work()  # its mapper and its photo are known from now on, and succeed beside the others
    rows = ask(4, viewer=somebody)
    media.rename(media.with_name("away"))
    for attempt in range(2 * MAX_ATTEMPTS):
        monkeypatch.setattr(engine, "name", f"worker {attempt % 2}")
        monkeypatch.setattr(engine, "breaker", Breaker())
        engine.work()
        pause_is_over()
    assert statuses(rows) == ["succeeded"] + ["queued"] * 3
    assert {row.attempts for row in again(rows) if row.status == Status.QUEUED} == {0}
    media.with_name("away").rename(media)
    engine.work()
    assert statuses(rows) == ["succeeded"] * 4


def test_an_answer_that_the_connection_to_the_storage_broke_blames_no_image(
    engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ask(3)
    image = type(rows[0].image.file)
    opened, unlucky = image.open, str(rows[1].image.file.name)

    def open_or_not(self: Any, mode: str = "rb") -> Any:
        if self.name == unlucky:
            raise ConnectionResetError
        return opened(self, mode)

    monkeypatch.setattr(image, "open", open_or_not)
    for attempt in range(2 * MAX_ATTEMPTS):
        monkeypatch.setattr(engine, "name", f"worker {attempt % 2}")
        monkeypatch.setattr(engine, "breaker", Breaker())
        engine.work()
        pause_is_over()
    assert statuses(rows) == ["succeeded", "queued", "succeeded"]


def test_a_decoder_that_is_short_of_memory_does_not_make_the_picture_a_damaged_one(
    engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ask(1)

    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", no_memory)
        engine.work()
    assert statuses(rows) == ["queued"]
    assert causes(rows[0]) == ["out_of_memory"]
    pause_is_over()
    engine.work()
    assert statuses(rows) == ["succeeded"]


def test_what_goes_wrong_between_the_rows_gives_the_batch_back_and_counts_as_no_attempt(
    engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ask(2)

    def no_memory(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(engine, "_process", no_memory)
    with pytest.raises(MemoryError):
        engine.work()
    assert [(row.status, row.attempts, causes(row)) for row in again(rows)] == [("queued", 0, ["out_of_memory"])] * 2


def test_a_worker_that_keeps_failing_pauses_itself_says_so_and_tries_one_row_when_the_pause_is_over(
    engine: CaptionEngine, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ask(5)
    media.rename(media.with_name("away"))
    for _ in range(STRIKES):
        assert engine.work() == 5
        pause_is_over()
    assert engine.work() == 0, "it has paused itself"
    told = "the stored image cannot be read"
    WorkerProcess(engine, "captions", {}, (Caption,))._beat()
    worker = Worker.objects.get(name=engine.name)
    assert told in worker.trouble
    assert worker.tries_again_at
    media.with_name("away").rename(media)
    assert told in health._worker()
    Worker.objects.create(name="sound", queue="captions", models_loaded="an encoder, an LM")
    assert health._worker() == "ok"
    assert [told in warning for warning in health._warnings()] == [True]

    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 3600)
    assert engine.work() == 1, "it tries one"
    assert engine.work() == 4
    assert statuses(rows) == ["succeeded"] * 5
    WorkerProcess(engine, "captions", {}, (Caption,))._beat()
    worker.refresh_from_db()
    assert worker.trouble == ""
    assert worker.tries_again_at is None


def test_a_worker_short_of_memory_beside_sound_ones_costs_no_caption(
    engine: CaptionEngine, instead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(size: int) -> None:
        if engine.name == "short":
            raise MemoryError

    instead(short)
    rows = ask(6, "all")
    for turn in range(60):  # the one that fails is faster, and looks twice as often
        monkeypatch.setattr(engine, "name", "sound" if turn % 3 == 2 else "short")
        monkeypatch.setattr(engine, "batch_size", 4)
        monkeypatch.setattr(engine, "breaker", Breaker())
        engine.work()
        pause_is_over()
    assert statuses(rows) == ["succeeded"] * 18
    assert all(row.attempts == 1 for row in again(rows))


def test_an_idle_worker_embeds_ahead_what_can_be_read_and_the_rest_later(
    engine: CaptionEngine, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [uploads.store(path.read_bytes()) for path in PHOTOS[:2]]
    file = stored(images[0].file.name, media)
    file.rename(file.with_suffix(".away"))
    while engine.idle():
        pass
    assert [e.image for e in Embedding.objects.all()] == [images[1]]
    file.with_suffix(".away").rename(file)
    assert engine.idle() == 0, "not at once"
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 3600)
    assert engine.idle() == 1
    assert Embedding.objects.count() == 2


def test_out_of_memory_halves_the_batch_and_goes_on(engine: CaptionEngine, instead: Any) -> None:
    sizes: list[int] = []

    def too_little_memory(size: int) -> None:
        sizes.append(size)
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    instead(too_little_memory)
    rows = ask(6)
    engine.work()
    assert statuses(rows) == ["succeeded"] * 6
    assert sizes == [6, 3, 1, 2, 3, 1, 2]


def test_a_caption_that_alone_is_too_much_for_the_memory_is_left_to_others_and_says_so(
    engine: CaptionEngine, instead: Any
) -> None:
    def no_memory(size: int) -> None:
        torch.empty(10**15)

    instead(no_memory)
    rows = ask(2)
    engine.work()
    assert statuses(rows) == ["queued"] * 2
    assert [causes(row) for row in rows] == [["out_of_memory"]] * 2


def test_an_unforeseen_error_is_the_users_without_its_details(engine: CaptionEngine, instead: Any) -> None:
    def break_down(size: int) -> None:
        raise RuntimeError("secret innards")

    instead(break_down)
    (row,) = ask()
    engine.work()
    (row,) = again([row])
    (failure,) = row.failures
    assert (row.status, failure["code"], failure["worker"]) == ("queued", "internal_error", engine.name)
    assert "secret" not in failure["detail"]


@pytest.mark.parametrize(
    "options", [GREEDY, {}, {"method": "nucleus", "captions": 2}], ids=["greedy", "beam", "nucleus"]
)
def test_a_row_that_is_answered_with_no_numbers_fails_and_the_others_of_its_batch_go_on(
    options: dict[str, Any], engine: CaptionEngine, instead: Any
) -> None:
    rows = ask(3, options=options)
    engine.embeddings([row.image for row in rows])
    Embedding.objects.filter(image=rows[1].image_id).update(vector=np.full(512, 3e38, "<f4").tobytes())
    batches: list[int] = []
    instead(batches.append)
    engine.work()
    assert statuses(rows) == ["succeeded", "not_possible", "succeeded"]
    assert batches == [3], "nothing was written twice"
    assert (
        "factual v1 returns values that are not finite (NaN or infinity) for this image" in again(rows)[1].error_detail
    )


def test_a_picture_whose_embedding_is_no_numbers_fails_alone(
    engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ask(3)
    encode = engine.captioner.encoder.encode_pixels
    poisoned = engine.captioner.encoder.preprocess(rows[1].image.file.read())

    def sometimes_nan(pixels: Tensor) -> Tensor:
        is_poisoned = (pixels == poisoned).flatten(1).all(1)
        return encode(pixels).masked_fill(is_poisoned[:, None], math.nan)

    monkeypatch.setattr(engine.captioner.encoder, "encode_pixels", sometimes_nan)
    engine.work()
    assert statuses(rows) == ["succeeded", "not_possible", "succeeded"]
    assert not Embedding.objects.filter(image=rows[1].image_id).exists()


def test_a_version_with_weights_beyond_all_measure_leaves_the_old_one_serving(
    engine: CaptionEngine, tmp_path: Path
) -> None:
    old = Style.objects.get(slug="factual").active_version
    assert old
    stored = load_mapper(Path(old.file.path))
    with torch.no_grad():
        stored.mapper.first_layer.weight.mul_(1e37)
    save_mapper(stored, tmp_path / "huge.safetensors")
    huge = services.register_version(
        style=old.style, path=tmp_path / "huge.safetensors", origin=MapperVersion.Origin.TRAINED
    )
    services.promote(version=huge)
    (row,) = ask(1, "factual")
    engine.work()
    assert again([row])[0].version == old
    huge.refresh_from_db()
    assert "far too large" in huge.load_error


def test_the_halves_do_not_hold_on_to_the_memory_of_what_failed() -> None:
    class Tensors:
        """Stands for what a batch allocates."""

    alive: list[Any] = []

    def work(items: list[int]) -> None:
        assert not any(reference() for reference in alive)
        tensors = Tensors()
        alive.append(weakref.ref(tensors))
        if len(items) > 1:
            raise MemoryError

    assert bisect_failures([1, 2, 3, 4], work) == []
    assert len(alive) == 7


def test_captions_canceled_or_deleted_in_the_midst_of_a_batch_change_nothing_for_the_others(
    engine: CaptionEngine, instead: Any
) -> None:
    rows = ask(4)

    def meanwhile(size: int) -> None:
        services.cancel_caption(Viewer(), rows[0].pk)
        services.delete_caption(Viewer(), rows[1].pk)

    instead(meanwhile)
    assert engine.work() == 4
    assert statuses(rows) == ["canceled", "succeeded", "succeeded"]
    assert again(rows)[0].text == ""


def test_captions_deleted_with_their_image_right_after_the_claim_change_nothing_for_the_others(
    engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ask(3)
    claim = JobQuerySet.claim

    def claim_and_delete(self: Any, *arguments: Any) -> Any:
        claimed = claim(self, *arguments)
        if claimed and Image.objects.filter(pk=rows[0].image_id).exists():
            services.delete_caption(Viewer(), rows[0].pk)
        return claimed

    monkeypatch.setattr(JobQuerySet, "claim", claim_and_delete)
    assert engine.work() == 3
    assert statuses(rows) == ["succeeded"] * 2
    assert not Image.objects.filter(pk=rows[0].image_id).exists()


def add_version(style: str, of: str, media: Path) -> MapperVersion:
    """A further version of one style, with the mapper of another, which tells them apart."""
    source = stored(Style.objects.get(slug=of).active_version.file.name, media)  # type: ignore[union-attr]
    return services.register_version(
        style=Style.objects.get(slug=style), path=source, origin=MapperVersion.Origin.TRAINED
    )


def test_a_promotion_and_its_rollback_reach_the_next_batch(engine: CaptionEngine, media: Path) -> None:
    first = Style.objects.get(slug="factual").active_version
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


def test_a_version_that_does_not_load_leaves_the_old_one_serving_and_says_why(
    engine: CaptionEngine, media: Path
) -> None:
    old = Style.objects.get(slug="factual").active_version
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
    assert again([row])[0].version == broken, "mended, it serves"
    broken.refresh_from_db()
    assert broken.load_error == ""


def test_a_style_of_which_no_version_loads_waits_and_the_others_go_on(engine: CaptionEngine, media: Path) -> None:
    version = Style.objects.get(slug="humorous").active_version
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


def test_a_row_that_kills_workers_is_tried_alone_and_given_up(engine: CaptionEngine, instead: Any) -> None:
    class Killed(BaseException):
        pass

    rows = ask(3)
    poison = rows[1]
    batches: list[int] = []

    def kill_over_poison(size: int) -> None:
        batches.append(size)
        if Caption.objects.filter(pk=poison.pk, status=Status.RUNNING).exists():
            raise Killed

    instead(kill_over_poison)
    for _ in range(20):
        try:
            if not engine.work():
                break
        except Killed:
            Caption.objects.reap()
            pause_is_over()
    assert statuses(rows) == ["succeeded", "worker_lost", "succeeded"]
    assert batches[0] == 3
    assert set(batches[1:]) == {1}
    assert again([poison])[0].attempts == MAX_ATTEMPTS


@pytest.mark.django_db(transaction=True)
def test_a_shift_that_ends_hands_back_what_it_cannot_finish(
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
def test_a_shift_works_until_it_is_stopped_and_survives_what_goes_wrong(
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
