"""One reader: what carries no pixels may be missing or wrong in any format, pixels may not."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from clipcap.image import ImageError, open_image
from tests.pictures import FILES, Pixels, noise, png, png_chunk, saved, smooth


def opened(data: bytes) -> Pixels:
    return np.asarray(open_image(data, min_side=448))


def refused(data: bytes) -> bool:
    try:
        opened(data)
    except ImageError as error:
        return error.code == "damaged"
    return False


def lost(data: bytes, whole: bytes) -> float:
    """The share of pixels that differ from those of the whole file."""
    return float((abs(opened(data).astype(int) - opened(whole)).max(axis=2) > 16).mean())


PHOTO = (FILES / "noeoi.jpg").read_bytes() + b"\xff\xd9"
GREY_ROWS = (b"\0" + bytes([90]) * 64) * 48


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}])
@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_without_its_end_mark_is_the_same_picture(missing: int, options: dict[str, int]) -> None:
    whole = saved(Image.fromarray(noise(64, 96)), "JPEG", **options)
    assert (opened(whole[:-missing]) == opened(whole)).all()


def test_a_black_jpeg_without_its_end_mark_is_the_same_picture() -> None:
    whole = saved(Image.new("L", (64, 64)), "JPEG")
    assert (opened(whole[:-2]) == 0).all()


def test_given_jpegs_that_lack_their_last_bytes_are_shown() -> None:
    assert lost((FILES / "noeoi.jpg").read_bytes(), PHOTO) == 0
    assert 0.01 < lost((FILES / "cut1pct.jpg").read_bytes(), PHOTO) < 0.03


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 90, "restart_marker_rows": 1}),
        ("JPEG", {"quality": 90, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"quality": 90}),
        ("BMP", {}),
        ("TIFF", {}),
    ],
)
def test_a_corner_may_be_missing_and_no_more(kind: str, options: dict[str, int]) -> None:
    whole = saved(Image.fromarray(noise(480, 320)), kind, **options)
    assert 0 < lost(whole[: int(len(whole) * 0.98)], whole) < 0.05
    for share in (0.3, 0.6, 0.9):
        assert refused(whole[: int(len(whole) * share)])


def test_a_photo_of_which_a_tenth_is_missing_is_refused() -> None:
    assert refused(PHOTO[: int(len(PHOTO) * 0.8)])


def test_a_black_bottom_does_not_hide_what_is_missing() -> None:
    pixels = noise(480, 320)
    pixels[240:] = 128
    whole = saved(Image.fromarray(pixels), "JPEG", quality=90)
    assert refused(whole[: len(whole) // 2])


@pytest.mark.parametrize("colour", [0, 2, 6])
def test_a_png_whose_data_end_early_is_refused_though_its_decoder_says_nothing(colour: int) -> None:
    row = b"\0" + bytes([90] * 64 * {0: 1, 2: 3, 6: 4}[colour])
    assert opened(png(64, 48, 8, colour, row * 48)).shape == (48, 64, 3)
    assert refused(png(64, 48, 8, colour, row * 24))
    assert opened(png(64, 48, 8, colour, row * 47)).shape == (48, 64, 3)  # a fiftieth


def test_an_interlaced_png_is_whole_with_all_its_passes() -> None:
    header = struct.pack(">IIBBBBB", 3, 3, 8, 0, 0, 0, 1)
    passes = b"\0\7" + b"\0\7" + b"\0\7\7" + b"\0\7" * 2 + b"\0\7\7\7"  # 1 pixel; 1; 2; 2 rows of 1; a row of 3
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    assert (opened(start + png_chunk(b"IDAT", zlib.compress(passes))) == 7).all()
    assert refused(start + png_chunk(b"IDAT", zlib.compress(passes[:-6])))


def test_black_and_transparent_bottoms_are_whole() -> None:
    assert (opened(png(64, 48, 8, 2, (b"\0" + bytes(192)) * 48)) == 0).all()
    assert (opened(png(64, 48, 8, 6, (b"\0" + bytes(256)) * 48)) == 255).all()


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"tEXt", b"Comment\0hello", checksum=b"nope"),
        png_chunk(b"gAMA", struct.pack(">I", 45455), checksum=b"nope"),
        png_chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0\0\0\0\0", checksum=b"nope"),
        png_chunk(b"tIME", b"", checksum=b"nope"),
        png_chunk(b"gAMA", b"\0"),
        png_chunk(b"zTXt", b"Comment\0\1none"),
        png_chunk(b"acTL", b"\0"),
        png_chunk(b"tEXt", b"Comment\0" + b"x" * 70_000_000),
        png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(70_000_000))),
    ],
)
def test_what_is_wrong_in_a_chunk_that_carries_no_pixels_does_not_matter(chunk: bytes, place: str) -> None:
    assert (opened(png(64, 48, 8, 0, GREY_ROWS, **{place: chunk})) == 90).all()


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS"])
def test_a_wrong_checksum_in_a_chunk_that_the_pixels_need_is_damage(kind: bytes) -> None:
    image = Image.new("P", (64, 48), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    data = bytearray(saved(image, "PNG", transparency=0))
    length, place = struct.unpack_from(">I", data, data.index(kind) - 4)[0], data.index(kind)
    data[place + 4 + length] ^= 1
    assert refused(bytes(data))


def test_a_png_whose_pixels_fail_their_checksum_is_refused() -> None:
    packed = zlib.compress(GREY_ROWS)
    start = png(64, 48, 8, 0, b"")[:33]
    assert (opened(start + png_chunk(b"IDAT", packed)) == 90).all()
    assert refused(start + png_chunk(b"IDAT", packed[:-4] + b"nope") + png_chunk(b"IEND", b""))


@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_may_lack_what_is_behind_its_pixels(lossless: bool) -> None:
    exif = Image.Exif()
    exif[270] = "A long description." * 20
    image = smooth().convert("RGBA")
    whole = saved(image, "WEBP", exif=exif, lossless=lossless)
    plain = opened(whole)
    assert (opened(whole[:-100]) == plain).all()
    for size in (0, len(whole) - 6, len(whole) + 100, 2**32 - 1):
        assert (opened(whole[:4] + struct.pack("<I", size) + whole[8:]) == plain).all()


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PNG", "JPEG", "WEBP"])
def test_what_is_behind_a_picture_does_not_matter(kind: str) -> None:
    whole = saved(smooth(), kind)
    assert (opened(whole + b"something else") == opened(whole)).all()


def test_a_gif_may_lack_its_trailer() -> None:
    whole = saved(smooth(), "GIF")
    assert (opened(whole[:-1]) == opened(whole)).all()


def test_a_broken_png_that_claims_to_be_huge_is_not_inflated() -> None:
    bomb = png(12_000, 12_000, 8, 2, bytes(1 << 20), before=png_chunk(b"tEXt", b"a\0b", checksum=b"nope"))
    with pytest.raises(ImageError, match="12000 x 12000") as caught:
        open_image(bomb, min_side=448)
    assert caught.value.code == "too_many_pixels"
