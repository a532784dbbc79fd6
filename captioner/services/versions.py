"""Mapper versions: import, promote and delete them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings
from django.core.files import File
from django.db import Error as DatabaseError
from django.db import IntegrityError, transaction
from django.db.models import Max, ProtectedError

from captioner import audit, storage
from captioner.errors import Refused
from captioner.models import BaseModels, Embedding, MapperVersion, Promotion, Style, Worker
from captioner.reports import MapperReport, VersionReport
from captioner.services.base_models import sources_here
from captioner.services.captions import tidy_name
from captioner.services.styles import check_not_archived
from captioner.services.votes import worse_by_vote
from clipcap.fingerprint import file_sha256, same_weights

log = logging.getLogger(__name__)

LONGEST_CHECK = 300  # seconds for looking at an uploaded mapper
TRIED_ON = 30  # held-out photos, for what a file does not say
# Each gives some held-out photos of a style, so many at most, with people's captions; the app of the datasets adds it.
held_out_captions: list[Callable[[Style, int], Mapping[uuid.UUID, Sequence[str]]]] = []


def register_version(
    *, style: Style, path: Path, origin: MapperVersion.Origin, report: VersionReport | None = None
) -> MapperVersion:
    """File a mapper as the next version of a style. It is read first, which loads torch: for commands and workers.

    Raises:
        CheckpointError: the file is unusable.
    """
    with stored_version(style=style, path=path, origin=origin, report=report) as version:
        file_version(version)
    return version


@contextmanager
def stored_version(
    *,
    style: Style,
    path: Path,
    origin: MapperVersion.Origin,
    person: Any = None,
    report: VersionReport | None = None,
) -> Iterator[MapperVersion]:
    """A mapper read and stored, for the block to file as a version (`file_version`) in a transaction of its own.

    Apart from that, because on SQLite a transaction keeps all other writers waiting. If the block fails, the stored
    file goes again.

    Raises:
        CheckpointError: the file is unusable.
    """
    from clipcap.checkpoint import load_mapper

    metrics = report.to_json() if report else {}
    fields = {**load_mapper(path).described(), "metrics": metrics, "origin": origin, "created_by": person}
    with _stored_file(style, path, path.suffix, **fields) as version:
        yield version


def file_version(version: MapperVersion) -> None:
    """Give a stored mapper a row and its style's next number. Locks the style; may be repeated after a rollback."""
    with transaction.atomic():
        Style.objects.select_for_update().get(pk=version.style_id)  # numbers are given one at a time
        last = MapperVersion.objects.filter(style=version.style_id).aggregate(last=Max("number"))["last"]
        version.pk, version.number = None, (last or 0) + 1
        version.base_models = version.base_models or BaseModels.of(version.encoder, version.language_model)
        version.save(force_insert=True)


def import_version(
    *,
    style: Style,
    file: File[bytes],
    name: str,
    person: Any = None,
    normalize: bool | None = None,
    heads: int | None = None,
    encoder: str = "",
    base: BaseModels | None = None,
) -> MapperVersion:
    """File an uploaded mapper, in our format or the authors' `.pt`, as the next version of a style, together with the
    language-model weights that are in its file.

    It is stored in our format, in which a file says how its mapper was trained.

    Args:
        normalize: whether it was trained on embeddings divided by their norm. Our format says so itself; of the
            authors' it is what scores better on held-out photos of the style, or guessed where there are too few,
            unless given; the version's config says which.
        heads: of its Transformer, which the authors' format does not say; 8 unless given.
        encoder: that it was trained with, where the file does not say; else it is taken for any of the same size.
        base: the base models it is for, which need not be in service; those in service if left out.

    Raises:
        Refused: it cannot be used, or not be looked at in time, or the style is archived.
    """
    with _room(), tempfile.TemporaryDirectory(prefix="clipcap-mapper-") as folder:
        path, ours = Path(folder) / "mapper", Path(folder) / "ours.safetensors"
        with path.open("wb") as copy:
            for chunk in file.chunks():
                copy.write(chunk)
        photos = Path(folder) / "photos.json"
        photos.write_text(json.dumps(_held_out_photos(style)))
        known = {True: ["--normalize"], False: ["--no-normalize"], None: []}[normalize]
        known += [f"--heads={heads}"] if heads else []
        known += [f"--encoder={encoder}"] if encoder else []
        found = check_mapper(path, tidy_name(name), *known, "--write", str(ours), "--photos", str(photos), base=base)
        origin = MapperVersion.Origin.IMPORTED
        filed = _stored_file(
            style,
            ours if ours.exists() else path,
            ours.suffix,
            origin=origin,
            created_by=person,
            base_models=base,
            **found,
        )
        with filed as version, transaction.atomic():
            check_not_archived(style)
            file_version(version)
            audit.record(audit.Action.IMPORTED, f"version {version}", tidy_name(name), person)
        return version


