"""Importing examples of a style.

An import is worked off row by row, a row being one caption with its image. Rows are committed in chunks together with
how far it is, so that progress and examples cannot disagree, whatever stops the process: an import that is taken up
again goes on behind the last committed row. This module loads no torch.
"""

from __future__ import annotations

import csv
import errno
import io
import logging
import re
import tempfile
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import DatabaseError, IntegrityError, transaction
from django.db.models import Max, Q

from captioner import uploads
from captioner.errors import Refused
from captioner.models import Image
from training.datasets.annotations import MAX_ROWS, Files, Row, files_of, find_annotations, shown
from training.models import Example, Import, RefusedRow, is_held_out

log = logging.getLogger(__name__)

CHUNK, CHUNK_SECONDS = 500, 2.0  # rows committed at once, or what was read in this time
LOOK = 2.0  # seconds between two looks whether the import was canceled

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError)  # what reading a damaged zip raises
_STORED = re.compile(r"[0-9a-f]{64}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # SHA-256 or id


class _Stopped(Exception):
    """The import was canceled or given to another, or this process has to end."""


def work_off(batch: Import, stopping: Callable[[], bool]) -> None:
    """Bring a claimed import to its end: succeeded, or failed with the reason.

    Args:
        stopping: tells whether this process has to end; then the import is handed back, to go on from where it is.

    Raises:
        DatabaseError: the database is away; the lease runs out, and the import goes on later.
    """
    assert batch.lease_token is not None
    try:
        _Importer(batch, stopping).complete()
    except _Stopped:
        Import.objects.hand_back(batch.lease_token)
    except Refused as error:
        batch.fail(error.code, error.detail)
    except _DAMAGE as error:
        batch.fail("damaged", f"the file is damaged ({type(error).__name__}); make it anew and send it again")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cause = error.strerror or str(error)
        if error.filename:  # of an upload the path on this disk says nothing to anyone
            cause += f": {batch.name if batch.file else Path(error.filename).name}"
        batch.fail("disk_full" if full else "file_error", f"{cause}; what was imported is kept: mend it and resume")
    except DatabaseError:
        raise
    except Exception as error:
        log.exception("an import failed", extra={"import": batch.pk})
        batch.fail("internal_error", f"something unforeseen went wrong ({type(error).__name__}); see the log")


class _Importer:
    """One import, from its file to the examples."""

    def __init__(self, batch: Import, stopping: Callable[[], bool]) -> None:
        assert batch.lease_token is not None
        self.batch, self.token, self.stopping = batch, batch.lease_token, stopping
        self.looked = time.monotonic()
        # The picture of each file met so far, with its split, or why it is none: it is stored once, however many
        # captions it has. There are at most as many as files.
        self.pictures: dict[str, tuple[uuid.UUID, bool] | str] = {}

    def complete(self) -> None:
        """Read it all.

        Raises:
            _Stopped, Refused, OSError: all before the last committed row is kept.
        """
        with self._path() as path, closing(files_of(path, self.batch.name)) as files:
            annotations = find_annotations(files, self._check)
            total = 0
            for _ in annotations.rows():  # what is wrong with the file as a whole shows before anything is imported
                total += 1
                self._check()
                if total > MAX_ROWS:
                    raise Refused(
                        "too_many_rows", f"there are more than {MAX_ROWS:,} captions; divide them", status=413
                    )
            self._record(total=total)
            chunk: list[tuple[Row, str]] = []
            since = time.monotonic()
            for row in islice(annotations.rows(), self.batch.rows, None):
                self._check()
                chunk.append(self._with_picture(files, annotations.folder, row))
                if len(chunk) == CHUNK or time.monotonic() - since > CHUNK_SECONDS:
                    self._commit(files, annotations.name, chunk)
                    chunk, since = [], time.monotonic()
            self._commit(files, annotations.name, chunk)
        # The pictures are stored without their metadata; the file with it is not kept either.
        file = self.batch.file
        name, storage = file.name, file.storage
        if self.batch.succeed(file="") and name:
            with suppress(OSError):
                storage.delete(name)

    @contextmanager
    def _path(self) -> Iterator[Path]:
        """Where on this disk the dataset lies."""
        file = self.batch.file
        if not file:
            folder = Path(self.batch.name)
            if not folder.is_absolute() or not folder.is_dir():  # no upload's name is absolute; its file is gone
                raise Refused("file_missing", "the file or folder of this import is gone; send it again", status=409)
            yield folder
            return
        with ExitStack() as stack:
            try:
                path = Path(file.path)
            except NotImplementedError:  # the storage is no folder here, and a zip has to be read from its end
                copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="import-"))
                with file.open("rb") as stored:
                    for part in stored.chunks():
                        self._check()
                        copy.write(part)
                copy.flush()
                path = Path(copy.name)
            yield path

    def _check(self) -> None:
        """Raise `_Stopped` if there is no more to be done here."""
        if self.stopping():
            raise _Stopped
        if time.monotonic() - self.looked > LOOK:
            self.looked = time.monotonic()
            if not Import.objects.held(self.token).exists():
                raise _Stopped

    def _record(self, **changes: Any) -> None:
        if not Import.objects.held(self.token).update(**changes):
            raise _Stopped

    def _with_picture(self, files: Files, folder: str, row: Row) -> tuple[Row, str]:
        """The row, and the file that it names, "" if there is none; its picture is in `pictures` then.

        Raises:
            Refused: there is no room for the picture.
        """
        if row.problem:
            return row, ""
        try:
            name = files.find(f"{row.folder}/{row.ref}", folder) if row.folder else None
            name = name or files.find(row.ref, folder) or ""
        except Refused as error:
            return Row(row.line, problem=error.detail), ""
        if name and name not in self.pictures:
            self.pictures[name] = _picture(files, name)
        return row, name

    def _commit(self, files: Files, file: str, chunk: list[tuple[Row, str]]) -> None:
        try:
            self._save(file, chunk)
        except IntegrityError:
            # A picture was deleted between its storing and this. Once more, then, with the pictures stored anew.
            names = {name for _, name in chunk if name}
            self.pictures |= {name: _picture(files, name) for name in names}
            self._save(file, chunk)

    def _save(self, file: str, chunk: list[tuple[Row, str]]) -> None:
        """Commit the examples of these rows and how far that is, together."""
        batch = self.batch
        stored = _stored_pictures(row.ref for row, name in chunk if not name)
        examples: list[Example] = []
        refused: list[RefusedRow] = []
        for row, name in chunk:
            picture = self.pictures[name] if name else stored.get(_key(row.ref), _NO_FILE)
            if row.problem or isinstance(picture, str):
                reason = row.problem or f"{shown(row.ref)}: {picture}"
                refused.append(RefusedRow(batch=batch, file=repr(file)[1:-1][:255], line=row.line, reason=reason[:300]))
                continue
            image, held_out = picture
            examples.append(
                Example(
                    style_id=batch.style_id,
                    image_id=image,
                    text=row.text,
                    source=Example.Source.IMPORTED if name else Example.Source.STORED,
                    held_out=held_out,
                    batch=batch,
                )
            )
        with transaction.atomic():
            # First, since it locks the row: whoever cancels waits for this chunk.
            self._record(rows=batch.rows + len(chunk))
            newest = Example.objects.aggregate(newest=Max("pk"))["newest"] or 0
            Example.objects.bulk_create(examples, ignore_conflicts=True)
            new = batch.examples.filter(pk__gt=newest).count()  # that call does not tell
            RefusedRow.objects.bulk_create(refused)
            accepted, duplicates = batch.accepted + new, batch.duplicates + len(examples) - new
            self._record(accepted=accepted, duplicates=duplicates)
        batch.rows, batch.accepted, batch.duplicates = batch.rows + len(chunk), accepted, duplicates


