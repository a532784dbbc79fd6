"""What a file of examples would give, looked at before anything is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse

from captioner import uploads
from captioner.errors import Refused
from captioner.models import Image, Style
from tests.dataset_files import packed, picture, pictures
from training import services
from training.admin.styles import SAMPLES
from training.datasets import preview as previews
from training.datasets.preview import Preview, Recognised, Rejected, Sample
from training.models import Example, Import

STATIC = Path(__file__).parent.parent / "static" / "samples"

pytestmark = pytest.mark.django_db


def look(files: dict[str, bytes]) -> Preview:
    return services.preview_import(SimpleUploadedFile("a.zip", packed(files)), "a.zip")


def test_columns_examples_and_rejected_rows_are_shown_and_nothing_is_stored(media: Path) -> None:
    table = b"caption,file_name,split\na red square,one.jpg,train\n...,one.jpg,\ngreen,two.jpg,test\nblue,gone.jpg,\n"
    assert look({"captions.csv": table, **pictures()}) == Preview(
        [Recognised("captions.csv", "table", "photo: file_name, caption: caption, split: split")],
        looked_at=4,
        usable=2,
        samples=[Sample("one.jpg", "a red square", False), Sample("two.jpg", "green", True)],
        rejected=[
            Rejected("captions.csv", 3, "the caption contains no words, so nothing can be learned from it"),
            Rejected(
                "captions.csv",
                5,
                "'gone.jpg': there is no such file next to the annotations, and no stored image with this id or "
                "SHA-256",
            ),
        ],
    )
    assert (Import.objects.count(), Example.objects.count(), Image.objects.count()) == (0, 0, 0)
    assert not list(media.glob("**/*"))


@pytest.mark.parametrize("name", SAMPLES)
def test_each_sample_to_download_is_recognised_whole(name: str, media: Path) -> None:
    photos = {f"{folder}{photo}": picture(1) for folder in ("", "photos/") for photo in ("one.jpg", "two.jpg")}
    found = look({name: (STATIC / name).read_bytes(), **photos})
    assert (found.rejected, found.usable, found.more) == ([], found.looked_at, False)
    assert found.looked_at >= 2
    assert found.files[0].format


def test_rows_may_name_stored_photos(media: Path, photo: bytes) -> None:
    image = uploads.store(photo)
    found = look({"captions.csv": f"image,caption\n{image.pk},a dog\n".encode()})
    assert [sample.photo for sample in found.samples] == [str(image.pk)]


def test_of_a_long_file_only_the_first_rows_are_looked_at(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews, "LOOKED_AT", 30)
    rows = b"".join(b"one.jpg,dog %d\n" % n for n in range(31))
    found = look({"captions.csv": b"image,caption\n" + rows, **pictures()})
    assert (found.looked_at, found.usable, len(found.samples), found.more) == (30, 30, 10, True)
    monkeypatch.setattr(previews, "PATIENCE", -1.0)
    with pytest.raises(Refused, match="too large to be checked here"):
        look({"captions.csv": b"image,caption\n" + rows, **pictures()})


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b"PK\3\4", "damaged"), (b"nothing", "no file with captions was found")],
)
def test_a_file_that_says_nothing_is_refused_with_the_reason(content: bytes, says: str, media: Path) -> None:
    with pytest.raises(Refused, match=says):
        services.preview_import(SimpleUploadedFile("a.txt", content), "a.txt")


def test_the_page_checks_and_imports_only_when_asked_to(style: Style, admin_client: Client) -> None:
    address = reverse("admin:captioner_style_import", args=[style.pk])

    def send(**more: Any) -> Any:
        data = packed({"captions.csv": b"image,caption\none.jpg,a red square\n", **pictures()})
        return admin_client.post(address, {"file": SimpleUploadedFile("a.zip", data), **more})

    page = send(check="yes").content.decode()
    assert "photo: image, caption: caption" in page
    assert "a red square" in page
    assert not Import.objects.exists()
    wrong = admin_client.post(address, {"file": SimpleUploadedFile("a.zip", b"PK\3\4"), "check": "yes"})
    assert "is damaged" in wrong.content.decode()
    assert send().status_code == 302
    batch = Import.objects.get()
    live = reverse("admin:training_import_live", args=[batch.pk])
    retrain = reverse("admin:captioner_style_retrain", args=[style.pk])
    assert retrain not in admin_client.get(live).content.decode()
    Import.objects.update(status="succeeded", finished_at=batch.created_at, accepted=1)
    page = admin_client.get(live).content.decode()
    for name in ("change", "dataset", "retrain"):
        assert reverse(f"admin:captioner_style_{name}", args=[style.pk]) in page
