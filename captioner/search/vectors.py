"""Unit vectors in a file that is mapped into memory: how near each is to another.

The file is a header and blocks of `ROWS` rows: their keys, their images, and their vectors as 16-bit integers with a
scale each, which numpy turns into float32 five times as fast as float16 and which lose less. Rows are appended, and
erased where they are, by one process at a time. How many there are stands in the header, which is written last, so a
reader sees whole rows or none, and what a crash has left behind them is written over. The file holds nothing that
cannot be made again: whatever is wrong with it is a `BrokenIndex`.

Legend: N rows, E size of a vector.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

ROWS = 1024  # of a block: a megabyte where E is 512, which stays in the processor's cache while it is converted
LARGEST = 32767
_HEADER = struct.Struct("<8sII")  # magic, N, E; their CRC-32 follows
_MAGIC = b"clipvec1"
_START = 4096  # of the first block

Vectors = NDArray[np.float32]
Images = NDArray[np.uint64]  # an id's 16 bytes as two numbers


class BrokenIndex(Exception):
    """The file is truncated, malformed or of another kind; remove it and fill it again."""


class VectorFile:
    """The vectors in the file at `path`, which is made when the first are added."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        """How many there are.

        Raises:
            BrokenIndex: the file cannot be used.
        """
        with self._opened() as file:
            return _shape(file.fileno())[0] if file else 0

    def newest(self, least: int) -> tuple[NDArray[np.int64], Images]:
        """Keys (n,) and images (n, 2) of the rows added last: at least that many, where there are as many.

        Raises:
            BrokenIndex: the file cannot be used.
        """
        keys, images = [np.empty(0, np.int64)], [np.empty((0, 2), np.uint64)]
        for block in self._blocks(least):
            keys.append(np.array(block["key"]))
            images.append(np.array(block["image"]))
        return np.concatenate(keys), np.concatenate(images)

    def compare(self, vector: Vectors) -> tuple[Images, Vectors]:
        """The rows' images (N, 2), and (N,) the cosine of each row with a vector (E,) of any length, to five decimals.

        Raises:
            BrokenIndex: the file cannot be used.
        """
        unit = _units(vector[None])[0]
        images, cosines = [np.empty((0, 2), np.uint64)], [np.empty(0, np.float32)]
        rows = np.empty((ROWS, len(unit)), np.float32)
        for block in self._blocks():
            if block["vector"].shape[1] != len(unit):
                raise BrokenIndex(f"vectors of {len(unit)} numbers cannot be compared with what is in {self.path}")
            part = rows[: len(block["vector"])]
            np.copyto(part, block["vector"])
            images.append(np.array(block["image"]))
            cosines.append((part @ unit) * block["scale"])
        found = np.concatenate(cosines)
        if not (np.abs(found) < 1.01).all():  # nor is what is not a number
            raise BrokenIndex(f"{self.path} holds vectors whose length is not 1")
        # Beyond, it depends on where in a block a row is, and equal ones would not stay in their order.
        return np.concatenate(images), found.round(5)

    @contextmanager
    def growing(self) -> Iterator[bool]:
        """Whether rows may be added, until the block ends: not while another process or thread does."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def append(self, keys: Sequence[int], images: Sequence[bytes], vectors: Vectors) -> None:
        """Add rows. Call it while `growing`.

        Args:
            keys: by which whoever feeds the file knows the rows.
            images: ids of 16 bytes.
            vectors: (n, E), of any length but 0.

        Raises:
            BrokenIndex: the file cannot be used.
            OSError: it cannot be written.
        """
        units = _units(vectors)
        scales = np.maximum(np.abs(units).max(axis=1), 1e-9) / LARGEST
        rows: dict[str, NDArray[Any]] = {
            "key": np.array(keys, "<i8"),
            "image": np.frombuffer(b"".join(images), "<u8").reshape(-1, 2),
            "scale": scales.astype("<f4"),
            "vector": np.rint(units / scales[:, None]).astype("<i2"),
        }
        if not self.path.exists():
            _make(self.path, units.shape[1])
        with self.path.open("r+b") as file:
            count, size = _shape(file.fileno())
            if size != units.shape[1]:
                raise BrokenIndex(f"vectors of {units.shape[1]} numbers cannot be added to {self.path}")
            _write_rows(file, count, size, rows)
            os.fsync(file.fileno())
            _write_header(file, count + len(units), size)

    def erase(self, images: Collection[bytes]) -> int:
        """Overwrite the rows of images with zeros, which are near to nothing. Call it while `growing`.

        Args:
            images: ids of 16 bytes.

        Returns:
            How many rows that were.

        Raises:
            BrokenIndex: the file cannot be used.
            OSError: it cannot be written.
        """
        gone = np.sort(np.frombuffer(b"".join(images), "<u8")[::2])
        erased = 0
        for block in self._blocks(mode="r+"):
            rows = np.flatnonzero(np.isin(block["image"][:, 0], gone))
            for name in ("scale", "vector", "image"):  # the key stays: it says that the row is not missing
                if len(rows):
                    block[name][rows] = 0
            erased += len(rows)
        return erased

    @contextmanager
    def replacing(self) -> Iterator[VectorFile]:
        """An empty file, which takes this one's place when the block ends well. Call it while `growing`."""
        with tempfile.TemporaryDirectory(dir=self.path.parent) as folder:
            other = VectorFile(Path(folder) / self.path.name)
            yield other
            if other.path.exists():
                other.path.replace(self.path)
            else:
                self.path.unlink(missing_ok=True)

    @contextmanager
    def _opened(self, mode: Literal["r", "r+"] = "r") -> Iterator[BinaryIO | None]:
        try:
            file: BinaryIO = self.path.open("rb" if mode == "r" else "r+b")
        except FileNotFoundError:
            yield None
        else:
            with file:
                yield file

    def _blocks(self, least: int | None = None, mode: Literal["r", "r+"] = "r") -> Iterator[dict[str, NDArray[Any]]]:
        """The blocks that the last rows are in; all, if None. Each is mapped for itself, so that a process that has
        gone through a file of gigabytes holds no more of it than a megabyte or two."""
        with self._opened(mode) as file:
            if file is None:
                return
            count, size = _shape(file.fileno())
            block = _block(size)
            first = 0 if least is None else max(0, count - least) // ROWS
            for number in range(first, _blocks_of(count)):
                mapped = np.memmap(file, block, mode, _START + number * block.itemsize, shape=(1,))
                rows = min(ROWS, count - number * ROWS)
                yield {name: mapped[name][0, :rows] for name in block.names or ()}


