"""What a file of examples would give, looked at before anything is stored."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from PIL import Image as Pillow

from captioner import uploads
from captioner.errors import Refused
from captioner.models import Image, Style
from tests.dataset_files import packed, picture, pictures
from tests.importing import examples, imported, processed, reasons, run_command
from training import services
from training.admin.datasets import SAMPLES
from training.datasets import preview as previews
from training.datasets.columns import Column
from training.datasets.keys import LONGEST_KEY, Keys
from training.datasets.preview import Preview, PreviewRow, Recognised, Rejected
from training.models import Example, Import

STATIC = Path(__file__).parent.parent / "static" / "samples"

pytestmark = pytest.mark.django_db


def look(files: dict[str, bytes], keys: Keys = Keys()) -> Preview:  # noqa: B008
    return services.preview_import(SimpleUploadedFile("a.zip", packed(files)), "a.zip", keys)


def test_columns_examples_and_rejected_rows_are_shown_and_nothing_is_stored(media: Path) -> None:
    table = b"caption,file_name,split\na red square,one.jpg,train\n...,one.jpg,\ngreen,two.jpg,test\nblue,gone.jpg,\n"
    found = look({"captions.csv": table, **pictures()})
    thumbnails = [sample.thumbnail for sample in found.samples]
    assert found == Preview(
        [Recognised("captions.csv", "table", "photo: file_name, caption: caption, split: split")],
        [Column("caption", "a red square"), Column("file_name", "one.jpg"), Column("split", "train")],
        looked_at=4,
        usable=2,
        samples=[
            PreviewRow("one.jpg", "a red square", False, thumbnails[0]),
            PreviewRow("two.jpg", "green", True, thumbnails[1]),
        ],
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


def sample(name: str) -> bytes:
    """A sample to download, in a zip with the photos that it names."""
    content = (STATIC / name).read_bytes()
    if name.endswith(".zip"):
        return content
    photos = ("one.jpg", "two.jpg", "photos/one.jpg", "photos/two.jpg")
    numbered = [f"COCO_train2014_{number:012}.jpg" for number in (1, 2)]
    return packed({name: content} | {photo: picture(1 + n) for n, photo in enumerate((*photos, *numbered))})


@pytest.mark.parametrize("name", SAMPLES)
def test_each_sample_to_download_is_recognised_whole_and_imported_without_an_error(
    name: str, style: Style, media: Path
) -> None:
    found = services.preview_import(SimpleUploadedFile("a.zip", sample(name)), "a.zip")
    assert (found.rejected, found.usable, found.more) == ([], found.looked_at, False)
    assert found.looked_at >= 2
    assert found.files[0].format
    batch = imported(style, sample(name), "a.zip")
    assert (batch.status, batch.error_detail, reasons(batch)) == ("succeeded", "", [])
    assert batch.accepted == found.looked_at
    assert len({image for image, _ in examples(style)}) == 2


def test_rows_may_name_stored_photos(media: Path, photo: bytes) -> None:
    image = uploads.store(photo)
    found = look({"captions.csv": f"image,caption\n{image.pk},a dog\n".encode()})
    assert [sample.photo for sample in found.samples] == [str(image.pk)]
    assert found.samples[0].thumbnail == reverse("image-thumbnail", args=[image.pk])


def test_the_first_rows_show_their_pictures_and_what_is_no_picture_is_said(media: Path) -> None:
    table = b"image,caption\none.jpg,a red square\nbroken.jpg,green\n"
    found = look({"captions.csv": table, "one.jpg": picture(1), "broken.jpg": b"\xff\xd8 no picture"})
    (sample,) = found.samples
    kind, _, data = sample.thumbnail.partition(",")
    assert kind == "data:image/jpeg;base64"
    with Pillow.open(io.BytesIO(base64.b64decode(data))) as small:
        assert max(small.size) <= previews.SIDE
    assert (found.usable, [row.line for row in found.rejected]) == (1, [3])
    assert "broken.jpg" in found.rejected[0].reason


UNKNOWN = {
    "captions.csv": b"Pic;Words\none.jpg;a red square\n",
    "captions.tsv": b"Pic\tWords\none.jpg\ta red square\n",
    "captions.jsonl": b'{"Pic": "one.jpg", "Words": "a red square"}\n',
    "captions.json": b'[{"Pic": "one.jpg", "Words": "a red square"}]',
}
CHOSEN = Keys("Pic", "Words")


@pytest.mark.parametrize("name", UNKNOWN)
def test_columns_whose_names_are_unknown_are_offered_and_the_chosen_ones_are_used(
    name: str, style: Style, media: Path
) -> None:
    files = {name: UNKNOWN[name], "one.jpg": picture(1)}
    found = look(files)
    assert (found.files, found.samples) == ([], [])
    assert found.columns == [Column("Pic", "one.jpg"), Column("Words", "a red square")]
    found = look(files, CHOSEN)
    assert [(sample.photo, sample.text) for sample in found.samples] == [("one.jpg", "a red square")]
    file = SimpleUploadedFile("a.zip", packed(files))
    batch = processed(services.start_import(style=style, file=file, name="a.zip", keys=CHOSEN))
    assert (batch.status, batch.accepted) == ("succeeded", 1)


def test_a_chosen_column_goes_before_one_whose_name_is_known(media: Path) -> None:
    table = b"image,caption,title\none.jpg,a red square,Composition in red\n"
    found = look({"captions.csv": table, **pictures()}, Keys(chosen_caption="title"))
    assert [sample.text for sample in found.samples] == ["Composition in red"]


def test_an_import_without_the_chosen_columns_fails_with_their_names(style: Style, media: Path) -> None:
    file = SimpleUploadedFile("a.zip", packed({"captions.csv": UNKNOWN["captions.csv"], **pictures()}))
    batch = processed(services.start_import(style=style, file=file, name="a.zip", keys=Keys("Picture", "Words")))
    assert "chosen columns (file name: Picture, caption: Words)" in batch.error_detail
    with pytest.raises(Refused, match="at most 100"):
        services.start_import(style=style, file=file, name="a.zip", keys=Keys("x" * (LONGEST_KEY + 1)))


def test_the_command_takes_the_names_of_columns(style: Style, media: Path, tmp_path: Path) -> None:
    for name, content in {"captions.csv": UNKNOWN["captions.csv"], "one.jpg": picture(1)}.items():
        (tmp_path / name).write_bytes(content)
    run_command(style.slug, str(tmp_path), "--picture-column", "Pic", "--caption-column", "Words")
    assert {text for _, text in examples(style)} == {"a red square"}
    assert Import.objects.get().keys == CHOSEN


def test_on_the_page_columns_are_chosen_by_hand_and_stored_with_the_import(style: Style, admin_client: Client) -> None:
    address = reverse("admin:captioner_style_import", args=[style.pk])

    def send(**more: Any) -> Any:
        data = packed({"captions.csv": UNKNOWN["captions.csv"], "one.jpg": picture(1)})
        return admin_client.post(address, {"file": SimpleUploadedFile("a.zip", data), **more})

    page = send(check="yes").content.decode()
    assert "The names of these columns are not known" in page
    assert "Pic, such as “one.jpg”" in page
    page = send(check="yes", picture_column="Pic", caption_column="Words").content.decode()
    assert 'src="data:image/jpeg;base64,' in page
    assert '<option value="Words" selected>' in page
    send(picture_column="Pic", caption_column="Words")
    batch = Import.objects.get()
    assert batch.keys == CHOSEN
    page = admin_client.get(reverse("admin:training_import_live", args=[batch.pk])).content.decode()
    assert "file name: Pic, caption: Words" in page


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
