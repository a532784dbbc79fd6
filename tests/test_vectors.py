"""The file of vectors: what is in it is found again, whatever happens to it while it grows."""

import multiprocessing
import shutil
import threading
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioner.search import vectors
from captioner.search.vectors import BrokenIndex, VectorFile, Vectors

SIZE = 24
PROCESSES, EACH = 4, 30


@pytest.fixture
def index(tmp_path: Path) -> VectorFile:
    return VectorFile(tmp_path / "index" / "a.vectors")


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "ROWS", 8)


def some(count: int, seed: int = 0) -> Vectors:
    drawn: Vectors = np.random.default_rng(seed).normal(size=(count, SIZE)).astype(np.float32)
    return drawn


def ids(count: int) -> list[bytes]:
    return [uuid.uuid5(uuid.NAMESPACE_OID, str(number)).bytes for number in range(count)]


def add(index: VectorFile, rows: Vectors) -> None:
    """Append rows whose keys and images count on from those that are there."""
    with index.growing() as mine:
        assert mine
        start, end = len(index), len(index) + len(rows)
        index.append(range(start, end), ids(end)[start:], rows)


def as_bytes(images: vectors.Images) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_each_row_has_the_cosine_of_its_vector(index: VectorFile) -> None:
    rows, other = some(3000) * 7, some(1, seed=1)[0]
    add(index, rows)
    images, cosines = index.compare(3 * other)
    expected = rows @ other / np.linalg.norm(rows, axis=1) / np.linalg.norm(other)
    assert np.abs(cosines - expected).max() < 1e-4
    assert as_bytes(images) == ids(3000)


def test_equal_vectors_are_equally_near_wherever_they_are(index: VectorFile) -> None:
    for seed in range(20):
        row, other = some(2, seed=seed)
        add(index, np.stack([row] * 13))
        _, cosines = index.compare(other)
        assert len(set(cosines.tolist())) == 1
        index.path.unlink()


def test_a_file_that_is_not_there_has_no_rows(index: VectorFile) -> None:
    images, cosines = index.compare(some(1)[0])
    assert (len(index), len(images), len(cosines), len(index.newest(5)[0])) == (0, 0, 0, 0)


@pytest.mark.usefixtures("_small_blocks")
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_rows_added_in_parts_are_those_added_at_once(tmp_path: Path, parts: list[int], newest: int) -> None:
    folder = tmp_path / str(uuid.uuid4())
    at_once, bit_by_bit, rows = VectorFile(folder / "a"), VectorFile(folder / "b"), some(sum(parts))
    add(at_once, rows)
    for part in np.split(rows, np.cumsum(parts)[:-1]):
        add(bit_by_bit, part)
    got, expected = bit_by_bit.compare(rows[0]), at_once.compare(rows[0])
    assert (got[0] == expected[0]).all()
    assert (got[1] == expected[1]).all()
    keys, images = bit_by_bit.newest(newest)
    assert len(keys) >= min(newest, len(rows))
    assert keys.tolist() == list(range(len(rows)))[len(rows) - len(keys) :]
    assert as_bytes(images) == ids(len(rows))[len(rows) - len(keys) :]