def _held_out_photos(style: Style) -> list[dict[str, Any]]:
    """Held-out photos of a style as the command `check_mapper` takes them."""
    captions = {image: texts for find in held_out_captions for image, texts in find(style, TRIED_ON).items()}
    embeddings: dict[uuid.UUID, dict[str, list[float]]] = {image: {} for image in captions}
    for row in Embedding.objects.filter(image__in=captions):
        embeddings[row.image_id][row.encoder] = np.frombuffer(bytes(row.vector), "<f4").tolist()
    return [{"embeddings": embeddings[image], "captions": list(texts)} for image, texts in captions.items()]


def check_mapper(path: Path, name: str, *options: str, base: BaseModels | None = None) -> dict[str, Any]:
    """Whether a file is a mapper that fits base models, those in service if none are given, and writes a caption with
    them.

    A process of its own looks at it: that loads torch, and what a hostile file may do to it ends with it.

    Args:
        name: what the file is to be called in messages.
        options: of the command `check_mapper`.

    Returns:
        Fields of a version: `config`, `encoder` and `language_model`.

    Raises:
        Refused: it cannot be used, or not be looked at in time.
    """
    command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "check_mapper", str(path), *options]
    models = dict(zip(("CLIPCAP_ENCODER", "CLIPCAP_LANGUAGE_MODEL"), sources_here(base), strict=True))
    environment = {**os.environ, **models}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LONGEST_CHECK, check=False, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise Refused(
            "check_timed_out",
            f"the file could not be checked within {LONGEST_CHECK} seconds; try again",
            status=503,
        ) from error
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        log.warning("a mapper could not be checked", extra={"rc": done.returncode, "said": done.stderr[-2000:]})
        raise Refused("check_failed", "the file could not be checked; see the web server's log", status=500) from error
    if "error" in found:
        raise Refused("invalid_mapper", found["error"].replace(str(path), name), status=422, field="file")
    return found


@contextmanager
def _room() -> Iterator[None]:
    """Refuse what there is no room for.

    Raises:
        Refused: a file could not be written.
    """
    try:
        yield
    except OSError as error:
        raise Refused(
            "storage_full",
            f"the file could not be stored ({error.strerror or error}); free some space and try again",
            status=507,
        ) from error


@contextmanager
def _stored_file(
    style: Style, path: Path, suffix: str, *, config: dict[str, Any], **fields: Any
) -> Iterator[MapperVersion]:
    stored_as = {"sha256": file_sha256(path), "size": path.stat().st_size}
    version = MapperVersion(style=style, config=MapperReport.read(config).to_json(), **stored_as, **fields)
    name = f"{style.slug}-{uuid.uuid4()}{suffix}"
    stored = version.file.field.generate_filename(version, name)  # one that was not written whole is there in part
    try:
        with path.open("rb") as file:
            version.file.save(name, File(file), save=False)
        yield version
    except BaseException:
        # A connection lost at the very commit leaves open whether there is a row; where there is, its file stays.
        with suppress(DatabaseError):
            if not MapperVersion.objects.filter(file=stored).exists():
                version.file.storage.delete(stored)
        raise


