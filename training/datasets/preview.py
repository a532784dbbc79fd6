"""What a file of examples would give, before anything of it is stored."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from captioner.errors import Refused
from training.datasets.annotations import find_annotations
from training.datasets.files import files_of
from training.datasets.formats.base import Unreadable
from training.datasets.importer import NO_FILE, match_of, stored_pictures
from training.datasets.refusals import shown

LOOKED_AT, SHOWN = 1000, 10  # rows
PATIENCE = 10.0  # seconds


@dataclass(frozen=True)
class Recognised:
    """A file with captions: its format, and which of its columns are used."""

    name: str
    format: str
    columns: str


@dataclass(frozen=True)
class Sample:
    """A row as it would become an example. `held_out` is None where the dataset does not say."""

    photo: str
    text: str
    held_out: bool | None


@dataclass(frozen=True)
class Rejected:
    """A row that would become none, and why."""

    file: str
    line: int
    reason: str


@dataclass
class Preview:
    """The first rows of a file.

    looked_at: how many captions were looked at; `usable` of them would become examples.
    more: whether there are further ones.
    """

    files: list[Recognised]
    looked_at: int = 0
    usable: int = 0
    more: bool = False
    samples: list[Sample] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


def preview(path: Path, name: str) -> Preview:
    """Look at the first rows of a dataset; nothing is stored.

    Args:
        name: what to call it in messages if it is annotations alone.

    Raises:
        Refused: it holds no captions, cannot be read, or takes too long to look at.
        OSError, zipfile.BadZipFile, zlib.error, EOFError: it cannot be read.
    """
    ends = time.monotonic() + PATIENCE

    def check() -> None:
        if time.monotonic() > ends:
            raise Refused("preview_timed_out", "the file is too large to be checked here; import it", status=422)

    with closing(files_of(path, name)) as files:
        found = find_annotations(files, check)
        preview = Preview([Recognised(a.name, a.format, a.columns()) for a in found.annotations][:SHOWN])
        readable = [a for a in found.annotations if not isinstance(a, Unreadable)]
        rows = chain.from_iterable(((source.name, row) for row in source.rows()) for source in readable)
        for file, row in islice(rows, LOOKED_AT + 1):
            check()
            if preview.looked_at == LOOKED_AT:
                preview.more = True
                break
            preview.looked_at += 1
            problem, photo = row.problem, ""
            if not problem:
                try:
                    match = match_of(files, file, row)
                except Refused as error:
                    problem = error.detail
                else:
                    photo = match.name if match else row.ref
                    if match is None and not stored_pictures([row.ref]):
                        problem = f"{shown(row.ref)}: {NO_FILE}"
            if problem:
                if len(preview.rejected) < SHOWN:
                    preview.rejected.append(Rejected(file, row.line, problem))
                continue
            preview.usable += 1
            if len(preview.samples) < SHOWN:
                held_out = found.held_out.get(photo) if row.held_out is None else row.held_out
                preview.samples.append(Sample(photo, row.text, held_out))
    return preview
