"""Importing examples of a style.

An import is worked off row by row, a row being one caption with its image. Rows are committed in chunks together with
how far it is, so that progress and examples cannot disagree, whatever stops the process: an import that is taken up
again goes on behind the last committed row. This module loads no torch.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import DatabaseError, IntegrityError, transaction
from django.db.models import Max, Q

from captioner import storage, uploads
from captioner.csv_lines import csv_line
from captioner.errors import Refused, cause_of, is_full
from captioner.models import Image
from training.datasets.annotations import MAX_ROWS, find_annotations
from training.datasets.files import DatasetFiles, files_of
from training.datasets.formats.base import Row
from training.datasets.names import Match, folded
from training.datasets.refusals import shown
from training.models import Example, Import, RejectedRow, is_held_out
from training.splits import settle

log = logging.getLogger(__name__)

CHUNK, CHUNK_SECONDS = 500, 2.0  # rows committed at once, or what was read in this time
LOOK = 2.0  # seconds between two looks whether the import was canceled

DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError)  # what reading a damaged zip raises
_STORED = re.compile(r"[0-9a-f]{64}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # SHA-256 or id


class _Stopped(Exception):
    """The import was canceled or given to another, or this process has to end."""


def run_import(batch: Import, stopping: Callable[[], bool], unfit: Callable[[str], str] = lambda text: "") -> None:
    """Bring a claimed import to its end: succeeded, or failed with the reason.

    Args:
        stopping: tells whether this process has to end; then the import is handed back, to go on from where it is.
        unfit: says why a caption can never be trained, or nothing.

    Raises:
        DatabaseError: the database is away; the lease runs out, and the import goes on later.
    """
    assert batch.lease_token is not None
    try:
        _Importer(batch, stopping, unfit).complete()
    except _Stopped:
        Import.objects.hand_back(batch.lease_token)
    except Refused as error:
        batch.fail(error.code, error.detail)
    except DAMAGE as error:
        batch.fail("damaged", f"the file is damaged ({type(error).__name__}); create it again and resend it")
    except OSError as error:
        code = "disk_full" if is_full(error) else "file_error"
        # Of an upload the name on this disk says nothing to anyone.
        told = OSError(error.errno, "", batch.name) if batch.file and error.filename else error
        batch.fail(code, f"{cause_of(told)}; imported examples are kept: fix the problem and resume")
    except DatabaseError:
        raise
    except Exception as error:
        log.exception("an import failed", extra={"import": batch.pk})
        batch.fail("internal_error", f"unexpected error ({type(error).__name__}); see the log")


@dataclass(frozen=True, slots=True)
class _ReadRow:
    """A row with the file that says it, and the picture's file; "" if there is none among the dataset's files."""

    row: Row
    file: str
    picture: str = ""


class _Importer:
    """One import, from its file to the examples."""

    def __init__(self, batch: Import, stopping: Callable[[], bool], unfit: Callable[[str], str]) -> None:
        assert batch.lease_token is not None
        self.batch, self.token, self.stopping, self.unfit = batch, batch.lease_token, stopping, unfit
        self.looked = time.monotonic()
        # The stored image of each file met so far, with whether its bytes hold it out, or why it is none: it is stored
        # once, however many captions it has. There are at most as many as files.
        self.pictures: dict[str, tuple[uuid.UUID, bool] | str] = {}

    def complete(self) -> None:
        """Read it all.

        Raises:
            _Stopped, Refused, OSError: all before the last committed row is kept.
        """
        with self._path() as path, closing(files_of(path, self.batch.name)) as self.files:
            self.found = find_annotations(self.files, self._check, self.batch.keys)
            self._record(total=self._survey())
            chunk: list[_ReadRow] = []
            since = time.monotonic()
            for file, row in islice(self._rows(), self.batch.rows, None):
                self._check()
                chunk.append(self._with_picture(file, row))
                if len(chunk) == CHUNK or time.monotonic() - since > CHUNK_SECONDS:
                    self._commit(chunk)
                    chunk, since = [], time.monotonic()
            self._commit(chunk)
        # The pictures are stored without their metadata; the file with it is not kept either.
        name = str(self.batch.file.name or "")
        with transaction.atomic():
            if self.batch.succeed(file=""):
                storage.discard([name])

    def _rows(self) -> Iterator[tuple[str, Row]]:
        """All rows, each with the file that it is from."""
        for source in self.found.annotations:
            for row in source.rows():
                yield source.name, row

    def _survey(self) -> int:
        """Read all rows once, before anything is imported: what is wrong with a file as a whole shows, and which
        pictures several references may mean, each by leaving out folders of its own.

        Returns:
            How many rows there are.

        Raises:
            Refused: a file cannot be read to its end, or there are too many rows.
        """
        total = 0
        left_out: dict[str, str] = {}
        self.contested: set[str] = set()
        for file, row in self._rows():
            self._check()
            total += 1
            if total > MAX_ROWS:
                raise Refused("too_many_rows", f"there are more than {MAX_ROWS:,} captions; split them", status=413)
            with suppress(Refused):
                match = None if row.problem else match_of(self.files, file, row)
                if match and left_out.setdefault(match.name, match.left_out) != match.left_out:
                    self.contested.add(match.name)
        return total

    @contextmanager
    def _path(self) -> Iterator[Path]:
        """Where on this disk the dataset lies."""
        file = self.batch.file
        if not file:
            folder = Path(self.batch.name)
            if not folder.is_absolute() or not folder.is_dir():  # no upload's name is absolute; its file is gone
                raise Refused("file_missing", "the file or folder of this import is missing; send it again", status=409)
            yield folder
            return
        with ExitStack() as stack:
            try:
                path = Path(file.path)
            except NotImplementedError:  # the storage is not a folder here, and a zip has to be read from its end
                copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="clipcap-import-"))
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

    def _with_picture(self, file: str, row: Row) -> _ReadRow:
        """The row with its picture; what speaks against it is its problem then.

        Raises:
            Refused: there is no room for the picture.
        """
        if problem := row.problem or self.unfit(row.text):
            return _ReadRow(Row(row.line, problem=problem), file)
        try:
            match = match_of(self.files, file, row)
        except Refused as error:
            return _ReadRow(Row(row.line, problem=error.detail), file)
        if match is None:
            return _ReadRow(row, file)
        if match.left_out and match.name in self.contested:
            problem = (
                f"{shown(row.ref)} does not exist, and {shown(match.name)} may belong to another row; give the path"
            )
            return _ReadRow(Row(row.line, problem=problem), file)
        if match.name not in self.pictures:
            self.pictures[match.name] = _picture(self.files, match.name)
        return _ReadRow(row, file, match.name)

    def _commit(self, chunk: list[_ReadRow]) -> None:
        try:
            self._save(chunk)
        except IntegrityError:
            # A picture was deleted between its storing and this. Once more, then, with the pictures stored anew.
            names = {read.picture for read in chunk if read.picture}
            self.pictures |= {name: _picture(self.files, name) for name in names}
            self._save(chunk)

    def _save(self, chunk: list[_ReadRow]) -> None:
        """Commit the examples of these rows and how far that is, together."""
        batch = self.batch
        stored = stored_pictures(read.row.ref for read in chunk if not read.picture)
        accepted: list[tuple[_ReadRow, uuid.UUID]] = []
        by_bytes: dict[uuid.UUID, bool] = {}
        declared: dict[uuid.UUID, bool] = {}
        rejected: list[RejectedRow] = []
        for read in chunk:
            row, file = read.row, repr(read.file)[1:-1][:255]
            picture = self.pictures[read.picture] if read.picture else stored.get(_key(row.ref), NO_FILE)
            if row.problem or isinstance(picture, str):
                reason = row.problem or f"{shown(row.ref)}: {picture}"
                rejected.append(RejectedRow(batch=batch, file=file, line=row.line, reason=reason[:300]))
                continue
            image, by_bytes[image] = picture
            accepted.append((read, image))
            held_out = self.found.held_out.get(read.picture) if row.held_out is None else row.held_out
            if held_out is not None:
                declared[image] = declared.get(image, False) or held_out
        with transaction.atomic():
            # First, since it locks the row: whoever cancels waits for this chunk.
            # An import that gets on has cost no workers.
            self._record(rows=batch.rows + len(chunk), **({"attempts": 1} if chunk else {}))
            split = settle(by_bytes, declared)
            newest = Example.objects.aggregate(newest=Max("pk"))["newest"] or 0
            examples = [
                Example(
                    style_id=batch.style_id,
                    image_id=image,
                    text=read.row.text,
                    source=Example.Source.IMPORTED if read.picture else Example.Source.STORED,
                    held_out=split[image],
                    batch=batch,
                )
                for read, image in accepted
            ]
            Example.objects.bulk_create(examples, ignore_conflicts=True)
            new = batch.examples.filter(pk__gt=newest).count()  # that call does not tell
            RejectedRow.objects.bulk_create(rejected)
            counts = {"accepted": batch.accepted + new, "duplicates": batch.duplicates + len(examples) - new}
            self._record(**counts)
        batch.rows, batch.accepted, batch.duplicates = batch.rows + len(chunk), counts["accepted"], counts["duplicates"]


NO_FILE = "there is no such file next to the annotations, and no stored image with this id or SHA-256"


def _picture(files: DatasetFiles, name: str) -> tuple[uuid.UUID, bool] | str:
    """The stored picture of a file with its split, or why there is none.

    Raises:
        Refused: there is no room for it.
        OSError: the whole dataset cannot be reached.
    """
    try:
        with files.open(name) as file:
            data = file.read(settings.MAX_UPLOAD_BYTES + 1)
        image = uploads.store(data)
    except Refused as error:
        if error.status == 507:
            raise
        return error.detail
    except DAMAGE:
        return "it is damaged in the zip; create the zip again"
    except OSError as error:
        if not files.is_there():
            raise
        return f"it cannot be read ({error.strerror or error})"
    return image.pk, is_held_out(image)


def _key(ref: str) -> str:
    """The id or SHA-256 that a reference to a stored picture holds, "" if it is none; it may end like a file's name."""
    name = ref.lower().partition(".")[0]
    return name if _STORED.fullmatch(name) else ""


