"""Files that lie, break or want to exhaust the machine: each gives a right picture or an ImageError."""

import struct
import warnings
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from clipcap.encoder import Encoder
from clipcap.image import MAX_BYTES, MAX_SCANS, ImageError, ImageErrorCode, open_image
from tests.heif_files import coded, grid, heif
from tests.memory import peak_growth
from tests.pictures import GREEN, RAMP, noise, opened, png, saved, smooth


def refusal(source: bytes | str | Path | Image.Image, **options: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        open_image(source, min_side=448, **options)
    assert caught.value.code in get_args(ImageErrorCode)
    return caught.value


def test_a_wrong_file_name_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "photo.eps"
    path.write_bytes(saved(smooth(), "PNG"))
    assert open_image(path, min_side=448).size == (64, 48)


def test_a_picture_with_something_behind_it_is_that_picture() -> None:
    data = saved(smooth(), "JPEG")
    assert (opened(data + b"<script>alert(1)</script>" + data) == opened(data)).all()


# What is refused


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"\0", "not_an_image"),
        (b"hello", "not_an_image"),
        (b"<!doctype html><title>404</title>", "not_an_image"),
        (b"<html>" + saved(smooth(), "JPEG"), "not_an_image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported_format"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported_format"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "unsupported_format"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "unsupported_format"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "damaged"),
        (b"GIF89a=1;alert(1)//", "damaged"),
        (b"BMP is a format", "damaged"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"RIFF\xff\xff\xff\xffWEBPVP8 ", "damaged"),
    ],
)
def test_what_is_no_picture_is_distinguished_from_what_is_a_broken_one(data: bytes, code: str) -> None:
    assert refusal(data).code == code


@pytest.mark.parametrize("kind", ["EPS", "ICO", "JPEG2000", "PCX", "PPM", "SGI", "TGA", "DDS", "PDF", "ICNS"])
def test_other_decoders_are_never_reached(kind: str) -> None:
    refused = refusal(saved(smooth(64, 64), kind))
    assert refused.code in ("unsupported_format", "not_an_image")
    assert "JPEG" in str(refused)


def test_a_path_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path, str(tmp_path / "nul\0"), "x" * 5000, "\udcff", ""):
        assert refusal(path).code == "unreadable_file"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"])
def test_truncated_files_are_refused(kind: str) -> None:
    data = saved(Image.fromarray(noise(48, 64)), kind)  # of which every part takes as many bytes
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9):
        assert refusal(data[: int(len(data) * share)]).code in ("damaged", "not_an_image")


def test_a_picture_without_pixels_is_refused() -> None:
    assert refusal(Image.new("RGB", (0, 5))).code == "damaged"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png(100_000, 100_000, 8, 2, b""), id="PNG, far above"),
        pytest.param(png(10_001, 10_000, 8, 2, b""), id="PNG, just above"),
        pytest.param(png(70_000, 1, 8, 0, b""), id="PNG, too long"),
        pytest.param(png(12_000, 10_000, 1, 0, bytes(1501 * 10_000)), id="PNG, truthful"),
        pytest.param(b"GIF89a" + b"\xff" * 4 + saved(Image.new("L", (8, 8)), "GIF")[10:], id="GIF"),
        pytest.param(
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 30000, 30000, 1, 24, *[0] * 6), id="BMP"
        ),
        pytest.param(b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xfe\x3f\0\xfe\x3f\0", id="WebP"),
    ],
)
def test_bombs_are_refused_before_they_are_decoded(data: bytes) -> None:
    growth = peak_growth(lambda: refusal(data))
    assert growth < 20
    assert refusal(data).code == "too_many_pixels"


def test_the_limit_of_pixels_is_the_callers() -> None:
    data = saved(smooth(64, 48), "PNG")
    assert open_image(data, min_side=448, max_pixels=64 * 48).size == (64, 48)
    refused = refusal(data, max_pixels=64 * 48 - 1)
    assert refused.code == "too_many_pixels"
    assert "64 x 48" in str(refused)
    assert refusal(smooth(64, 48), max_pixels=64 * 48 - 1).code == "too_many_pixels"