_NO_FILE = "there is no such file beside the annotations, and no stored image of this id or SHA-256"


def _picture(files: Files, name: str) -> tuple[uuid.UUID, bool] | str:
    """The stored picture of a file with its split, or why there is none.

    Raises:
        Refused: there is no room for it.
    """
    try:
        with files.open(name) as file:
            data = file.read(settings.MAX_UPLOAD_BYTES + 1)
        image = uploads.store(data)
    except Refused as error:
        if error.status == 507:
            raise
        return error.detail
    except _DAMAGE:
        return "it is damaged in the zip; pack it again"
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    return image.pk, is_held_out(image)


def _key(ref: str) -> str:
    """The id or SHA-256 that a reference to a stored picture holds, "" if it is none; it may end like a file's name."""
    name = ref.lower().partition(".")[0]
    return name if _STORED.fullmatch(name) else ""


def _stored_pictures(refs: Iterable[str]) -> dict[str, tuple[uuid.UUID, bool]]:
    keys = {key for ref in refs if (key := _key(ref))}
    if not keys:
        return {}
    digests = {key for key in keys if len(key) == 64}
    found: dict[str, tuple[uuid.UUID, bool]] = {}
    for image in Image.objects.filter(Q(sha256__in=digests) | Q(pk__in=keys - digests)).only("sha256"):
        found[image.sha256] = found[str(image.pk)] = (image.pk, is_held_out(image))
    return found


def refused_csv(batch: Import) -> Iterator[str]:
    """The refused rows of an import as lines of a CSV file, which a spreadsheet can open without running anything."""
    yield _csv_line("file", "line", "reason")
    for row in batch.refused.order_by("pk").iterator(2000):
        yield _csv_line(row.file, str(row.line), row.reason)


def _csv_line(*cells: str) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(
        f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell for cell in cells
    )
    return line.getvalue()