def match_of(files: DatasetFiles, file: str, row: Row) -> Match | None:
    """The picture's file that a row of the annotations `file` means.

    Raises:
        Refused: several may be meant.
    """
    beside = file.rpartition("/")[0]
    if row.folder:
        if match := files.names.find(f"{row.folder}/{row.ref}", beside):
            return match
        match = files.names.find(row.ref, beside)
        return match and Match(match.name, folded(row.folder.rpartition("/")[2]))
    return files.names.find(row.ref, beside)


def stored_pictures(refs: Iterable[str]) -> dict[str, tuple[uuid.UUID, bool]]:
    """Those of these references that are the id or SHA-256 of a stored image, with its split."""
    keys = {key for ref in refs if (key := _key(ref))}
    if not keys:
        return {}
    digests = {key for key in keys if len(key) == 64}
    found: dict[str, tuple[uuid.UUID, bool]] = {}
    images = Image.objects.filter(Q(sha256__in=digests) | Q(pk__in=keys - digests)).only("sha256")
    for image in images.order_by("-created_at", "-pk"):  # of several senders' same picture the first counts
        found[image.sha256] = found[str(image.pk)] = (image.pk, is_held_out(image))
    return found


def rejected_csv(batch: Import) -> Iterator[str]:
    """The rejected rows of an import as lines of a CSV file, which a spreadsheet can open without running anything."""
    yield csv_line(("file", "line", "reason"))
    for row in batch.rejected.order_by("pk").iterator(2000):
        yield csv_line((row.file, row.line, row.reason))