def promote(*, version: MapperVersion, person: Any = None, reason: str = "") -> Promotion:
    """Put a version in service; workers use it from their next batch. Promoting an older one is a rollback. One for
    base models out of service is used once these are in service.

    Raises:
        Refused: it is in service already, it or its file is gone, or its style is archived; it was judged worse, was
            never in service, and nobody says why it should be; it was made for other models than the workers have
            loaded; or it came from elsewhere, was never in service or is no longer, and cannot write.
    """
    judged_worse = version.report.verdict == "worse" or worse_by_vote(version)
    if judged_worse and not reason.strip() and not version.promotions.exists():
        raise Refused(
            "reason_required",
            f"{version} was judged worse than the version in service; give a reason to promote it anyway",
            status=422,
            field="reason",
        )
    if not version.file.storage.exists(str(version.file.name)):
        raise Refused(
            "file_missing", f"the file of {version} is missing from the storage; it cannot be promoted", status=409
        )
    _check_loaded_models(version)
    imported = version.origin == MapperVersion.Origin.IMPORTED  # others were tried by their tests, or by their run
    if version.load_error or (imported and not version.promotions.exists()):
        _check_stored(version)
    with transaction.atomic():
        style = Style.objects.select_for_update().get(pk=version.style_id)
        if style.version_on(version.base_models) == version:
            raise Refused("already_active", f"{version} is already in service", status=409)
        check_not_archived(style)
        if not style.versions.filter(pk=version.pk).exists():
            raise Refused("not_found", f"{version} was deleted in the meantime; promote another version", status=404)
        audit.record(audit.Action.PROMOTED, version, reason.strip(), person)
        return Promotion.objects.create(style=style, version=version, person=person, reason=reason.strip())


def _check_loaded_models(version: MapperVersion) -> None:
    """Refuse a version that no living worker could load, unless it is for other base models than those in service."""
    if version.base_models and not version.base_models.is_in_service:
        return
    workers = [worker for worker in Worker.objects.alive("captions") if worker.models_loaded]
    for what, needed, loaded in (
        ("encoder", version.encoder, {worker.encoder for worker in workers if worker.encoder}),
        ("language model", version.language_model, {worker.language_model for worker in workers}),
    ):
        if needed and loaded and not any(same_weights(needed, identity) for identity in loaded):
            raise Refused(
                "other_models",
                f"{version} was trained for {what} {needed}, and the workers have loaded {', '.join(sorted(loaded))}; "
                f"retrain the style for that, or start workers with {needed}",
                status=409,
            )


def _check_stored(version: MapperVersion) -> None:
    with tempfile.TemporaryDirectory(prefix="clipcap-mapper-") as folder:
        try:
            path = version.copied_to(Path(folder))
        except (ValueError, OSError) as error:
            cause = (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
            raise Refused("file_damaged", f"the file of {version} cannot be used: {cause}", status=409) from error
        check_mapper(path, f"of {version}", base=version.base_models)


def delete_version(version: MapperVersion) -> None:
    """Delete a version that was never in service, with its file.

    Raises:
        Refused: it is in service or in the history, wrote a caption, or a run started from it.
    """
    try:
        with transaction.atomic():
            Style.objects.select_for_update().get(pk=version.style_id)  # nobody promotes it meanwhile
            if version.promotions.exists():
                raise Refused("version_in_use", f"{version} is or was in service and cannot be deleted", status=409)
            if version.captions.exists():
                raise Refused(
                    "version_in_use", f"{version} wrote captions that are kept and cannot be deleted", status=409
                )
            audit.record(audit.Action.DELETED, f"version {version}")
            version.delete()
            storage.discard([str(version.file.name)])
    except (ProtectedError, IntegrityError) as error:
        raise Refused(
            "version_in_use",
            f"{version} cannot be deleted: a training run started from it, or it has just come into use",
            status=409,
        ) from error