@pytest.mark.usefixtures("_small_blocks")
def test_what_a_crash_left_behind_the_rows_is_not_read_and_written_over(
    index: VectorFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = some(30)
    add(index, rows[:10])
    with monkeypatch.context() as crashing:
        crashing.setattr(vectors, "_write_header", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            add(index, 100 + some(20, seed=5))
    assert len(index) == 10
    assert as_bytes(index.compare(rows[0])[0]) == ids(10)
    add(index, rows[10:12])
    fresh = VectorFile(index.path.with_name("fresh"))
    add(fresh, rows[:12])
    assert (index.compare(rows[0])[1] == fresh.compare(rows[0])[1]).all()


@pytest.mark.usefixtures("_small_blocks")
@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_damaged_file_gives_numbers_or_says_that_it_is_broken(tmp_path: Path, data: st.DataObject) -> None:
    index = VectorFile(tmp_path / str(uuid.uuid4()) / "a.vectors")
    add(index, some(20))
    whole = index.path.read_bytes()
    damage = data.draw(st.sampled_from(["cut", "written over", "something else"]))
    if damage == "cut":
        index.path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    elif damage == "written over":
        place, garbage = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.binary(min_size=1, max_size=600))
        index.path.write_bytes((whole[:place] + garbage + whole[place + len(garbage) :])[: len(whole)])
    else:
        index.path.write_bytes(data.draw(st.binary(max_size=5000)))
    try:
        images, cosines = index.compare(some(1)[0])
    except BrokenIndex:
        return
    assert damage == "written over"
    assert len(images) == len(cosines) == 20
    assert (np.abs(cosines) < 1.01).all()


def test_a_vector_of_another_size_is_refused(index: VectorFile) -> None:
    add(index, some(3))
    with index.growing(), pytest.raises(BrokenIndex, match="48 numbers cannot be added"):
        index.append([9], ids(1), np.ones((1, 48), np.float32))
    with pytest.raises(BrokenIndex, match="cannot be compared"):
        index.compare(np.ones(48, np.float32))
    assert len(index) == 3


def test_a_vector_of_zeros_is_near_to_nothing(index: VectorFile) -> None:
    add(index, np.zeros((2, SIZE), np.float32))
    assert index.compare(some(1)[0])[1].tolist() == [0, 0]


def test_one_at_a_time_adds_rows(index: VectorFile) -> None:
    with index.growing() as first, VectorFile(index.path).growing() as second:
        assert (first, second) == (True, False)
    with index.growing() as again:
        assert again


def _append_some(path: Path, number: int) -> None:
    index, done = VectorFile(path), 0
    while done < EACH:
        with index.growing() as mine:
            if mine:
                index.append([number * EACH + done], ids(number * EACH + done + 1)[-1:], some(1, seed=done))
                done += 1


def test_processes_that_add_at_once_lose_nothing(index: VectorFile) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append_some, args=(index.path, number)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    keys, images = index.newest(PROCESSES * EACH)
    assert sorted(keys.tolist()) == list(range(PROCESSES * EACH))
    known = dict(enumerate(ids(PROCESSES * EACH)))
    assert as_bytes(images) == [known[key] for key in keys.tolist()]


@pytest.mark.usefixtures("_small_blocks")
def test_whoever_reads_while_rows_are_added_sees_whole_rows(index: VectorFile) -> None:
    same, stopping, seen = some(1)[0], threading.Event(), [0]

    def read() -> None:
        while not stopping.is_set():
            images, cosines = index.compare(same)
            seen.append(len(cosines) if as_bytes(images) == ids(len(cosines)) and (cosines > 0.999).all() else -1)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for count in range(1, 40):
            add(index, np.tile(same, (count % 5 + 1, 1)))
    finally:
        stopping.set()
        thread.join()
    assert min(seen) == 0
    assert seen == sorted(seen)


def test_a_new_file_takes_the_place_of_the_old_one_when_it_is_whole(index: VectorFile) -> None:
    add(index, some(5))
    with index.growing():
        with pytest.raises(ZeroDivisionError), index.replacing() as fresh:
            fresh.append([7 // len(fresh)], ids(1), some(1))
        assert len(index) == 5
        with index.replacing() as fresh:
            fresh.append([7], ids(1), some(1))
            assert len(index) == 5
    assert index.newest(9)[0].tolist() == [7]
    assert sorted(path.name for path in index.path.parent.iterdir()) == ["a.lock", "a.vectors"]


def test_a_copy_of_the_file_is_as_good(index: VectorFile, tmp_path: Path) -> None:
    add(index, some(5))
    shutil.copy(index.path, tmp_path / "b.vectors")
    assert len(VectorFile(tmp_path / "b.vectors")) == 5


@pytest.mark.usefixtures("_small_blocks")
def test_erased_rows_hold_nothing_and_the_others_stay(index: VectorFile) -> None:
    rows = some(30)
    add(index, rows)
    before = index.compare(rows[3])[1]
    gone = [ids(30)[3], ids(30)[12], uuid.uuid4().bytes]
    with index.growing():
        assert index.erase(gone) == 2
    images, cosines = index.compare(rows[3])
    assert [image == bytes(16) for image in as_bytes(images)] == [number in (3, 12) for number in range(30)]
    assert cosines[[3, 12]].tolist() == [0, 0]
    assert np.delete(cosines, [3, 12]).tolist() == np.delete(before, [3, 12]).tolist()
    keys, _ = index.newest(30)
    assert keys.tolist() == list(range(30))  # so that nobody takes them for missing
    raw = index.path.read_bytes()
    assert not any(image in raw for image in gone)
