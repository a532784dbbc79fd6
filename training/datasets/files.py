"""The files of a dataset: in a zip, in a folder, or one alone.

Nothing of them is believed: no path inside a zip is ever used on the disk, and nothing is unpacked but into memory and
within limits.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, cast

from captioner.errors import Refused
from training.datasets import refusals
from training.datasets.keys import Keys
from training.datasets.names import DatasetNames
from training.datasets.refusals import shown

MAX_UNPACKED, MAX_RATIO = 100_000_000_000, 100  # of a zip; photos hardly shrink, and text by 10 or so
SMALL_UNPACKED = 250_000_000  # a zip below this may hold text that shrinks by any factor
MAX_DIRECTORY = 48_000_000  # bytes of a zip's table of contents; 400,000 entries of customary length
HEAD = 65_536  # bytes that tell of what kind a file is
PACKED = (b"PK\3\4", b"PK\5\6", b"\x1f\x8b", b"BZh", b"\xfd7zX", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_UNICODE_PATH = 0x7075  # the extra field in which Info-ZIP repeats a name in UTF-8
_UTF8 = 0x800  # the flag of a name in UTF-8


class DatasetFiles:
    """The files of a dataset, by `names`."""

    check: Callable[[], None] = staticmethod(lambda: None)  # called while a long file is read; may raise to end that
    keys = Keys()  # what their columns are called

    def __init__(self, names: Iterable[str]) -> None:
        self.names = DatasetNames(name for name in names if not _is_left_by_macos(name))

    def open(self, name: str) -> BinaryIO:
        """The content of one of them.

        Raises:
            OSError: it cannot be read; or `zipfile.BadZipFile`, `zlib.error`, `EOFError`, now or while it is read.
        """
        raise NotImplementedError

    def size(self, name: str) -> int:
        """How many bytes that is."""
        raise NotImplementedError

    def is_there(self) -> bool:
        """Whether the dataset can still be reached, so that a file which cannot be read is to blame itself."""
        return True

    def close(self) -> None:
        """Let go of what is open."""


class _Zip(DatasetFiles):
    def __init__(self, source: _ZipSource, size: int) -> None:
        self._source = source
        try:
            self._zip = zipfile.ZipFile(cast(BinaryIO, source))
        except Refused:
            raise
        except Exception as error:  # a hostile table of contents makes zipfile raise nearly anything
            raise Refused(
                "bad_zip", f"the zip is damaged ({type(error).__name__}); create it again", status=422
            ) from error
        entries = self._zip.infolist()
        if len(entries) > refusals.MAX_FILES:
            raise refusals.too_many_files()
        self._members: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            name = _name(entry).replace("\\", "/")
            if problem := _problem(entry, name):
                raise Refused("unsafe_zip", f"the zip is refused: {shown(name)} {problem}", status=422)
            if entry.is_dir():
                continue
            if name in self._members:
                raise Refused(
                    "unsafe_zip", f"the zip is refused: it contains {shown(name)} twice; create it again", status=422
                )
            self._members[name] = entry
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > min(MAX_UNPACKED, max(SMALL_UNPACKED, MAX_RATIO * size)):
            raise Refused(
                "zip_too_large",
                f"the zip is refused: it would unpack to {unpacked:,} bytes, {MAX_RATIO} times its size or more than "
                f"{MAX_UNPACKED:,}; include only pictures and captions, and split larger data sets",
                status=413,
            )
        super().__init__(self._members)

    def open(self, name: str) -> BinaryIO:
        try:
            member = self._zip.open(self._members[name])
        except Exception as error:  # as above
            raise zipfile.BadZipFile(str(error)) from error
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, member), HEAD))

    def size(self, name: str) -> int:
        return self._members[name].file_size

    def close(self) -> None:
        self._zip.close()
        self._source.close()


class _ZipSource(io.FileIO):
    """A zip's bytes. zipfile reads the whole table of contents at once, however much there is of it."""

    def read(self, size: int | None = -1) -> bytes:
        if size and size > MAX_DIRECTORY:
            raise refusals.too_many_files()
        return super().read(size) or b""


class _Folder(DatasetFiles):
    def __init__(self, root: Path) -> None:
        self._root = root
        names: list[str] = []
        for folder, _, files in os.walk(root):  # which does not follow links to folders
            for file in files:
                path = Path(folder, file)
                if stat.S_ISREG(path.lstat().st_mode):  # no link, device or pipe
                    names.append(path.relative_to(root).as_posix())
            if len(names) > refusals.MAX_FILES:
                raise refusals.too_many_files()
        super().__init__(sorted(names))

    def open(self, name: str) -> BinaryIO:
        # Not even if it has become a link or a pipe since it was listed.
        descriptor = os.open(self._root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        return os.fdopen(descriptor, "rb")

    def size(self, name: str) -> int:
        return (self._root / name).stat().st_size

    def is_there(self) -> bool:
        return self._root.is_dir()


class _SingleFile(DatasetFiles):
    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        super().__init__([name])

    def open(self, name: str) -> BinaryIO:
        return self._path.open("rb")

    def size(self, name: str) -> int:
        return self._path.stat().st_size


def files_of(path: Path, name: str) -> DatasetFiles:
    """What a dataset on this disk holds.

    Args:
        name: what to call it in messages if it is annotations alone.

    Raises:
        Refused: it is a zip that is damaged, or holds what it should not.
        OSError: it cannot be read.
    """
    if path.is_dir():
        return _Folder(path)
    with path.open("rb") as file:
        zipped = file.read(4) in PACKED[:2]
    if not zipped:
        return _SingleFile(path, name)
    source = _ZipSource(path)
    try:
        return _Zip(source, path.stat().st_size)
    except BaseException:
        source.close()
        raise


def _name(entry: zipfile.ZipInfo) -> str:
    """A member's name as it was meant.

    macOS and Info-ZIP write UTF-8 without the flag that says so, and zipfile, by the book, reads code page 437 then.
    """
    if entry.flag_bits & _UTF8:
        return entry.filename
    try:
        raw = entry.orig_filename.encode("cp437")
    except UnicodeEncodeError:  # a Python that has read Info-ZIP's extra field itself
        return entry.filename
    extra = entry.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == _UNICODE_PATH and size > 5:
            version, crc = struct.unpack_from("<BL", extra, 4)
            if version == 1 and crc == zlib.crc32(
                raw
            ):  # else the name was changed by a program that knows no such field
                raw = extra[9 : 4 + size]
        extra = extra[4 + size :]
    try:
        return raw.partition(b"\0")[0].decode()
    except UnicodeDecodeError:
        return entry.filename


def _problem(entry: zipfile.ZipInfo, name: str) -> str:
    """What speaks against a member of a zip."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        return "points outside its folder; create the zip with relative paths"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device; include only regular files"
    if entry.flag_bits & 0x2041:
        return "is encrypted; create the zip without a password"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "uses an unsupported compression method; create the zip with the usual one (deflate)"
    if name.lower().endswith(_ARCHIVES) and not _is_left_by_macos(name):
        return "is an archive; unpack it and add its contents to the zip"
    return ""


def _is_left_by_macos(name: str) -> bool:
    """Whether this is what macOS keeps of a file beside it where a disk or a zip has no other place for that."""
    folders, _, last = name.rpartition("/")
    return last.startswith("._") or "__MACOSX" in folders.split("/")
