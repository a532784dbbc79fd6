"""Pictures with a colour profile look as a colour-managed viewer shows them, captioned and stored."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from captioner.uploads import store
from clipcap.image import open_image
from tests.pictures import FILES, Pixels, grey_profile, icc_profile, ink_profile, noise, png, png_chunk, saved


def opened(data: bytes) -> Pixels:
    return np.asarray(open_image(data, min_side=448))


def difference(one: Pixels, other: Pixels) -> float:
    return float(abs(one.astype(int) - other).mean())


def twin() -> Pixels:
    """The photo in sRGB."""
    return opened((FILES / "srgb_twin.jpg").read_bytes())


def wide() -> Image.Image:
    """The photo in the colours of Display P3, with its profile."""
    with Image.open(FILES / "icc_p3.jpg") as image:
        image.load()
        return image


@pytest.mark.parametrize("name", ["icc_p3.jpg", "icc_adobe.jpg"])
def test_a_photo_in_other_colours_looks_like_its_twin_in_srgb(name: str) -> None:
    ignored = np.asarray(Image.open(FILES / name))
    assert difference(ignored, twin()) > 1
    assert difference(opened((FILES / name).read_bytes()), twin()) < 1


@pytest.mark.parametrize("name", ["icc_p3.jpg", "icc_adobe.jpg"])
def test_what_is_stored_of_a_photo_in_other_colours_looks_like_its_twin(name: str, db: None, media: Any) -> None:
    image = store((FILES / name).read_bytes())
    for file, expected in ((image.file, 1.5), (image.thumbnail, 2.5)):
        with file.open("rb") as stored, Image.open(stored) as picture:
            assert "icc_profile" not in picture.info
            small = Image.fromarray(twin()).resize(picture.size, reducing_gap=2)
            assert difference(np.asarray(picture), np.asarray(small)) < expected


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("AVIF", {"quality": 90}), ("JPEG", {"quality": 95})],
)
def test_the_profile_counts_in_every_format_that_has_one(kind: str, options: dict[str, Any]) -> None:
    image = wide()
    assert difference(opened(saved(image, kind, icc_profile=image.info["icc_profile"], **options)), twin()) < 1.5


@pytest.mark.parametrize("mode", ["P", "RGBA", "L", "LA"])
def test_the_profile_counts_in_every_mode(mode: str) -> None:
    image = wide().convert(mode)
    profile = wide().info["icc_profile"]
    got, expected = (opened(saved(one, "PNG", icc_profile=profile)) for one in (image, image.convert("RGB")))
    assert (got == expected).all()
    assert difference(got, opened(saved(image, "PNG", icc_profile=None))) > 0.5 or mode in (
        "L",
        "LA",
    )  # P3 and sRGB share their greys


def test_what_is_transparent_is_white_whatever_the_profile() -> None:
    image = wide().resize((4, 4)).convert("RGBA")
    image.putalpha(0)
    assert opened(saved(image, "PNG", icc_profile=wide().info["icc_profile"])).min() >= 254


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_linear_grey_is_brightened(kind: str) -> None:
    got = opened(saved(Image.new("L", (8, 8), 55), kind, icc_profile=grey_profile(1.0)))
    assert abs(got.astype(int) - 128).max() <= 2  # 55 / 255 of the light is 128 in sRGB


def test_deep_grey_has_a_profile_too() -> None:
    deep = Image.fromarray(np.full((4, 4), 55 * 257, np.uint16))
    assert abs(opened(saved(deep, "PNG", icc_profile=grey_profile(1.0))).astype(int) - 128).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_have_the_colours_that_their_profile_says(kind: str) -> None:
    profile = ink_profile(cyan=(127, 128, 128))  # a grey of half the lightness
    got = opened(saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), kind, icc_profile=profile))
    assert abs(got.astype(int) - 119).max() <= 3
    assert opened(saved(Image.new("CMYK", (8, 8)), kind, icc_profile=profile)).min() >= 253


def test_a_profile_that_is_srgb_changes_no_pixel() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = noise(32, 32)
    assert (opened(saved(Image.fromarray(pixels), "PNG", icc_profile=profile)) == pixels).all()


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        pytest.param("RGB", b"", id="nothing"),
        pytest.param("RGB", b"no profile", id="a text"),
        pytest.param("RGB", wide().info["icc_profile"][:300], id="cut short"),
        pytest.param("RGB", icc_profile(b"RGB ", b"XYZ ", {}), id="without curves"),
        pytest.param("RGB", icc_profile(b"RGB ", b"XYZ ", {}, device=b"link"), id="for no picture"),
        pytest.param("RGB", ink_profile((127, 128, 128)), id="for inks"),
        pytest.param("RGB", grey_profile(1.0), id="for greys"),
        pytest.param("CMYK", wide().info["icc_profile"], id="for light, in inks"),
        pytest.param("LAB", wide().info["icc_profile"], id="for light, in Lab"),
    ],
)
def test_a_profile_that_is_broken_or_for_other_pictures_is_ignored(mode: str, profile: bytes) -> None:
    image = Image.fromarray(noise(8, 8)).convert(mode) if mode != "LAB" else Image.new("LAB", (8, 8), (200, 150, 90))
    assert (opened(saved(image, "TIFF", icc_profile=profile)) == opened(saved(image, "TIFF"))).all()


def test_a_profile_in_a_broken_chunk_is_ignored() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in noise(4, 4))
    plain = opened(png(4, 4, 8, 2, rows))
    for chunk in (png_chunk(b"iCCP", b"P3\0\0nonsense"), png_chunk(b"iCCP", b"P3\0\1"), png_chunk(b"iCCP", b"P3")):
        assert (opened(png(4, 4, 8, 2, rows, before=chunk)) == plain).all()


def test_a_chunk_with_a_wrong_checksum_does_not_cost_the_profile() -> None:
    data = saved(wide(), "PNG", icc_profile=wide().info["icc_profile"])
    header, rest = data[:33], data[33:]
    comment = png_chunk(b"tEXt", b"Comment\0hello", checksum=b"nope")
    assert (opened(header + comment + rest) == opened(data)).all()
