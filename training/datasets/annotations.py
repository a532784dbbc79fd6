"""From hostile files to rows: which caption belongs to which image.

A dataset is a zip or a folder with images and one file of annotations, or the annotations alone. Nothing of it is
believed: no path inside it is ever used on the disk, nothing is unpacked but into memory and within limits, and what
is read goes row by row, so that a big dataset takes no more memory than a small one.
"""

from __future__ import annotations

import bisect
import csv
import io
import json
import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import ijson

from captioner.errors import Refused
from training.services import caption_text

MAX_FILES = 400_000
MAX_ROWS = 2_000_000
MAX_ANNOTATIONS = 1_000_000_000  # bytes of the file that holds the captions
MAX_UNPACKED, MAX_RATIO = 100_000_000_000, 100  # of a zip; photos hardly shrink, and text by 10 or so
SMALL_UNPACKED = 250_000_000  # a zip below this may hold text that shrinks by any factor
MAX_DIRECTORY = 48_000_000  # bytes of a zip's table of contents; 400,000 entries of customary length
MAX_LINE = 1_000_000  # bytes of a line, or of a string in JSON
MAX_ENTRY, MAX_DEPTH = 2_000_000, 32  # characters and values in an entry of a JSON list; how deep they may be nested
HEAD = 65_536  # bytes that tell of what kind a file is

FILE_KEYS = ("file_name", "filename", "file", "image", "image_id")  # the first that is there counts
CAPTION_KEYS = ("captions", "caption", "text", "sentence")
ACCEPTED = "COCO or Karpathy JSON, CSV or TSV with a header, JSONL, or a JSON list of files with their captions"

