"""The caption worker's engine when rows, storage or memory are not as they should be."""

from __future__ import annotations

import math
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captioner import services, uploads
from captioner.api import health
from captioner.inference.engine import CaptionEngine
from captioner.inference.failures import bisect_failures
from captioner.jobs.job import MAX_ATTEMPTS, JobQuerySet, Status
from captioner.models import Caption, Embedding, Image, MapperVersion, Style, Viewer, Worker
from captioner.workers.breaker import STRIKES, Breaker
from captioner.workers.worker_process import WorkerProcess
from clipcap.checkpoint import load_mapper, save_mapper
from tests.worker.rows import GREEDY, PHOTOS, again, ask, causes, pause_is_over, statuses, stored

pytestmark = [pytest.mark.usefixtures("both_databases"), pytest.mark.small_models]


def test_a_bad_image_fails_alone(engine: CaptionEngine, media: Path) -> None:
    rows = ask(3, "factual", "humorous")
    spoilt = rows[0].image
    stored(spoilt.file.name, media).write_bytes(b"no picture at all")
    engine.work()
    for row in again(rows):
        assert (row.error_code or row.status) == ("image_not_an_image" if row.image == spoilt else "succeeded")
        assert bool(row.error_detail) == (row.image == spoilt)


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


def test_a_worker_that_paused_itself_is_well_again_when_others_have_done_the_rest(
    engine: CaptionEngine, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(5)
    media.rename(media.with_name("away"))
    for _ in range(STRIKES):
        engine.work()
        pause_is_over()
    media.with_name("away").rename(media)
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 3600)
    at_another = Caption.objects.claim("another", 5)
    assert engine.work() == 0
    assert engine.breaker.trouble, "they may come back to it"
    for row in at_another:
        row.succeed(text="Two dogs on grass.")
    assert engine.work() == 0
    assert engine.breaker.trouble == ""
    ask(2)
    assert engine.work() == 1, "it tries one all the same"


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
    Embedding.objects.filter(image=rows[1].image_id).update(
        vector=np.full(engine.captioner.encoder.embedding_size, 3e38, "<f4").tobytes()
    )
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


def test_a_version_with_weights_beyond_all_measure_leaves_the_old_one_in_service(
    engine: CaptionEngine, tmp_path: Path
) -> None:
    old = Style.objects.get(slug="factual").version_in_service
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
