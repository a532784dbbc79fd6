"""Imports of datasets: start, cancel and resume them."""

from __future__ import annotations

import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.core.files.base import File
from django.db import transaction

from captioner import audit
from captioner import services as captioner_services
from captioner.errors import Refused
from captioner.jobs.job import Status, clock, queued_at
from captioner.models import Style
from training.datasets.importer import DAMAGE
from training.datasets.keys import LONGEST_KEY, Keys
from training.datasets.preview import Preview, preview
from training.models import Import
from training.services.waiting import RUN_DEADLINE, queue_again, wake_workers

KNOWN = Keys()


def start_import(
    *, style: Style, file: File[bytes], name: str, keys: Keys = KNOWN, person: Any = None, holder: str = ""
) -> Import:
    """Queue a file of examples (see training/datasets/ for what it may be) for import.

    Args:
        keys: what its columns are called, where that is not known.
        holder: who works it off here and now; the import is claimed then, and no training worker sees it.

    Raises:
        Refused: the file is empty or cannot be stored, or the style is archived.
    """
    if not file.size:
        raise Refused("empty_file", "the file is empty; choose another", status=422)
    batch = _import(style, captioner_services.tidy_name(name), keys, person)
    stored = str(uuid.uuid4())  # what it holds is recognised by its content
    try:
        # Before the transaction, which on SQLite keeps all other writers waiting.
        batch.file.save(stored, file, save=False)
        with transaction.atomic():
            captioner_services.check_not_archived(style)
            batch.save()
            audit.record(audit.Action.IMPORTED, f"examples for {style}", batch.name, person)
            batch = _claimed(batch, holder)
    except BaseException as error:
        # By its name: a file that could not be written whole is there in part.
        with suppress(OSError):
            batch.file.storage.delete(batch.file.field.generate_filename(batch, stored))
        if isinstance(error, OSError):
            raise Refused(
                "storage_full",
                f"the file could not be stored ({error.strerror or error}); free some space and try again",
                status=507,
            ) from error
        raise
    transaction.on_commit(wake_workers)
    return batch


def preview_import(file: File[bytes], name: str, keys: Keys = KNOWN) -> Preview:
    """Look at the first rows of a file of examples, as an import would; nothing is stored.

    Args:
        keys: as in `start_import`.

    Raises:
        Refused: it is empty, holds no captions, is damaged, or takes too long to look at.
    """
    if not file.size:
        raise Refused("empty_file", "the file is empty; choose another", status=422)
    with tempfile.NamedTemporaryFile(prefix="clipcap-preview-") as copy:
        try:
            for part in file.chunks():
                copy.write(part)
            copy.flush()
            return preview(Path(copy.name), captioner_services.tidy_name(name), keys)
        except DAMAGE as error:
            raise Refused(
                "damaged", f"the file is damaged ({type(error).__name__}); create it again", status=422
            ) from error
        except OSError as error:
            raise Refused(
                "storage_full",
                f"the file could not be looked at ({error.strerror or error}); free some space and try again",
                status=507,
            ) from error


def start_folder_import(
    *, style: Style, folder: Path, keys: Keys = KNOWN, person: Any = None, holder: str = ""
) -> Import:
    """Queue a folder on the server for import. For its administrators alone: it can be any folder.

    Args:
        keys, holder: as in `start_import`.

    Raises:
        Refused: it is not a folder, or the style is archived.
    """
    folder = folder.resolve()
    name = str(folder)
    if name.encode(errors="replace").decode() != name:  # it could not be stored
        raise Refused("no_folder", f"the name of {name!r} is not UTF-8; rename it", status=422)
    if not folder.is_dir() or len(name) > 255:
        raise Refused("no_folder", f"{name!r} is not a directory or cannot be read; choose another", status=422)
    batch = _import(style, name, keys, person)
    with transaction.atomic():
        captioner_services.check_not_archived(style)
        batch.save()
        audit.record(audit.Action.IMPORTED, f"examples for {style}", batch.name, person)
        batch = _claimed(batch, holder)
    transaction.on_commit(wake_workers)
    return batch


def _import(style: Style, name: str, keys: Keys, person: Any) -> Import:
    columns = {"picture_column": keys.chosen_picture.strip(), "caption_column": keys.chosen_caption.strip()}
    if any(len(column) > LONGEST_KEY for column in columns.values()):
        raise Refused("bad_column", f"the name of a column can have at most {LONGEST_KEY} characters", status=422)
    now = clock("default")
    return Import(style=style, name=name, person=person, **columns, **queued_at(now, now + RUN_DEADLINE))


def _claimed(batch: Import, holder: str) -> Import:
    if holder:
        (batch,) = Import.objects.filter(pk=batch.pk).claim(holder, 1)
    return batch


def cancel_import(batch: Import) -> Import:
    """Cancel a queued or running import; the examples that came in stay.

    Raises:
        Refused: it has finished.
    """
    with transaction.atomic():
        if not Import.objects.filter(pk=batch.pk).cancel():
            raise Refused(
                "already_finished", f"an import with the status {batch.status} cannot be canceled", status=409
            )
        audit.record(audit.Action.IMPORTED, f"examples for {batch.style}", f"{batch.name} canceled")
    batch.refresh_from_db()
    return batch


def is_there(batch: Import) -> bool:
    """Whether what an import reads is there still: an upload goes when all of it is imported, or with `prune`."""
    if batch.file:
        return bool(batch.file.storage.exists(str(batch.file.name)))
    return Path(batch.name).is_absolute() and Path(batch.name).is_dir()  # no upload's name is absolute


def resume_import(batch: Import, holder: str = "") -> Import:
    """Queue a failed or canceled import again; it goes on behind the last row that was imported.

    Args:
        holder: as in `start_import`.

    Raises:
        Refused: it has neither failed nor been canceled, its file or folder is gone, or its style is archived.
    """
    if batch.status in (Status.FAILED, Status.CANCELED) and not is_there(batch):
        raise Refused(
            "file_missing", "the data of this import is gone, so it cannot be resumed; send it again", status=409
        )
    with transaction.atomic():
        captioner_services.check_not_archived(batch.style)
        queue_again(batch, "imports")
        audit.record(audit.Action.IMPORTED, f"examples for {batch.style}", f"{batch.name} resumed")
        batch = _claimed(batch, holder)
    transaction.on_commit(wake_workers)
    batch.refresh_from_db()
    return batch
