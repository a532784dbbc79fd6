"""Importing examples of a style, and what its dataset looks like.

An import is worked off row by row, a row being one caption with its image. Rows are committed in chunks together with
how far it is, so that progress and examples cannot disagree, whatever stops the process: an import that is taken up
again goes on behind the last committed row. This module loads no torch.
"""

from __future__ import annotations

import csv
import errno
import io
import logging
import random
import re
import shutil
import tempfile
import time
import uuid
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import DatabaseError, IntegrityError, transaction
from django.db.models import Count, Max, Q

from captioner import uploads
from captioner.errors import Refused
from captioner.models import Image, Style
from training.annotations import MAX_ROWS, Annotations, Files, Row, find_annotations, files_of
from training.models import Example, Import, RefusedRow, is_held_out

log = logging.getLogger(__name__)

CHUNK, CHUNK_SECONDS = 500, 2.0  # rows committed at once, or what was read in this time
LOOK = 2.0  # seconds between two looks whether the import was canceled
SAMPLES, MOST = 12, 50  # examples and words shown of a dataset

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError)  # what reading a damaged zip raises
_STORED = re.compile(r"(?P<sha256>[0-9a-f]{64})|(?P<id>[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


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
        with self._files() as files:
            annotations = find_annotations(files, self._check)
            total = 0
            for _ in annotations.rows():  # what is wrong with the file as a whole shows before anything is imported
                total += 1
                self._check()
                if total > MAX_ROWS:
                    raise Refused("too_many_rows", f"there are more than {MAX_ROWS:,} captions; divide them", status=413)
            self._record(total=total)
            chunk: list[Row] = []
            since = time.monotonic()
            for row in islice(annotations.rows(), self.batch.rows, None):
                self._check()
                chunk.append(row)
                self._picture(files, annotations, row)
                if len(chunk) == CHUNK or time.monotonic() - since > CHUNK_SECONDS:
                    self._commit(files, annotations, chunk)
                    chunk, since = [], time.monotonic()
            self._commit(files, annotations, chunk)
        # The pictures are stored without their metadata; the file with it is not kept either.
        file = self.batch.file
        name, storage = file.name, file.storage
        if self.batch.succeed(file="") and name:
            with suppress(OSError):
                storage.delete(name)

    @contextmanager
    def _files(self) -> Iterator[Files]:
        batch = self.batch
        if not batch.file:
            if not Path(batch.name).is_absolute():  # no upload's name is; its file was taken away
                raise Refused("file_missing", "the file of this import is gone; send it again", status=409)
            if not Path(batch.name).is_dir():
                raise Refused("file_missing", f"the folder {batch.name!r} is not there; name another", status=409)
            with closing(files_of(Path(batch.name), batch.name)) as files:
                yield files
            return
        # A zip is read from its end; storage may be able to give no more than one pass. So it is copied here.
        with tempfile.NamedTemporaryFile(prefix="import-") as copy:
            with batch.file.open("rb") as stored:
                for part in stored.chunks():
                    self._check()
                    copy.write(part)
            copy.flush()
            with closing(files_of(Path(copy.name), batch.name)) as files:
                yield files

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

    def _picture(self, files: Files, annotations: Annotations, row: Row) -> str | None:
        """Store the picture that a row means, if it is a file and not stored yet.

        Returns:
            The file's name; None if there is none.

        Raises:
            Refused: there is no room for it.
        """
        if row.problem:
            return None
        name = None
        if row.folder:
            name = files.find(f"{row.folder}/{row.ref}", annotations.folder)
        name = name or files.find(row.ref, annotations.folder)
        if name is not None and name not in self.pictures:
            self.pictures[name] = _stored_picture(files, name)
        return name