def test_a_progressive_jpeg_of_endless_scans_is_refused() -> None:
    data = saved(smooth(), "JPEG", progressive=True)
    assert opened(data).shape == (48, 64, 3)
    last = data.rindex(b"\xff\xda")
    assert refusal(data[:last] + data[last:-2] * MAX_SCANS + b"\xff\xd9").code == "damaged"


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "JPEG", "HEIF"])
def test_a_huge_file_with_a_small_picture_in_front_is_refused_unread(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "huge"
    path.write_bytes(saved(smooth(), kind))
    with path.open("ab") as file:
        file.truncate(MAX_BYTES + 1)  # a hole, which takes no room on the disk
    assert peak_growth(lambda: refusal(path)) < 20
    assert refusal(path).code == "too_many_bytes"


def test_counting_the_scans_of_a_long_progressive_jpeg_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.jpg"
    path.write_bytes(saved(smooth(), "JPEG", progressive=True))
    with path.open("ab") as file:
        file.truncate(300 << 20)
    assert peak_growth(lambda: open_image(path, min_side=448)) < 20


def test_of_a_gif_of_endless_frames_only_the_first_is_read() -> None:
    data = saved(Image.new("L", (8, 8), 200), "GIF")
    frame = data[data.index(b",") : -1]
    assert (opened(data[:-1] + frame * 300_000 + b";") == 200).all()


def test_pillows_own_guards_stay_up() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("size", [(20_000, 10), (10, 20_000)])
def test_an_extreme_shape_takes_little_memory(tiny_encoder_dir: Path, size: tuple[int, int]) -> None:
    encoder = Encoder.load(f"local-dir:{tiny_encoder_dir}", device="cpu")
    data = saved(Image.new("RGB", size, GREEN), "PNG")
    assert peak_growth(lambda: encoder.encode([data])) < 30


def test_a_jpeg_of_60_megapixels_takes_little_memory() -> None:
    data = saved(Image.new("L", (10_000, 6_000), 90).convert("RGB"), "JPEG")
    assert peak_growth(lambda: open_image(data, min_side=448)) < 60  # decoded whole it is 240 MB


def test_a_big_png_takes_the_memory_of_its_pixels_once() -> None:
    rows = (b"\0" + b"\1\2\3" * 5000) * 5000
    assert peak_growth(lambda: open_image(png(5000, 5000, 8, 2, rows), min_side=448)) < 190  # 100 MB of pixels


# Anything at all


@cache
def samples() -> list[bytes]:
    image = smooth()
    palette = image.quantize(16)
    exif = Image.Exif()
    exif[274] = 6
    return [
        saved(image, "JPEG", exif=exif),
        saved(image, "JPEG", progressive=True),
        saved(image.convert("CMYK"), "JPEG"),
        saved(image, "PNG", exif=exif),
        saved(palette, "PNG", transparency=3),
        saved(Image.fromarray(RAMP), "PNG"),
        saved(palette, "GIF", save_all=True, append_images=[palette.rotate(90)], transparency=2),
        saved(image, "WEBP", exif=exif),
        saved(image.convert("RGBA"), "WEBP", lossless=True),
        saved(image, "TIFF", exif=exif),
        saved(image, "TIFF", compression="tiff_lzw"),
        saved(image, "TIFF", compression="jpeg"),
        saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
        saved(image, "BMP"),
        saved(palette, "BMP"),
        saved(image, "AVIF"),
        saved(image, "HEIF", exif=exif),
        saved(image.convert("RGBA"), "HEIF"),
        heif(grid(2, 1, 128, 48, [2, 3]), coded(image), coded(image)),
    ]


@st.composite
def broken_files(draw: st.DrawFn) -> bytes:
    """A good file with bytes changed, cut out, put in or taken from another file."""
    data = bytearray(draw(st.sampled_from(samples())))
    # most of what a decoder believes without looking stands at the beginning
    places = st.one_of(st.integers(0, 60), st.integers(0, len(data)))
    for _ in range(draw(st.integers(1, 5))):
        start = draw(places)
        length = draw(st.integers(0, 8) | st.integers(0, len(data)))
        match draw(st.sampled_from(["change", "change", "change", "cut", "splice", "end"])):
            case "change":
                change = draw(
                    st.binary(min_size=1, max_size=4) | st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff"])
                )
                data[start : start + len(change)] = change
            case "cut":
                del data[start : start + length]
            case "splice":
                other = draw(st.sampled_from(samples()))
                data[start : start + draw(st.integers(0, 8))] = other[start : start + length]
            case "end":
                del data[start:]
    return bytes(data)


def survive(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            image = open_image(data, min_side=16, max_pixels=1_000_000)
        except ImageError:
            return
    assert image.mode == "RGB"
    assert min(image.size) >= 1


@settings(max_examples=250)
@given(broken_files())
def test_a_broken_file_gives_a_picture_or_an_image_error(data: bytes) -> None:
    survive(data)


@given(st.binary(max_size=300), st.sampled_from([b"", *(data[:12] for data in samples())]))
def test_random_bytes_give_a_picture_or_an_image_error(data: bytes, beginning: bytes) -> None:
    survive(beginning + data)
