"""The versions that a caption worker keeps loaded: within a budget, and without making others wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from captioner import services
from captioner.inference import engine as caption_engine
from captioner.inference import model_cache
from captioner.inference.engine import CaptionEngine
from captioner.inference.model_cache import ModelCache, NoRoom, Postponed
from captioner.jobs.wakeup import WAKE_UP
from captioner.models import Caption, MapperVersion, Style, Viewer
from clipcap.checkpoint import MapperCheckpoint
from clipcap.device import free_bytes
from clipcap.model import ClipCaptionModel
from tests.servers import wait_until

PHOTO = Path(__file__).parent.parent / "examples/coco_cc/000000000790.jpg"


@pytest.fixture
def cache(engine: CaptionEngine, styles: dict[str, Style], monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelCache]:
    """An engine's cache, empty; what a test sets holds for it alone."""
    monkeypatch.setattr(engine, "mappers", ModelCache(engine.captioner))
    yield engine.mappers
    engine.mappers.clear()


def in_service(slug: str) -> MapperVersion:
    return MapperVersion.objects.select_related("style").in_service().get(style__slug=slug)


def replaced(slug: str) -> tuple[MapperVersion, MapperVersion]:
    """The version that was in service, and one with the same file that took its place."""
    older = in_service(slug)
    newer = services.register_version(
        style=older.style, path=Path(older.file.path), origin=MapperVersion.Origin.TRAINED
    )
    services.promote(version=newer)
    return older, newer


def ask(*styles: str) -> list[Caption]:
    """Queue captions of a photo in some styles, in their order."""
    photo = [services.Upload(PHOTO.read_bytes(), PHOTO.name)]
    rows = []
    for style in styles:
        request = services.request_captions(
            viewer=Viewer(), images=photo, styles=[style], options={"method": "greedy", "max_length": 3}
        )
        rows += list(Caption.objects.filter(request=request))
    return rows


def statuses(rows: list[Caption]) -> list[str]:
    found = Caption.objects.in_bulk([row.pk for row in rows])
    return [found[row.pk].status for row in rows]


def kept(cache: ModelCache) -> list[int]:
    return list(cache._models)


def room_for(count: float, cache: ModelCache) -> None:
    size = cache.load(in_service("factual")).bytes
    cache.clear()
    cache.budget = int(count * size)


def test_what_was_used_longest_ago_is_evicted_for_what_is_needed(cache: ModelCache) -> None:
    room_for(2.5, cache)
    factual, humorous, romantic = (in_service(slug) for slug in ("factual", "humorous", "romantic"))
    first = cache.load(factual)
    cache.load(humorous)
    assert cache.load(factual) is first, "it is loaded once"
    cache.load(romantic)
    assert kept(cache) == [factual.pk, romantic.pk]


def test_a_batch_keeps_what_it_uses_and_the_rest_of_it_follows_in_the_next(
    cache: ModelCache, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caption_engine, "LOOK_AGAIN", timedelta(minutes=1))
    room_for(1.5, cache)
    rows = ask("factual", "humorous")
    engine.work()
    assert statuses(rows) == ["succeeded", "queued"]
    assert kept(cache) == [in_service("factual").pk]
    assert not Caption.objects.get(pk=rows[1].pk).failures, "nothing went wrong"
    assert Caption.objects.get(pk=rows[1].pk).attempts == 0
    engine.work()
    assert statuses(rows) == ["succeeded", "queued"], "it is not claimed again at once"
    WAKE_UP.set()
    assert engine.idle() == 1, "nothing is begun that takes longer"
    Caption.objects.filter(pk=rows[1].pk).update(ready_at=None)
    engine.work()
    assert statuses(rows) == ["succeeded", "succeeded"]
    assert kept(cache) == [in_service("humorous").pk]


def test_what_a_batch_uses_stays_while_others_pass_it(cache: ModelCache) -> None:
    room_for(1.5, cache)
    with cache.in_use():
        cache.load(in_service("factual"))
        with cache.in_use(), pytest.raises(Postponed):
            cache.load(in_service("humorous"))
        assert kept(cache) == [in_service("factual").pk]
    cache.load(in_service("humorous"))
    assert kept(cache) == [in_service("humorous").pk]


def test_a_version_beyond_the_budget_waits_for_another_worker_and_the_others_go_on(
    cache: ModelCache, engine: CaptionEngine
) -> None:
    room_for(1.5, cache)
    large = in_service("humorous")
    MapperVersion.objects.filter(pk=large.pk).update(size=10**12)
    rows = ask("humorous", "factual")
    engine.work()
    assert statuses(rows) == ["queued", "succeeded"]
    (failure,) = Caption.objects.get(pk=rows[0].pk).failures
    assert failure["code"] == "out_of_memory"
    assert "953,674 MiB" in failure["detail"]
    assert "CLIPCAP_MODEL_CACHE_BYTES" in failure["detail"]
    large.refresh_from_db()
    assert large.load_error == "", "the version is not to blame"


