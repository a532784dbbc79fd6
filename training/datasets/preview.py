"""What a file of examples would give, before anything of it is stored."""

from __future__ import annotations

import base64
import time
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from django.conf import settings
from django.urls import reverse

from captioner import uploads
from captioner.errors import Refused
from training.datasets.annotations import find_annotations
from training.datasets.columns import Column, columns_of
from training.datasets.files import DatasetFiles, files_of
from training.datasets.formats.base import Unreadable
from training.datasets.importer import DAMAGE, NO_FILE, match_of, stored_pictures
from training.datasets.keys import Keys
from training.datasets.refusals import shown

LOOKED_AT, SHOWN = 1000, 10  # rows
SIDE = 96  # pixels of a thumbnail
PATIENCE = 10.0  # seconds


@dataclass(frozen=True)
class Recognised:
    """A file with captions: its format, and which of its columns are used."""

    name: str
    format: str
    columns: str


@dataclass(frozen=True)
class PreviewRow:
    """A row as it would become an example.

    held_out: None where the dataset does not say.
    thumbnail: the picture as a data: URL, or the URL of a stored one's thumbnail.
    """

    photo: str
    text: str
    held_out: bool | None
    thumbnail: str


@dataclass(frozen=True)
class Rejected:
    """A row that would become none, and why."""

    file: str
    line: int
    reason: str


@dataclass
class Preview:
    """The first rows of a file.

    files: none where no columns with known names were found; `columns` are those to choose from then.
    looked_at: how many captions were looked at; `usable` of them would become examples.
    more: whether there are further ones.
    """

    files: list[Recognised]
    columns: list[Column] = field(default_factory=list)
    looked_at: int = 0
    usable: int = 0
    more: bool = False
    samples: list[PreviewRow] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


def preview(path: Path, name: str, keys: Keys) -> Preview:
    """Look at the first rows of a dataset; nothing is stored.

    Args:
        keys: what columns are called.
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
        columns = columns_of(files)
        try:
            found = find_annotations(files, check, keys)
        except Refused as error:
            if error.code != "no_annotations" or not columns:
                raise
            return Preview([], columns)
        preview = Preview([Recognised(a.name, a.format, a.columns()) for a in found.annotations][:SHOWN], columns)
        readable = [a for a in found.annotations if not isinstance(a, Unreadable)]
        rows = chain.from_iterable(((source.name, row) for row in source.rows()) for source in readable)
        for file, row in islice(rows, LOOKED_AT + 1):
            check()
            if preview.looked_at == LOOKED_AT:
                preview.more = True
                break
            preview.looked_at += 1
            problem, photo, thumbnail = row.problem, "", ""
            if not problem:
                try:
                    match = match_of(files, file, row)
                    photo = match.name if match else row.ref
                    if match and len(preview.samples) < SHOWN:
                        thumbnail = _thumbnail(files, match.name)
                except Refused as error:
                    problem = error.detail
                else:
                    if match is None:
                        stored = next(iter(stored_pictures([row.ref]).values()), None)
                        problem = "" if stored else f"{shown(row.ref)}: {NO_FILE}"
                        thumbnail = reverse("image-thumbnail", args=stored[:1]) if stored else ""
            if problem:
                if len(preview.rejected) < SHOWN:
                    preview.rejected.append(Rejected(file, row.line, problem))
                continue
            preview.usable += 1
            if len(preview.samples) < SHOWN:
                held_out = found.held_out.get(photo) if row.held_out is None else row.held_out
                preview.samples.append(PreviewRow(photo, row.text, held_out, thumbnail))
    return preview


def _thumbnail(files: DatasetFiles, name: str) -> str:
    """A picture among the files, small, as a data: URL.

    Raises:
        Refused: it is not a picture, or cannot be read.
    """
    try:
        with files.open(name) as file:
            data = file.read(settings.MAX_UPLOAD_BYTES + 1)
        small = uploads.thumbnail_of(data, SIDE)
    except DAMAGE as error:
        raise Refused("damaged", f"{shown(name)}: it is damaged; create the zip again", status=422) from error
    except Refused as error:
        raise Refused(error.code, f"{shown(name)}: {error.detail}", status=error.status) from error
    return f"data:image/jpeg;base64,{base64.b64encode(small).decode()}"