def _units(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return units


def _block(size: int) -> np.dtype[Any]:
    return np.dtype(
        [
            ("key", "<i8", (ROWS,)),
            ("image", "<u8", (ROWS, 2)),
            ("scale", "<f4", (ROWS,)),
            ("vector", "<i2", (ROWS, size)),
        ]
    )


def _blocks_of(count: int) -> int:
    return -(-count // ROWS)


def _shape(file: int) -> tuple[int, int]:
    """N and E, by the header of an open file.

    Raises:
        BrokenIndex: there is no header, or the file is shorter than that says.
    """
    for _ in range(3):  # it may be written at this very moment
        head = os.pread(file, _HEADER.size + 4, 0)
        if len(head) == _HEADER.size + 4 and head[-4:] == _checksum(head[:-4]):
            break
    else:
        raise BrokenIndex("the file of vectors has no header, or a garbled one")
    magic, count, size = _HEADER.unpack(head[:-4])
    if magic != _MAGIC:
        raise BrokenIndex(f"the file of vectors is of another kind: {magic!r}")
    if os.fstat(file).st_size < _START + _blocks_of(count) * _block(size).itemsize:
        raise BrokenIndex(f"the file is too short for {count} vectors of {size} numbers")
    return count, size


def _checksum(head: bytes) -> bytes:
    return zlib.crc32(head).to_bytes(4, "little")


def _make(path: Path, size: int) -> None:
    """Make a file without rows; it appears whole."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        _write_header(file, 0, size)
        file.truncate(_START)
    new.replace(path)


def _write_header(file: BinaryIO, count: int, size: int) -> None:
    head = _HEADER.pack(_MAGIC, count, size)
    file.seek(0)
    file.write(head + _checksum(head))
    file.flush()


def _write_rows(file: BinaryIO, count: int, size: int, rows: dict[str, NDArray[Any]]) -> None:
    """Write rows behind the first `count`, each array into its place in the blocks."""
    block = _block(size)
    assert block.fields
    total = count + len(rows["key"])
    file.truncate(_START + _blocks_of(total) * block.itemsize)  # what this cuts off, a crash has left behind
    done = 0
    while count + done < total:
        number, place = divmod(count + done, ROWS)
        many = min(ROWS - place, total - count - done)
        for name, values in rows.items():
            file.seek(_START + number * block.itemsize + block.fields[name][1] + place * values[0].nbytes)
            file.write(values[done : done + many].tobytes())
        done += many
    file.flush()