def test_a_worker_that_runs_out_of_memory_hands_the_row_back_and_no_older_version_writes_it(
    cache: ModelCache, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced("factual")
    monkeypatch.setattr(model_cache, "free_bytes", lambda device: 0)
    (row,) = ask("factual")
    engine.work()
    (failure,) = Caption.objects.get(pk=row.pk).failures
    assert (failure["code"], statuses([row])) == ("out_of_memory", ["queued"])

    def build(checkpoint: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model_cache, "free_bytes", free_bytes)
    monkeypatch.setattr(engine.captioner, "build", build)
    (row,) = ask("factual")
    engine.work()
    (failure,) = Caption.objects.get(pk=row.pk).failures
    assert failure["detail"] == "the worker does not have enough memory for factual v2"


@pytest.fixture
def gate(cache: ModelCache, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """All files but those loaded already are large, and none is read before this is set."""
    opened, read = threading.Event(), cache._read

    def wait(version: MapperVersion) -> Any:
        assert opened.wait(60)
        return read(version)

    monkeypatch.setattr(model_cache, "LARGE", 0)
    monkeypatch.setattr(cache, "_read", wait)
    yield opened
    opened.set()


def test_while_a_large_file_is_read_the_other_rows_are_captioned(
    cache: ModelCache, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(model_cache, "LARGE", 2**40)
        gate.set()
        cache.load(in_service("factual"))
        gate.clear()
    rows = ask("humorous", "factual", "romantic")
    engine.work()
    assert statuses(rows) == ["queued", "succeeded", "queued"]
    others = ask("factual")
    engine.work()
    assert statuses(others) == ["succeeded"], "of a later request too"
    gate.set()

    def captioned() -> bool:
        engine.idle()
        engine.work()
        return statuses(rows) == ["succeeded"] * 3

    wait_until(captioned, "all rows are captioned")


def test_a_large_file_that_is_damaged_leaves_the_older_version_in_service(
    cache: ModelCache, engine: CaptionEngine, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = replaced("factual")
    Path(newer.file.path).write_bytes(b"x")
    gate.set()
    (row,) = ask("factual")

    def captioned() -> bool:
        engine.idle()
        engine.work()
        return statuses([row]) == ["succeeded"]

    wait_until(captioned, "all rows are captioned")
    newer.refresh_from_db()
    assert "SHA-256" in newer.load_error
    assert Caption.objects.get(pk=row.pk).version == older

    reads: list[MapperVersion] = []
    monkeypatch.setattr(cache, "_read", reads.append)
    (next_row,) = ask("factual")
    engine.work()
    assert statuses([next_row]) == ["succeeded"]
    assert not reads, "nobody waits for the damaged file again"
    monkeypatch.setattr(model_cache, "FAILED", 0)
    with pytest.raises(Postponed):
        cache._load_soon(newer)


def test_a_large_file_that_nobody_asks_for_any_more_gives_way_to_the_next(
    cache: ModelCache, gate: threading.Event
) -> None:
    gate.set()
    with pytest.raises(Postponed):
        cache._load_soon(in_service("factual"))
    assert cache._reading
    cache._reading[1].result()
    with pytest.raises(Postponed):
        cache._load_soon(in_service("humorous"))
    assert cache._reading[0] == in_service("humorous")
    assert cache.load(in_service("humorous")) is cache.load(in_service("humorous")), "whoever can wait waits for it"
    with pytest.raises(Postponed):
        cache._load_soon(in_service("romantic"))
    cache._reading[1].result()
    cache.budget = int(1.5 * cache.load(in_service("humorous")).bytes)
    assert cache.load(in_service("factual")), "and to what needs its room"
    assert not cache._reading


def test_a_new_worker_keeps_a_share_of_the_free_memory_unless_told_how_much(
    engine: CaptionEngine, settings: Any
) -> None:
    free = free_bytes(torch.device("cpu"))
    assert 0.1 * free < ModelCache(engine.captioner).budget < 0.5 * free
    settings.MODEL_CACHE_BYTES = 12_345
    cache = ModelCache(engine.captioner)
    assert cache.budget == 12_345


def test_a_version_that_is_trained_further_is_loaded_apart(cache: ModelCache) -> None:
    shared = cache.load(in_service("factual"))
    assert cache.load(in_service("factual"), fresh=True) is not shared
    cache.budget = 1
    with pytest.raises(NoRoom):
        cache.load(in_service("humorous"))


def test_the_thread_that_reads_runs_no_model_beside_the_one_that_captions(
    cache: ModelCache, engine: CaptionEngine, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, tried = [], []
    build = engine.captioner.build

    def noted(checkpoint: MapperCheckpoint) -> ClipCaptionModel:
        built.append(threading.current_thread())
        return build(checkpoint)

    monkeypatch.setattr(engine.captioner, "build", noted)
    monkeypatch.setattr(engine.captioner, "try_out", lambda model: tried.append(threading.current_thread()))
    gate.set()
    with pytest.raises(Postponed):
        cache._load_soon(in_service("factual"))
    assert cache._reading
    cache._reading[1].result()
    cache._load_soon(in_service("factual"))
    assert [thread.name for thread in built] == ["models_0"]
    assert tried == [threading.main_thread()]