_IMAGES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
    ".heif",
)
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_PACKED = (b"PK\3\4", b"PK\5\6", b"\x1f\x8b", b"BZh", b"\xfd7zX", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")
_BOM = b"\xef\xbb\xbf"
_ESCAPE = re.compile(rb"\\.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Row:
    """A caption and the image it names, or the problem with it."""

    line: int
    ref: str = ""
    text: str = ""
    problem: str = ""
    folder: str = ""  # where the image may lie, in formats that tell it apart


class Files:
    """The files of a dataset by their paths inside it, with "/" between folders."""

    check: Callable[[], None] = staticmethod(lambda: None)  # called while a long file is read; may raise to end that

    def __init__(self, names: Iterable[str]) -> None:
        # macOS writes its accents decomposed; files and annotations meet in the composed form.
        self.names = {unicodedata.normalize("NFC", name): name for name in names}
        # Backwards and sorted, all names with the same end are neighbours.
        self._backwards = sorted(f"/{name}"[::-1] for name in self.names)

    def open(self, name: str) -> BinaryIO:
        """The content of one of `names`' values.

        Raises:
            OSError: it cannot be read; or `zipfile.BadZipFile`, `zlib.error`, `EOFError`, now or while it is read.
        """
        raise NotImplementedError

    def size(self, name: str) -> int:
        """How many bytes that is."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what is open."""

    def find(self, ref: str, beside: str) -> str | None:
        """The file that an annotation in the folder `beside` means, if there is one.

        People zip a folder, or what is in it, and annotations carry the paths of the machine they were made on: a file
        is meant if its path ends as the reference does, or the other way round.

        Raises:
            Refused: several files may be meant.
        """
        parts = [
            part for part in unicodedata.normalize("NFC", ref).replace("\\", "/").split("/") if part not in ("", ".")
        ]
        for first in range(min(len(parts), MAX_DEPTH)):
            path = "/".join(parts[first:])
            for name in (f"{beside}/{path}" if beside else path, path):
                if name in self.names:
                    return self.names[name]
            if first == 0:
                end = f"/{path}"[::-1]
                place = bisect.bisect_left(self._backwards, end)
                meant = [n[::-1][1:] for n in self._backwards[place : place + 2] if n.startswith(end)]
                if len(meant) == 2:
                    raise Refused(
                        "ambiguous_file",
                        f"{shown(ref)} may be {shown(meant[0])} or {shown(meant[1])}; write the path",
                    )
                if meant:
                    return self.names[meant[0]]
        return None


class _Zip(Files):
    def __init__(self, source: _ZipSource, size: int) -> None:
        self._source = source
        try:
            self._zip = zipfile.ZipFile(cast(BinaryIO, source))
        except Refused:
            raise
        except Exception as error:  # a hostile table of contents makes zipfile raise nearly anything
            raise Refused(
                "bad_zip", f"the zip is damaged ({type(error).__name__}); pack it again", status=422
            ) from error
        entries = self._zip.infolist()
        if len(entries) > MAX_FILES:
            raise _too_many()
        self._members: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            name = entry.filename.replace("\\", "/")
            if problem := _problem(entry, name):
                raise Refused("unsafe_zip", f"the zip is refused: {shown(name)} {problem}", status=422)
            if entry.is_dir() or name.startswith("__MACOSX/"):
                continue
            if name in self._members:
                raise Refused(
                    "unsafe_zip", f"the zip is refused: it holds {shown(name)} twice; pack it again", status=422
                )
            self._members[name] = entry
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > min(MAX_UNPACKED, max(SMALL_UNPACKED, MAX_RATIO * size)):
            raise Refused(
                "zip_too_large",
                f"the zip is refused: it would unpack to {unpacked:,} bytes, {MAX_RATIO} times its size or more than "
                f"{MAX_UNPACKED:,}; pack pictures and captions alone, and divide what is bigger",
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
            raise _too_many()
        return super().read(size) or b""


class _Folder(Files):
    def __init__(self, root: Path) -> None:
        self._root = root
        names: list[str] = []
        for folder, _, files in os.walk(root):  # which does not follow links to folders
            for file in files:
                path = Path(folder, file)
                if stat.S_ISREG(path.lstat().st_mode):  # no link, device or pipe
                    names.append(path.relative_to(root).as_posix())
            if len(names) > MAX_FILES:
                raise _too_many()
        super().__init__(sorted(names))

    def open(self, name: str) -> BinaryIO:
        # Not even if it has become a link or a pipe since it was listed.
        descriptor = os.open(self._root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        return os.fdopen(descriptor, "rb")

    def size(self, name: str) -> int:
        return (self._root / name).stat().st_size


class _Lone(Files):
    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        super().__init__([name])

    def open(self, name: str) -> BinaryIO:
        return self._path.open("rb")

    def size(self, name: str) -> int:
        return self._path.stat().st_size


def files_of(path: Path, name: str) -> Files:
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
        zipped = file.read(4) in _PACKED[:2]
    if not zipped:
        return _Lone(path, name)
    source = _ZipSource(path)
    try:
        return _Zip(source, path.stat().st_size)
    except BaseException:
        source.close()
        raise


class Annotations:
    """The file that says which image has which captions."""

    def __init__(self, files: Files, name: str, kind: Literal["table", "lines", "list", "karpathy", "coco"]) -> None:
        self.files, self.name, self.kind = files, name, kind
        self.delimiter = ","
        # COCO's annotations name images by number and may come before the list that tells their files, so that list
        # is kept: the one part of a dataset that is in memory as a whole.
        self._coco_files: dict[str, str] | None = None

    @property
    def folder(self) -> str:
        """The folder that it lies in."""
        return self.name.rpartition("/")[0]

    def rows(self) -> Iterator[Row]:
        """What it says, one caption after the other, in the same order every time.

        Raises:
            Refused: the file cannot be read on; all that can be told row by row is told in the rows instead.
        """
        if self.kind == "coco" and self._coco_files is None:
            self._coco_files = self._images_of_coco()
        with self.files.open(self.name) as file:
            if self.kind == "table":
                yield from _table(_lines(file, self.name, self.files.check), self.delimiter)
            elif self.kind == "lines":
                yield from _json_lines(_lines(file, self.name, self.files.check))
            else:
                yield from self._json(file)

    def _json(self, file: BinaryIO) -> Iterator[Row]:
        section = {"list": "", "karpathy": "images", "coco": "annotations"}[self.kind]
        number = 0
        for place, entry in _entries(file, self.name, self.files.check):
            if place != section:
                continue
            number += 1
            if not isinstance(entry, dict):
                yield Row(number, problem="this is no JSON object")
            elif self.kind == "list":
                yield from _rows(number, *_file_and_captions(entry))
            elif self.kind == "karpathy":
                folder = entry.get("filepath")
                yield from _rows(
                    number, entry.get("filename"), entry.get("sentences"), folder if isinstance(folder, str) else ""
                )
            else:
                image = entry.get("image_id")
                assert self._coco_files is not None
                yield from _rows(number, self._coco_files.get(str(image), image), entry.get("caption"))

    def _images_of_coco(self) -> dict[str, str]:
        found: dict[str, str] = {}
        with self.files.open(self.name) as file:
            for place, entry in _entries(file, self.name, self.files.check):
                if place == "images" and isinstance(entry, dict):
                    name = entry.get("file_name")
                    if isinstance(name, str) and len(name) <= 1000:
                        found[str(entry.get("id"))[:1000]] = name
                    if len(found) > MAX_FILES:
                        raise _too_many()
        return found


def find_annotations(files: Files, check: Callable[[], None]) -> Annotations:
    """The one file among these that holds captions, found by its content.

    Args:
        check: called between files and while long ones are read; may raise to stop.

    Raises:
        Refused: there is none, or several, or it cannot be read.
    """
    files.check = check
    found: list[Annotations] = []
    problems: list[Refused] = []
    others: list[str] = []
    for name in files.names.values():
        check()
        last = name.rpartition("/")[2].lower()
        if last.endswith(_IMAGES) or last.startswith("."):
            continue
        others.append(name)
        try:
            annotations = _recognised(files, name)
        except Refused as error:
            problems.append(error)
            continue
        if annotations:
            found.append(annotations)
        if len(found) == 5:
            break
    if len(found) > 1:
        names = ", ".join(shown(annotations.name) for annotations in found)
        raise Refused(
            "several_annotations", f"several files hold captions: {names}; leave one of them and try again", status=422
        )
    if not found and problems:
        raise problems[0]
    if not found:
        seen = f"; there is {', '.join(map(shown, others[:5]))}, which is none of it" if others else ""
        raise Refused("no_annotations", f"no file with captions was found{seen}; send {ACCEPTED}", status=422)
    return found[0]


def _recognised(files: Files, name: str) -> Annotations | None:
    # Before anything of it is read: packed well, a few kilobytes become gigabytes to look through.
    if files.size(name) > MAX_ANNOTATIONS:
        raise Refused(
            "annotations_too_large", f"{shown(name)} has more than {MAX_ANNOTATIONS:,} bytes; divide it", status=413
        )
    with files.open(name) as file:
        head = file.read(HEAD)
    if head.startswith(_PACKED):
        raise Refused(
            "nested_archive", f"{shown(name)} is an archive inside; unpack it and send what is in it", status=422
        )
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _not_utf8(name, 1)
    start = head.removeprefix(_BOM).lstrip()
    first = start.partition(b"\n")[0]
    annotations = None
    if start[:1] not in (b"{", b"["):
        delimiter = next((d for d in ",\t;|" if _columns(_cells(first, d))), None)
        if delimiter is not None:
            annotations = Annotations(files, name, "table")
            annotations.delimiter = delimiter
    elif _fits(_parsed(first)):
        annotations = Annotations(files, name, "lines")
    else:
        with files.open(name) as file:
            kind = _json_kind(file, name, files.check)
        annotations = Annotations(files, name, kind) if kind else None
    return annotations


def _json_kind(file: BinaryIO, name: str, check: Callable[[], None]) -> Literal["list", "karpathy", "coco"] | None:
    looked_at = 0
    for place, entry in _entries(file, name, check):
        if place == "" and _fits(entry):
            return "list"
        if isinstance(entry, dict) and place == "images" and "sentences" in entry:
            return "karpathy"
        if isinstance(entry, dict) and place == "annotations":
            if "caption" in entry:
                return "coco"
            looked_at += 1
        looked_at += place == ""
        if looked_at == 20:  # boxes or key points, say: millions may follow
            break
    return None


# -- rows ---------------------------------------------------------------------------------------------------------


def _rows(line: int, ref: Any, captions: Any, folder: str = "") -> Iterator[Row]:
    """One row for each caption of an entry; at least one."""
    if isinstance(ref, int):
        ref = str(ref)
    if not isinstance(ref, str) or not ref.strip() or len(ref) > 1000:
        yield Row(line, problem=f"it names no image; the name belongs in {', '.join(FILE_KEYS)}")
        return
    if not isinstance(captions, list):
        captions = [captions]
    for caption in captions or [None]:
        text = caption.get("raw") if isinstance(caption, dict) else caption
        if not isinstance(text, str):
            yield Row(line, problem="it has no caption, or one that is no text")
            continue
        try:
            yield Row(line, ref.strip(), caption_text(text), folder=folder)
        except Refused as error:
            yield Row(line, problem=error.detail)


def _json_lines(lines: Iterator[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        entry = _parsed(line)
        if isinstance(entry, dict):
            yield from _rows(number, *_file_and_captions(entry))
        else:
            yield Row(number, problem="the line is no JSON object")


def _table(lines: Iterator[str], delimiter: str) -> Iterator[Row]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    columns: tuple[int, int] | None = None
    width = 0
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(line, problem=f"it cannot be divided into columns ({error}); see to its quotes")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if columns is None:
            columns, width = _columns(cells), len(cells)
            if columns is None:  # it was recognised by this line
                raise Refused("bad_header", "the header's columns cannot be told apart; see to its quotes", status=422)
        elif len(cells) != width:
            yield Row(
                line,
                problem=f"it has {len(cells)} columns and the header {width}; put cells with {delimiter!r} in quotes",
            )
        else:
            yield from _rows(line, cells[columns[0]], cells[columns[1]])


def _columns(cells: list[str]) -> tuple[int, int] | None:
    """Where in a header image and caption are named."""
    names = [cell.strip().lower() for cell in cells]
    image = next((names.index(key) for key in FILE_KEYS if key in names), None)
    caption = next((names.index(key) for key in CAPTION_KEYS if key in names), None)
    return None if image is None or caption is None else (image, caption)


def _cells(line: bytes, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line.decode()], delimiter=delimiter, strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return []


def _file_and_captions(entry: dict[str, Any]) -> tuple[Any, Any]:
    ref = next((entry[key] for key in FILE_KEYS if key in entry), None)
    return ref, next((entry[key] for key in CAPTION_KEYS if key in entry), None)


def _fits(entry: Any) -> bool:
    return isinstance(entry, dict) and None not in _file_and_captions(entry)


def _parsed(line: str | bytes) -> Any:
    """What a line of JSON says; None if it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


# -- reading ------------------------------------------------------------------------------------------------------


def _lines(file: BinaryIO, name: str, check: Callable[[], None]) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if number % 1000 == 0:  # empty lines are no rows
            check()
        if len(line) > MAX_LINE:
            raise Refused(
                "line_too_long",
                f"line {number} of {shown(name)} has more than {MAX_LINE:,} bytes; divide it",
                status=422,
            )
        try:
            yield (line.removeprefix(_BOM) if number == 1 else line).decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(name, number) from error


def _entries(file: BinaryIO, name: str, check: Callable[[], None]) -> Iterator[tuple[str, Any]]:
    """What the lists of a JSON file hold: each entry with the key of its list, "" if the file is one list.

    A value beside the lists comes as an entry, too. The parser's own way of building objects is not used, since it has
    no limits.
    """
    outside, section = "", ""  # the brackets that are open around an entry
    stack: list[Any] = []  # of the entry's containers those that are open
    keys: list[str] = []  # the last key of each
    weight = count = 0
    try:
        for event, value in ijson.basic_parse(_JsonSource(file, check), use_float=True):
            if event == "map_key" and not stack:
                section = value
                continue
            if not stack:
                if (event == "start_map" and not outside) or (event == "start_array" and outside in ("", "{")):
                    outside += "{" if event == "start_map" else "["
                    continue
                if event in ("end_map", "end_array"):
                    outside = outside[:-1]
                    continue
                weight, count = 0, count + 1
            weight += 1 + (len(value) if isinstance(value, str) else 0)
            if len(stack) > MAX_DEPTH or weight > MAX_ENTRY:
                raise _bad_json(name, count, "it is too big or nested too deep")
            if event == "map_key":
                keys[-1] = value
                continue
            if event in ("end_map", "end_array"):
                keys.pop()
                done = stack.pop()
            else:
                done = {} if event == "start_map" else [] if event == "start_array" else value
                if stack and isinstance(stack[-1], dict):
                    stack[-1][keys[-1]] = done
                elif stack:
                    stack[-1].append(done)
                if event in ("start_map", "start_array"):
                    stack.append(done)
                    keys.append("")
            if not stack:
                yield section, done
    except (ijson.JSONError, SystemError) as error:  # the latter where a number has thousands of digits
        cause = str(error.args[0] if error.args else error).removeprefix("b'").replace("\\n", "\n").split("\n")[0]
        raise _bad_json(name, count, cause if isinstance(error, ijson.JSONError) else "a number is too long") from error


class _JsonSource:
    """A JSON file's bytes, without the mark that Windows puts first, and with no string longer than is sane.

    The parser keeps a whole string in memory.
    """

    def __init__(self, file: BinaryIO, check: Callable[[], None]) -> None:
        self._file, self._check = file, check
        self._first = True
        self._open = b""  # a backslash whose second half is yet to come
        self._run = 0  # bytes since the last quote

    def read(self, size: int) -> bytes:
        self._check()
        data = self._file.read(size)
        if self._first and size:
            self._first = False
            data = data.removeprefix(_BOM) or self._file.read(size)
        plain = _ESCAPE.sub(b"__", self._open + data)
        self._open = b"\\" if plain.endswith(b"\\") else b""
        quote = plain.rfind(b'"')
        self._run = self._run + len(plain) if quote < 0 else len(plain) - quote
        if self._run > MAX_LINE:
            raise Refused("bad_json", f"a string in the JSON file has more than {MAX_LINE:,} characters", status=422)
        return data


# -- refusals -----------------------------------------------------------------------------------------------------


def _problem(entry: zipfile.ZipInfo, name: str) -> str:
    """What speaks against a member of a zip."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        return "leads out of its folder; pack it with plain paths"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device; pack plain files"
    if entry.flag_bits & 0x2041:
        return "is encrypted; pack it without a password"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed in an uncommon way; pack it with the customary one (deflate)"
    if name.lower().endswith(_ARCHIVES):
        return "is an archive inside; unpack it and pack what is in it"
    return ""


def shown(name: str) -> str:
    """A name that anyone may have made up, harmless and short."""
    return repr(name) if len(name) <= 80 else f"{name[:40]!r}…{name[-40:]!r}"


def _too_many() -> Refused:
    return Refused("too_many_files", f"there are more than {MAX_FILES:,} files; divide them", status=413)


def _not_utf8(name: str, line: int) -> Refused:
    return Refused(
        "not_utf8", f"line {line} of {shown(name)} is not UTF-8; save the file with that encoding", status=422
    )


def _bad_json(name: str, count: int, cause: str) -> Refused:
    after = f"after {count:,} entries" if count else "at its start"
    return Refused("bad_json", f"{shown(name)} is no sound JSON in UTF-8, {after}: {cause}", status=422)
