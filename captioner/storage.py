"""Keeps files and rows consistent: files are deleted after their rows, and files or rows without the other are found.

A file is written before the row that names it and deleted after it, so a process killed in between leaves a file too
many, never a row without its file.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from django.apps import apps
from django.conf import settings
from django.core.files.storage import default_storage
from django.db import transaction
from django.db.models import FileField, Model
from django.utils import timezone

from captioner.errors import Refused
from captioner.models import DiscardedFile

log = logging.getLogger(__name__)

HEALTH = "health"  # the folder of the files by which /api/health/ready tries the storage
LEAST_AGE = timedelta(hours=1)  # of what is swept: no upload or import takes as long to get its row
PART = 500  # files looked at or deleted at a time
MOST_FAILURES = 3  # deletions that fail before the others are left for later: the storage is away
# What killed processes leave in the system's folder for temporary files: Django's uploads, and our own.
TEMPORARY = ("tmp*.upload*", "clipcap-mapper-*", "clipcap-import-*")


@dataclass(frozen=True)
class Findings:
    """What a check of the storage found; of the orphans and temporary files those that were old enough."""

    files: int  # named by rows
    missing: Sequence[str]  # those that are not in the storage, each with the row that names it
    orphans: Sequence[str]
    temporary: Sequence[Path]
    waiting: Sequence[DiscardedFile]  # to be deleted, which failed so far


def discard(names: Iterable[str]) -> None:
    """Delete files of the storage on commit. Those that it does not delete then have a row that says so, and are
    deleted by `finish_deletions`; so are those of a process that is killed meanwhile."""
    rows = DiscardedFile.objects.bulk_create(DiscardedFile(name=name) for name in names if name)
    transaction.on_commit(partial(_delete, rows), robust=True)  # the rows that named them are gone, whatever comes now


def finish_deletions() -> int:
    """Delete what could not be deleted when its row was.

    Returns:
        How many files are gone now.
    """
    total = 0
    while rows := list(DiscardedFile.objects.order_by("attempts", "pk")[:PART]):
        count = _delete(rows)
        total += count
        if count < len(rows):
            break
    return total


def check(older_than: timedelta, *, sweep: bool = False) -> Findings:
    """Compare the storage with the rows.

    Args:
        older_than: the least age of orphans and temporary files that are reported.
        sweep: delete these.

    Raises:
        Refused: `older_than` is so short that an upload might have no row yet; or all files are to be swept.
        OSError: the storage cannot be read. Other storages than folders raise errors of their own.
    """
    if older_than < LEAST_AGE:
        raise Refused("too_young", "files newer than an hour may belong to uploads in progress", status=422)
    before = timezone.now() - older_than
    # Listed first: what is written from now on gets its row later and is looked up by itself.
    fields = list(_file_fields())
    there = set(_listed({HEALTH, *(str(field.upload_to).strip("/") for _, field in fields)}))
    unnamed, missing, files = set(there), [], 0
    for model, field in fields:
        rows = model._base_manager.exclude(**{field.name: ""}).values_list("pk", field.name)
        for pk, name in rows.iterator(chunk_size=PART):
            files += 1
            unnamed.discard(name)
            if name not in there and not default_storage.exists(name) and rows.filter(pk=pk).exists():
                missing.append(f"{name} ({model._meta.verbose_name} {pk})")
    unnamed -= set(DiscardedFile.objects.values_list("name", flat=True))
    orphans = sorted(name for name in unnamed if _modified(name) < before)
    temporary = sorted(path for path in _temporary() if _changed(path) < before)
    if sweep:
        if orphans and len(missing) == files:
            raise Refused(
                "another_storage",
                "no file of the storage has a row, so the storage or the database belongs to another site; nothing was "
                "deleted",
                status=409,
            )
        for names in (orphans[start : start + PART] for start in range(0, len(orphans), PART)):
            discard(set(names).difference(_named(fields, names)))
        for path in temporary:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return Findings(files, missing, orphans, temporary, list(DiscardedFile.objects.order_by("pk")))


def _delete(rows: Sequence[DiscardedFile]) -> int:
    done: list[int] = []
    failures = 0
    for row in rows:
        try:
            _delete_file(row.name)
            done.append(row.pk)
        except Exception as error:  # every storage raises its own kinds
            failures += 1
            row.attempts, row.error = row.attempts + 1, f"{type(error).__name__}: {error}"[:300]
            row.save(update_fields=["attempts", "error"])
            log.warning("a file cannot be deleted; prune tries again", extra={"file": row.name, "error": error})
            if failures == MOST_FAILURES:
                break
    DiscardedFile.objects.filter(pk__in=done).delete()
    return len(done)


def _delete_file(name: str) -> None:
    try:
        folder = Path(default_storage.path(name)).parent
    except NotImplementedError:  # it is not a folder, and says itself when it is away
        pass
    else:
        # A folder that is not mounted looks like one in which the file is gone already.
        if not folder.is_dir():
            raise FileNotFoundError(f"folder {folder} does not exist; the storage is unavailable")
    default_storage.delete(name)


def _file_fields() -> Iterator[tuple[type[Model], FileField]]:
    for model in apps.get_models():
        for field in model._meta.concrete_fields:
            if isinstance(field, FileField):
                yield model, field


def _listed(folders: Iterable[str]) -> Iterator[str]:
    for folder in folders:
        try:
            _, names = default_storage.listdir(folder)
        except FileNotFoundError:  # nothing was ever stored in it
            continue
        yield from (f"{folder}/{name}" for name in names)


def _named(fields: Sequence[tuple[type[Model], FileField]], names: Sequence[str]) -> set[str]:
    """Those of the files that have a row by now."""
    return {
        name
        for model, field in fields
        for name in model._base_manager.filter(**{f"{field.name}__in": names}).values_list(field.name, flat=True)
    }


def _modified(name: str) -> datetime:
    try:
        return default_storage.get_modified_time(name)
    except FileNotFoundError:  # gone since it was listed
        return timezone.now()


def _temporary() -> Iterator[Path]:
    for pattern in TEMPORARY:
        yield from Path(tempfile.gettempdir()).glob(pattern)
    yield from settings.INDEX.glob("tmp*")  # an index that was being made again


def _changed(path: Path) -> datetime:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:  # gone, or nobody's business
        return timezone.now()
