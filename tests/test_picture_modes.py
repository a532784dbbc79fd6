"""Good pictures of every mode, depth and orientation are opened as people see them."""

import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from clipcap.image import open_image
from tests.pictures import BLACK, FILES, GREEN, RAMP, RED, WHITE, Pixels, noise, opened, png, png_chunk, saved, smooth


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG"])
@pytest.mark.parametrize(
    ("orientation", "stored_from"),
    [
        # By the standard: which side of the scene the first stored row is, then the first stored column.
        (1, lambda scene: scene),  # top, left
        (2, lambda scene: scene[:, ::-1]),  # top, right
        (3, lambda scene: scene[::-1, ::-1]),  # bottom, right
        (4, lambda scene: scene[::-1]),  # bottom, left
        (5, lambda scene: scene.transpose(1, 0, 2)),  # left, top
        (6, lambda scene: np.rot90(scene)),  # right, top
        (7, lambda scene: scene[::-1, ::-1].transpose(1, 0, 2)),  # right, bottom
        (8, lambda scene: np.rot90(scene, -1)),  # left, bottom
    ],
)
def test_pictures_come_upright(kind: str, orientation: int, stored_from: Callable[[Pixels], Pixels]) -> None:
    scene = np.asarray(smooth(24, 16)) if kind in ("JPEG", "AVIF") else noise(16, 24)
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    got = opened(saved(Image.fromarray(np.ascontiguousarray(stored_from(scene))), kind, exif=exif, **options))
    assert got.shape == scene.shape
    assert abs(got.astype(int) - scene).max() <= (12 if kind in ("JPEG", "AVIF") else 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "HEIF"])
@pytest.mark.parametrize("image", [Image.new("LA", (4, 4), (0, 128)), Image.new("RGBA", (4, 4), (0, 0, 0, 128))])
def test_half_transparent_black_is_grey_on_white(image: Image.Image, kind: str) -> None:
    assert abs(opened(saved(image, kind)).astype(int) - 127).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_white(kind: str) -> None:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([*BLACK, *RED, *GREEN])
    image.paste(0, (0, 0, 2, 2))
    got = opened(saved(image, kind, transparency=0))
    assert (got[:, :2] == WHITE).all()
    assert (got[:, 2:] == RED).all()


def test_palette_entries_can_be_transparent_in_part() -> None:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([*BLACK, *BLACK])
    image.putpixel((0, 0), 0)
    got = opened(saved(image, "PNG", transparency=bytes([255, 128])))
    assert got[0, 0].tolist() == [0, 0, 0]
    assert abs(got[0, 1].astype(int) - 127).max() <= 1


def test_a_transparent_colour_key_is_white() -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((0, 0), GREEN)
    got = opened(saved(image, "PNG", transparency=GREEN))
    assert got[0].tolist() == [list(WHITE), list(RED)]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_keeps_its_colours(kind: str) -> None:  # Pillow writes CMYK JPEGs inverted, as Adobe does
    got = opened(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), kind))
    assert abs(got.astype(int) - RED).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "YCbCr", "LAB", "HSV", "RGBX", "RGBa", "PA"])
