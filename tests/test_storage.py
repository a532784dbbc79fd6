"""Files and the rows that name them: what one has and the other does not know is found, and goes."""

import io
import os
import tempfile
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage, default_storage
from django.core.management import CommandError, call_command
from django.utils import timezone

from captioner import services, uploads
from captioner.models import Caption, DiscardedFile, Image, MapperVersion, Style, Viewer
from training import services as training_services
from training.models import Import

pytestmark = [pytest.mark.usefixtures("both_databases"), pytest.mark.django_db(transaction=True)]


def check_storage(*arguments: str) -> str:
    said = io.StringIO()
    call_command("check_storage", *arguments, stdout=said)
    return said.getvalue()


def grow_old(path: Path, hours: float = 25) -> None:
    os.utime(path, (time.time() - hours * 3600,) * 2)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files, empty."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_files_without_a_row_are_reported_and_swept_when_they_are_old(media: Path, photo: bytes) -> None:
    image = uploads.store(photo)
    kept = files_in(media)
    for name in ("images/killed.jpg", "thumbnails/killed.jpg", "mappers/killed.safetensors", "imports/1", "health/1"):
        default_storage.save(name, ContentFile(b"half a fi"))
        grow_old(media / name)
    default_storage.save("images/uploaded-now.jpg", ContentFile(b"whole"))
    default_storage.save("others/not-ours.txt", ContentFile(b"another program's"))
    grow_old(media / "others/not-ours.txt")
    for name in kept:
        grow_old(media / name)

    said = check_storage()
    assert "2 files belong to rows, 0 of them are missing\n5 files have no row\n" in said
    assert "  images/killed.jpg\n" in said
    assert "uploaded-now" not in said
    assert len(files_in(media)) == 9

    assert "5 files have no row, swept\n" in check_storage("--sweep")
    assert files_in(media) == {*kept, "images/uploaded-now.jpg", "others/not-ours.txt"}
    assert str(image.file.name) in kept


def test_rows_whose_file_is_missing_are_reported(media: Path, photo: bytes) -> None:
    image = uploads.store(photo)
    (media / str(image.thumbnail.name)).unlink()

    said = io.StringIO()
    with pytest.raises(CommandError, match="restore"):
        call_command("check_storage", stdout=said)

    assert "2 files belong to rows, 1 of them are missing\n" in said.getvalue()
    assert f"  {image.thumbnail.name} (image {image.pk})\n" in said.getvalue()


