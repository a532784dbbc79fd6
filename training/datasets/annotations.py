"""Which of a dataset's files say which picture has which captions, recognised by their content."""

from __future__ import annotations

import re
from collections.abc import Callable

from captioner.errors import Refused
from training.datasets.files import HEAD, PACKED, DatasetFiles
from training.datasets.formats import flickr, tables
from training.datasets.formats.base import LOOK, Annotations, Unreadable
from training.datasets.formats.coco import Coco
from training.datasets.formats.json_lists import JsonLines, JsonList
from training.datasets.formats.karpathy import Karpathy
from training.datasets.formats.sidecars import sidecar
from training.datasets.keys import KEYS, Keys
from training.datasets.names import is_picture
from training.datasets.reading import BOM, entries
from training.datasets.refusals import not_utf8, shown

MAX_ROWS = 2_000_000
MAX_ANNOTATIONS = 1_000_000_000  # bytes of a file that holds captions

ACCEPTED = (
    "COCO or Karpathy JSON, CSV or TSV with a header, JSONL, a JSON list of files with their captions, Flickr8k's or "
    f"Flickr30k's tokens, or a .txt next to each picture; columns and keys may be {KEYS}"
)

_TABLES = (".csv", ".tsv", ".tab")
_DATA = (".json", ".jsonl", ".ndjson", *_TABLES)
# What lies about in archives; only where its name ends as data does it can be some.
_ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|changes|authors|contributors|citation|credits|terms)(?![a-z])",
    re.IGNORECASE,
)


class FoundAnnotations:
    """The annotations among a dataset's files, in the files' order, and the pictures that lists put into a split."""

    def __init__(self) -> None:
        self.annotations: list[Annotations] = []
        self.held_out: dict[str, bool] = {}


def find_annotations(files: DatasetFiles, check: Callable[[], None], keys: Keys) -> FoundAnnotations:
    """All files among these that hold captions.

    Args:
        keys: what columns are called.
        check: called between files and while long ones are read; may raise to stop.

    Raises:
        Refused: there is none, or it cannot be read.
    """
    files.check, files.keys = check, keys
    found = FoundAnnotations()
    problems: list[Refused] = []
    others: list[str] = []
    for name in files.names.all:
        check()
        if is_picture(name) or any(part.startswith(".") for part in name.split("/")):
            continue
        try:
            annotations = _recognised(files, name, found)
        except Refused as error:
            problems.append(error)
            annotations = Unreadable(files, name, error.detail) if name.lower().endswith(_DATA) else None
        if annotations:
            found.annotations.append(annotations)
        else:
            others.append(name)
    if all(isinstance(annotations, Unreadable) for annotations in found.annotations):
        if problems:
            raise problems[0]
        seen = f"; there is {', '.join(map(shown, others[:5]))}, which is not one of these" if others else ""
        where = f" with the chosen columns ({keys})" if str(keys) else ""
        raise Refused("no_annotations", f"no file with captions was found{where}{seen}; send {ACCEPTED}", status=422)
    return found


def _recognised(files: DatasetFiles, name: str, found: FoundAnnotations) -> Annotations | None:
    # Before anything of it is read: packed well, a few kilobytes become gigabytes to look through.
    if files.size(name) > MAX_ANNOTATIONS:
        raise Refused(
            "annotations_too_large", f"{shown(name)} has more than {MAX_ANNOTATIONS:,} bytes; split it", status=413
        )
    alone = len(files.names.all) == 1  # then it is meant, whatever it is called
    prose = not alone and not name.lower().endswith(_DATA)
    if prose and _ABOUT.match(name.rpartition("/")[2]):
        return None
    with files.open(name) as file:
        head = file.read(HEAD)
    beside = sidecar(files, name)
    try:
        _check_encoding(name, head)
        text = head.removeprefix(BOM).decode(errors="replace")
        held_out = flickr.split_of_list(name, text)
        if held_out is not None and beside is None:
            for picture in flickr.listed_pictures(files, name):
                found.held_out[picture] = found.held_out.get(picture, False) or held_out
            return None
        annotations = _json(files, name, text) if text.lstrip()[:1] in ("{", "[") else _table(files, name, text, prose)
    except Refused:
        if beside is None:
            raise
        annotations = None
    return annotations or beside


def _check_encoding(name: str, head: bytes) -> None:
    if head.startswith(PACKED):
        raise Refused("nested_archive", f"{shown(name)} is an archive; unpack it and send its contents", status=422)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise not_utf8(name, 1)


def _table(files: DatasetFiles, name: str, text: str, prose: bool) -> Annotations | None:
    dialect = tables.dialect_of(text, files.keys, prose=prose)
    if dialect:
        return tables.Table(files, name, dialect)
    return flickr.Tokens(files, name) if flickr.Tokens.fits(name, text) else None


def _json(files: DatasetFiles, name: str, text: str) -> Annotations | None:
    if JsonLines.fits(text, files.keys):
        return JsonLines(files, name)
    looked_at = 0
    with files.open(name) as file:
        for section, entry in entries(file, name, files.check):
            for kind in (JsonList, Karpathy, Coco):
                if kind.fits(section, entry, files.keys):
                    return kind(files, name)
            looked_at += section in ("", "annotations")
            if looked_at == LOOK:  # boxes or key points, say: millions may follow
                break
    return None
