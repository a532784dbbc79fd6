"""Uploads that are no pictures, or more than that: only pixels are kept, and nothing is queued of the others."""

import base64
import io
import struct
import zipfile
import zlib
from typing import Any

import pytest
from django.test import Client
from PIL import ExifTags
from PIL import Image as Pillow

from captioner.models import Caption, CaptionRequest, Image
from tests.api.pictures import SMALL, URL, post, post_json, problem, saved

pytestmark = pytest.mark.django_db


def png_bomb(width: int, height: int) -> bytes:
    """A small file that declares a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("payload.txt", "hidden cargo")
    return out.getvalue()


SCRIPT = b"<script>alert('hidden cargo')</script>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><image href="file:///etc/passwd"/></svg>'


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        pytest.param(b"", 422, "image_empty", id="no bytes"),
        pytest.param(png_bomb(50_000, 50_000), 413, "image_too_many_pixels", id="decompression bomb"),
        pytest.param(png_bomb(65_536, 1), 413, "image_too_many_pixels", id="one endless row"),
        pytest.param(saved(SMALL)[:400], 422, "image_damaged", id="cut short"),
        pytest.param(saved(SMALL, "PNG")[:100], 422, "image_damaged", id="cut short PNG"),
        pytest.param(SVG, 415, "image_unsupported_format", id="SVG"),
        pytest.param(b"\n" + SVG, 415, None, id="SVG behind a line break"),
        pytest.param(b"%PDF-1.7 " + bytes(100), 415, "image_unsupported_format", id="PDF"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n", 415, "image_unsupported_format", id="PostScript"),
        pytest.param(archive(), 415, "image_not_an_image", id="ZIP"),
        pytest.param(b"GIF89a/*" + SCRIPT + b"*/", 422, "image_damaged", id="GIF that is JavaScript"),
        pytest.param(b"<html>" + SCRIPT + b"</html>", 415, "image_not_an_image", id="HTML"),
        pytest.param(b"\xff\xd8\xff" + bytes(200), 422, "image_damaged", id="only the beginning of a JPEG"),
        pytest.param(b"push graphic-context\nviewbox 0 0 1 1", 415, "image_not_an_image", id="ImageMagick script"),
    ],
)
def test_what_is_no_picture_is_refused(
    client: Client, styles: None, data: bytes, status: int, code: str | None
) -> None:
    body = problem(post(client, data, name="holiday.jpg"), status, code or "")

    assert (body["index"], body["name"]) == (0, "holiday.jpg")
    assert not Image.objects.exists()
    assert not CaptionRequest.objects.exists()


def test_base64_is_looked_at_as_closely_as_files(client: Client, styles: None) -> None:
    problem(post_json(client, {"image_base64": base64.b64encode(SVG).decode()}), 415, "image_unsupported_format")
    problem(post_json(client, {"image_base64": "data:image/jpeg,plain"}), 422, "invalid")
    problem(post_json(client, {"image_base64": "not base64!"}), 422, "invalid")
    good = base64.b64encode(saved(SMALL)).decode()
    for bad in ({"data": good}, {"data": {"data": good, "name": "a"}, "name": "a"}, {"data": good, "name": ""}, {}):
        body = problem(post_json(client, {"image_base64": [good, bad]}), 422, "invalid")
        assert body["errors"][0]["field"].startswith("image_base64.1."), bad
    named = post_json(client, {"image_base64": {"data": good, "name": "..\\a/b.jpg\n"}})
    assert named.json()["captions"][0]["name"] == "b.jpg"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(saved(SMALL) + archive(), id="JPEG and ZIP"),
        pytest.param(saved(SMALL, "GIF") + SCRIPT, id="GIF and JavaScript"),
        pytest.param(saved(SMALL, "JPEG", comment=SCRIPT), id="script in a comment"),
        pytest.param(saved(SMALL, "JPEG", icc_profile=b"hidden cargo" * 10), id="broken colour profile"),
    ],
)
def test_of_a_polyglot_only_the_picture_is_kept(client: Client, styles: None, data: bytes) -> None:
    caption = post(client, data).json()["captions"][0]

    for kind in ("file", "thumbnail"):
        served = client.get(f"{caption['image_url']}{kind}/").getvalue()
        assert b"hidden cargo" not in served
        assert b"PK\x03\x04" not in served
        assert Pillow.open(io.BytesIO(served)).format == "JPEG"


def test_where_a_photo_was_taken_is_not_served(client: Client, styles: None) -> None:
    exif = Pillow.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (51.0, 30.0, 26.0)
    exif[ExifTags.Base.Artist] = "a secret person"
    exif[ExifTags.Base.Orientation] = 6
    data = saved(SMALL, exif=exif)
    assert Pillow.open(io.BytesIO(data)).getexif().get_ifd(ExifTags.IFD.GPSInfo)

    caption = post(client, data).json()["captions"][0]

    for kind in ("file", "thumbnail"):
        served = client.get(f"{caption['image_url']}{kind}/").getvalue()
        picture = Pillow.open(io.BytesIO(served))
        assert not picture.getexif()
        assert b"secret" not in served
        assert picture.width < picture.height  # turned upright before that was forgotten


def test_a_huge_exif_block_costs_nothing(client: Client, styles: None) -> None:
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 0xFFFF) + b"\xff" * 60_000
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    data = saved(SMALL)

    answer = post(client, data[:2] + segment * 50 + data[2:])

    assert answer.status_code == 202
    assert Image.objects.get().size < 10_000


@pytest.mark.parametrize(
    "name",
    ["../../../etc/cron.d/evil.jpg", "..\\\\..\\\\evil.jpg", "/etc/passwd", "a" * 500 + ".jpg", "\u202egpj.exe"],
)
def test_a_files_name_decides_nothing(client: Client, styles: None, media: Any, name: str) -> None:
    answer = post(client, saved(SMALL), name=name, kind="text/html")

    assert answer.status_code == 202
    kept = answer.json()["captions"][0]["name"]
    assert "/" not in kept
    assert "\\" not in kept
    assert len(kept) <= 255
    image = Image.objects.get()
    assert {str(path.relative_to(media)) for path in media.rglob("*.jpg")} == {image.file.name, image.thumbnail.name}


def test_sizes_are_limited(client: Client, styles: None, settings: Any) -> None:
    settings.MAX_UPLOAD_BYTES = 500
    problem(post(client, saved(SMALL)), 413, "image_too_large")
    settings.MAX_REQUEST_BYTES = 400
    problem(post(client, saved(SMALL)), 413, "request_too_large")
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    problem(post_json(client, {"image_base64": "A" * 200}), 413, "request_too_large")
    settings.MAX_REQUEST_BYTES = 10_000
    problem(post(client, saved(SMALL), style="s" * 200), 413, "request_too_large")


def test_counts_are_limited(client: Client, styles: None, settings: Any) -> None:
    settings.MAX_IMAGES_PER_REQUEST = 1
    problem(post_json(client, {}), 422, "no_image")
    one = base64.b64encode(saved(SMALL)).decode()
    problem(post_json(client, {"image_base64": [one, one]}), 422, "too_many_images")
    settings.DATA_UPLOAD_MAX_NUMBER_FILES = 1
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\na\r\n'
    answer = client.generic("POST", URL, part * 2 + b"--x--\r\n", content_type="multipart/form-data; boundary=x")
    problem(answer, 422, "too_many_images")


def test_a_bad_picture_is_named_and_the_good_ones_are_not_queued(client: Client, styles: None) -> None:
    good, bad = (base64.b64encode(data).decode() for data in (saved(SMALL), SVG))

    assert problem(post_json(client, {"image_base64": [good, bad]}), 415)["index"] == 1
    assert not Caption.objects.exists()