def test_an_upload_that_gets_its_row_during_the_check_is_neither_orphan_nor_missing(
    media: Path, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("images", "thumbnails"):
        (media / folder).mkdir(parents=True)
    listdir = FileSystemStorage.listdir

    def upload_meanwhile(storage: Any, folder: str) -> Any:
        listed = listdir(storage, folder)
        uploads.store(photo)
        for name in files_in(media):
            grow_old(media / name)
        return listed

    monkeypatch.setattr(FileSystemStorage, "listdir", upload_meanwhile)
    assert "2 files belong to rows, 0 of them are missing\n0 files have no row" in check_storage("--sweep")
    assert len(files_in(media)) == 2


@pytest.mark.parametrize("hours", ["0", "0.9", "nan", "soon"])
def test_an_age_at_which_an_upload_may_have_no_row_is_refused(media: Path, hours: str) -> None:
    with pytest.raises(CommandError, match=r"hour"):
        check_storage("--sweep", "--older-than", hours)


def test_nothing_is_swept_where_not_one_file_has_a_row(media: Path, photo: bytes) -> None:
    image = uploads.store(photo)
    names = files_in(media)
    for name in names:
        grow_old(media / name)
    Image.objects.filter(pk=image.pk).delete()  # as in a database that belongs to another storage

    with pytest.raises(CommandError, match="another site"):
        check_storage("--sweep")
    assert files_in(media) == names


def test_temporary_files_of_killed_uploads_are_swept(media: Path, temporary: Path) -> None:
    (temporary / "tmpabcd1234.upload.jpg").write_bytes(b"half a photo")
    (temporary / "clipcap-import-abc").write_bytes(b"half a zip")
    (temporary / "clipcap-mapper-abc").mkdir()
    (temporary / "clipcap-mapper-abc/mapper.pt").write_bytes(b"half a mapper")
    (temporary / "another-program").write_bytes(b"not ours")
    for path in temporary.iterdir():
        grow_old(path)
    (temporary / "tmpefgh5678.upload.jpg").write_bytes(b"coming in")

    assert "3 temporary files were left behind, swept\n" in check_storage("--sweep")
    assert {path.name for path in temporary.iterdir()} == {"another-program", "tmpefgh5678.upload.jpg"}


def test_what_a_real_upload_leaves_when_its_process_is_killed_is_known(temporary: Path) -> None:
    from django.core.files.uploadedfile import TemporaryUploadedFile

    from captioner.storage import TEMPORARY

    file = TemporaryUploadedFile("a photo.jpg", "image/jpeg", 9, None)
    assert any(Path(file.temporary_file_path()).match(pattern) for pattern in TEMPORARY)


def test_a_picture_deleted_while_the_storage_is_away_is_finished_later(
    style: Style, media: Path, photo: bytes, tmp_path: Path
) -> None:
    promoted(style)
    services.request_captions(viewer=Viewer(), images=[services.Upload(photo)])
    caption = Caption.objects.get()
    names = {str(caption.image.file.name), str(caption.image.thumbnail.name)}
    media.rename(tmp_path / "elsewhere")
    media.mkdir()  # as where a network's folder is not mounted

    services.delete_caption(Viewer(), caption.pk)

    assert not Image.objects.exists()
    assert set(DiscardedFile.objects.values_list("name", flat=True)) == names
    assert "does not exist" in DiscardedFile.objects.earliest("pk").error
    assert "2 deleted files are still there" in said_though_missing()

    media.rmdir()
    (tmp_path / "elsewhere").rename(media)
    assert names <= files_in(media)
    services.prune()
    assert not names & files_in(media)
    assert not DiscardedFile.objects.exists()


def test_a_deletion_that_a_kill_interrupts_is_finished_later(
    media: Path, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = uploads.store(photo)
    Image.objects.update(created_at=timezone.now() - timedelta(days=1))
    with monkeypatch.context() as patch:
        patch.setattr("captioner.storage._delete", lambda rows: 0)  # killed right after the commit
        services.prune()
    assert not Image.objects.exists()
    assert str(image.file.name) in files_in(media)

    services.prune()
    assert files_in(media) == set()


def test_a_file_that_cannot_be_deleted_keeps_none_of_the_others(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = [default_storage.save(f"images/{number}.jpg", ContentFile(b"x")) for number in range(5)]
    delete = FileSystemStorage.delete

    def refuse_some(storage: Any, name: str) -> None:
        if name in stuck:
            raise PermissionError("it is somebody else's")
        delete(storage, name)

    monkeypatch.setattr(FileSystemStorage, "delete", refuse_some)
    DiscardedFile.objects.bulk_create(DiscardedFile(name=name) for name in stuck)
    last = default_storage.save("images/last.jpg", ContentFile(b"x"))
    DiscardedFile.objects.create(name=last)
    for _ in range(3):
        services.prune()

    assert set(DiscardedFile.objects.values_list("name", flat=True)) == set(stuck)


def test_versions_and_imports_go_the_same_way(style: Style, media: Path, tmp_path: Path) -> None:
    version = promoted(style, in_service=False)
    batch = training_services.start_import(style=style, file=ContentFile(b"text"), name="captions.csv")
    Import.objects.update(status="failed", error_code="x", finished_at=timezone.now() - timedelta(days=9))
    media.rename(tmp_path / "elsewhere")

    services.delete_version(version)
    training_services.prune(timedelta(days=1))

    assert set(DiscardedFile.objects.values_list("name", flat=True)) == {version.file.name, batch.file.name}
    (tmp_path / "elsewhere").rename(media)
    services.prune()
    assert files_in(media) == set()


def promoted(style: Style, *, in_service: bool = True) -> MapperVersion:
    """A version of a style, by a file that is not a mapper."""
    version = MapperVersion(style=style, number=1, sha256="0" * 64, origin="trained")
    version.file.save(f"{uuid.uuid4()}.safetensors", ContentFile(b"a mapper"))
    if in_service:
        services.promote(version=version)
    return version


def said_though_missing() -> str:
    said = io.StringIO()
    with pytest.raises(CommandError):
        call_command("check_storage", stdout=said)
    return said.getvalue()