def test_white_stays_white_in_every_mode(mode: str) -> None:
    white: dict[str, Any] = {
        "LAB": (255, 128, 128),
        "YCbCr": (255, 128, 128),
        "HSV": (0, 0, 255),
        "P": 0,
        "PA": (0, 255),
    }
    image = Image.new(mode, (4, 4), white.get(mode, "white"))
    if mode in ("P", "PA"):
        image.putpalette([*WHITE])
    got = np.asarray(open_image(image, min_side=448))
    assert got.min() >= 253


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(saved(Image.fromarray(RAMP), "PNG"), id="PNG, 16 bits"),
        pytest.param(saved(Image.fromarray(RAMP), "TIFF"), id="TIFF, 16 bits"),
        pytest.param(saved(Image.frombytes("I;16B", (16, 16), RAMP.astype(">u2").tobytes()), "TIFF"), id="TIFF, MM"),
        pytest.param(saved(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"), id="TIFF, LZW"),
        pytest.param(saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), id="TIFF, 32 bits that hold 16"),
        pytest.param(saved(Image.fromarray(RAMP.astype(np.int32) // 257), "TIFF"), id="TIFF, 32 bits that hold 8"),
        pytest.param(saved(Image.fromarray(RAMP.astype(np.int32) * 32768), "TIFF"), id="TIFF, 32 bits"),
        pytest.param(saved(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"), id="TIFF, 0 to 1"),
        pytest.param(saved(Image.fromarray((RAMP * 1e9).astype(np.float32)), "TIFF"), id="TIFF, big floats"),
    ],
)
def test_deep_greys_are_scaled_and_not_clipped(data: bytes) -> None:
    got = opened(data).astype(int)
    assert (got[..., 0] == got[..., 2]).all()
    assert abs(got[..., 0].ravel() - np.arange(256)).max() <= 1


def unsigned_tiff(values: npt.NDArray[np.uint32]) -> bytes:
    data = saved(Image.fromarray(values.view(np.int32)), "TIFF")
    signed, unsigned = (struct.pack("<HHIHH", 339, 3, 1, kind, 0) for kind in (2, 1))  # the tag SampleFormat
    assert data.count(signed) == 1
    return data.replace(signed, unsigned)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(saved(Image.fromarray(65535 - RAMP), "TIFF", tiffinfo={262: 0}), id="16 bits, white is 0"),
        pytest.param(unsigned_tiff(RAMP.astype(np.uint32) * 65537), id="32 bits without a sign"),
    ],
)
def test_rare_deep_greys_come_out_right(data: bytes) -> None:
    assert abs(opened(data)[..., 0].astype(int).ravel() - np.arange(256)).max() <= 1


@pytest.mark.parametrize(
    ("bits", "row", "key", "seen"),
    [
        (1, bytes([0b01000000]), 0, [255, 255]),
        (1, bytes([0b01000000]), 1, [0, 255]),
        (2, bytes([0b01100000]), 1, [255, 170]),
        (4, bytes([0x5A]), 5, [255, 170]),
        (8, bytes([85, 170]), 85, [255, 170]),
        (16, struct.pack(">2H", 257, 514), 257, [255, 2]),
        (4, bytes([0x5A]), 0xF5, [255, 170]),  # only the bits of the depth count
        (8, bytes([85, 170]), 0x0155, [255, 170]),
    ],
)
def test_the_transparent_level_of_a_grey_png_is_in_its_own_depth(
    bits: int, row: bytes, key: int, seen: list[int]
) -> None:
    data = png(2, 1, bits, 0, b"\0" + row, before=png_chunk(b"tRNS", struct.pack(">H", key)))
    assert opened(data)[0, :, 0].tolist() == seen


def test_a_given_grey_png_of_four_bits_has_its_transparent_level() -> None:
    assert opened((FILES / "g4_trns.png").read_bytes()).tolist() == [[[255] * 3, [170] * 3]]


def test_the_transparent_colour_of_a_deep_png_is_compared_in_all_its_bits() -> None:
    key, near, other = (0x1234, 0x5678, 0x9ABC), (0x1234, 0x5678, 0x9ABD), (0xFFFF, 0, 0)
    row = b"\0" + struct.pack(">9H", *key, *near, *other)
    got = opened(png(3, 1, 16, 2, row, before=png_chunk(b"tRNS", struct.pack(">3H", *key))))
    assert got[0].tolist() == [[255, 255, 255], [0x12, 0x56, 0x9A], [255, 0, 0]]
    rows = (b"\0" + struct.pack(">3H", *key) * 1000) * 5000
    tall = opened(png(1000, 5000, 16, 2, rows, before=png_chunk(b"tRNS", struct.pack(">3H", *key))))
    assert tall.min() == 255


def test_floats_that_are_no_numbers_are_drawn_as_something() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, -5, 0, 1]], dtype=np.float32)
    assert opened(saved(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 255, 0, 0, 0, 255]


def test_deep_colours_are_scaled_and_not_clipped() -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", level, 65535 - level, 0) for level in (0, 32768, 65535))
    got = opened(png(1, 3, 16, 2, rows))
    assert got[:, 0].tolist() == [[0, 255, 0], [128, 127, 0], [255, 0, 0]]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), GREEN)
    got = opened(saved(first, kind, save_all=True, append_images=[second]))
    assert abs(got.astype(int) - RED).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param({"icc_profile": b"no profile"}, id="ICC profile"),
        pytest.param({"exif": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(range(256)) * 200}, id="huge EXIF"),
        pytest.param({"exif": b"Exif\0\0II*\0\xff\xff\xff\xff"}, id="EXIF pointing nowhere"),
        pytest.param({"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\2\0\0\0\4six\0\0\0\0\0"}, id="orientation as text"),
    ],
)
def test_broken_metadata_does_not_cost_a_good_picture(kind: str, metadata: dict[str, bytes]) -> None:
    data = saved(smooth(), kind, **metadata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened(data).shape == (48, 64, 3)
