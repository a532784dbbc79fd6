"""HEIC, the photos of phones: seen as a viewer shows them, and counted before they are decoded."""

import io
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from captioner.models import Style
from captioner.uploads import store
from clipcap import heif as reader
from clipcap.colour import profile_of
from clipcap.image import MAX_PIXELS, ImageError, open_image, pixels_to_decode
from tests.dataset_files import packed
from tests.heif_files import Item, box, coded, extent, full_box, grid, heif, mirrored, nclx, overlay, turned
from tests.importing import imported
from tests.memory import peak_growth
from tests.pictures import FILES, Pixels, noise, saved, smooth

PHONE = (FILES / "phone.heic").read_bytes()
ALPHA = full_box(b"auxC", 0, 0, b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
DEPTH = full_box(b"auxC", 0, 0, b"urn:mpeg:mpegB:cicp:systems:auxiliary:depth\0")


def opened(data: bytes) -> Pixels:
    return np.asarray(open_image(data, min_side=448))


def refusal(data: bytes, **options: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        open_image(data, min_side=448, **options)
    return caught.value


def difference(one: Pixels, other: Pixels) -> float:
    return float(abs(one.astype(int) - other).mean())


def quarters() -> Image.Image:
    """Four colours, so that every way to turn it looks different."""
    image = Image.new("RGB", (64, 64), "red")
    for place, colour in (((32, 0), "green"), ((0, 32), "blue"), ((32, 32), "white")):
        image.paste(Image.new("RGB", (32, 32), colour), place)
    return image


def large() -> Item:
    """What says that it has many pixels."""
    return coded(quarters(), size=(4096, 4096))


# What good files look like


def test_a_photo_of_a_phone_looks_like_its_twin() -> None:
    assert difference(opened(PHONE), opened((FILES / "srgb_twin.jpg").read_bytes())) < 1.5


def test_a_photo_of_a_phone_is_taken_by_the_api_and_stored(client: Client, styles: None, media: Any) -> None:
    answer = client.post("/api/captions/", {"image": io.BytesIO(PHONE)})
    assert answer.status_code == 202, answer.content
    stored = store(PHONE)
    with stored.file.open("rb") as file, Image.open(file) as picture:
        assert picture.format == "JPEG"
        assert difference(np.asarray(picture), opened(PHONE)) < 2


def test_photos_of_phones_are_imported_with_their_captions(style: Style, media: Any) -> None:
    files = {"a.HEIC": PHONE, "a.txt": b"a boy in the air", "b.hif": PHONE[:-1], "b.txt": b"a boy in the air"}
    batch = imported(style, packed(files))
    assert (batch.accepted, batch.rejected.count()) == (1, 1)
    assert "damaged" in batch.rejected.get().reason


def test_pages_and_refusals_say_that_heic_is_accepted(client: Client, styles: None) -> None:
    page = client.get("/").content.decode()
    assert 'accept="image/*,.heic,.heif,.hif,.avif"' in page  # systems that do not know a kind offer it by its name
    assert "HEIC" in page
    assert "HEIC" in str(refusal(b"hello"))


@pytest.mark.parametrize(
    ("properties", "scene"),
    [
        ([turned(1)], np.rot90),
        ([turned(2)], lambda pixels: np.rot90(pixels, 2)),
        ([turned(3)], lambda pixels: np.rot90(pixels, 3)),
        ([mirrored(0)], np.flipud),
        ([mirrored(1)], np.fliplr),
        ([turned(1), mirrored(1)], lambda pixels: np.fliplr(np.rot90(pixels))),
    ],
)
def test_a_picture_is_turned_as_its_properties_say(properties: list[bytes], scene: Callable[[Pixels], Pixels]) -> None:
    assert difference(opened(heif(coded(quarters(), *properties))), scene(np.asarray(quarters()))) < 3


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_picture_is_not_turned_once_more_by_its_metadata(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    texts = Item(b"Exif", bytes(4) + exif.tobytes()[6:], [], {b"cdsc": [1]})
    for properties in ([turned(1)], []):
        plain, told = heif(coded(quarters(), *properties)), heif(coded(quarters(), *properties), texts)
        assert (opened(told) == opened(plain)).all()


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_tiles_are_put_side_by_side(brand: bytes) -> None:
    left, right = smooth(64, 64), quarters()
    got = opened(heif(grid(2, 1, 120, 60, [2, 3]), coded(left), coded(right), brand=brand))
    assert difference(got, np.hstack([np.asarray(left), np.asarray(right)])[:60, :120]) < 4


def test_layers_are_put_one_over_the_other() -> None:
    got = opened(heif(overlay(64, 64, [2, 3]), coded(smooth(64, 64)), coded(quarters())))
    assert difference(got, np.asarray(quarters())) < 3


def test_what_is_transparent_is_white() -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    image.paste((0, 0, 255, 0), (0, 0, 32, 64))
    got = opened(saved(image, "HEIF", quality=95))
    assert got[:, :24].min() > 250
    assert difference(got[:, 40:], np.full((64, 24, 3), (255, 0, 0))) < 4


def test_deep_greys_are_scaled_and_not_clipped() -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (64, 1))
    got = opened(saved(Image.fromarray(ramp), "HEIF", quality=95))
    assert abs(got[32, :, 0].astype(int) - np.arange(256)).max() <= 4


def test_thumbnails_and_depth_are_not_shown() -> None:
    thumbnail, depth = coded(smooth(16, 16)), coded(smooth(64, 64), DEPTH)
    thumbnail.references, depth.references = {b"thmb": [1]}, {b"auxl": [1]}
    data = heif(coded(quarters()), thumbnail, depth)
    assert difference(np.asarray(open_image(data, min_side=8)), np.asarray(quarters().resize((8, 8)))) < 20
    assert opened(data).shape == (64, 64, 3)


# Colours


COLOUR = (200, 90, 40)  # in Display P3


def in_srgb() -> Pixels:
    """What the profile of a photo in Display P3 makes of the colour."""
    with Image.open(FILES / "icc_p3.jpg") as photo:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(photo.info["icc_profile"]))
    image = Image.new("RGB", (64, 64), COLOUR)
    ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), inPlace=True)
    return np.asarray(image)


def with_numbers(data: bytes, primaries: int, transfer: int) -> bytes:
    """The file with other numbers for its colours, of which it has some."""
    place = data.index(b"nclx") + 4
    return data[:place] + struct.pack(">HH", primaries, transfer) + data[place + 4 :]


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_colours_told_by_numbers_are_shown(kind: str) -> None:
    image = Image.new("RGB", (64, 64), COLOUR)
    plain = heif(coded(image, nclx(1, 13, 6))) if kind == "HEIF" else saved(image, kind, quality=95)
    assert difference(opened(plain), np.asarray(image)) < 3
    assert difference(in_srgb(), np.asarray(image)) > 6
    assert difference(opened(with_numbers(plain, 12, 13)), in_srgb()) < 3


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_a_profile_is_shown(kind: str) -> None:
    with Image.open(FILES / "icc_p3.jpg") as photo:
        profile = photo.info["icc_profile"]
    data = saved(Image.new("RGB", (64, 64), COLOUR), kind, quality=95, icc_profile=profile)
    assert difference(opened(data), in_srgb()) < 3


def seen(level: int, primaries: int, transfer: int) -> int:
    """What becomes of a grey level."""
    data = heif(coded(Image.new("RGB", (64, 64), (level,) * 3), nclx(primaries, transfer, 6)))
    return int(np.median(opened(data)))


def test_curves_of_light_are_heeded() -> None:
    assert abs(seen(55, 1, 8) - 128) <= 3  # linear
    assert abs(seen(128, 1, 4) - 128) <= 2  # gamma 2.2 is nearly sRGB's
    assert seen(150, 9, 16) >= 253  # PQ: white of a page, and what is brighter
    assert abs(seen(128, 9, 18) - 128) <= 2  # HLG was made to look right untouched
    for primaries, transfer in ((1, 13), (1, 1), (2, 2)):
        assert abs(seen(128, primaries, transfer) - 128) <= 1


@pytest.mark.parametrize("primaries", [1, 4, 5, 6, 7, 9, 11, 12])
def test_white_is_white_in_all_primaries(primaries: int) -> None:
    profile = profile_of(primaries, 8)
    assert profile
    image = Image.new("RGB", (1, 1), "white")
    ImageCms.profileToProfile(image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), inPlace=True)
    assert min(image.getpixel((0, 0))) >= 254  # type: ignore[arg-type]


# What is refused


def test_a_grid_that_is_cut_short_is_refused() -> None:
    tile = coded(Image.fromarray(noise(64, 64)))
    data = heif(grid(2, 2, 128, 128, [2, 3, 4, 5]), tile, tile, tile, tile)
    for end in (*range(0, len(data), len(data) // 20), len(data) - 1):
        if end > 12:
            assert refusal(data[:end]).code == "damaged"


def test_another_picture_than_the_one_shown_is_refused() -> None:
    assert refusal(heif(Item(b"jpeg", b"123", [extent(64, 64)]), coded(quarters()))).code == "damaged"


def lying_canvas() -> Item:
    item = overlay(20_000, 20_000, [2])
    item.properties = [extent(64, 64)]
    return item


def layers_of_layers() -> bytes:
    return heif(*(overlay(64, 64, [n] * 20) for n in range(2, 10)), coded(quarters()))


def bombs() -> dict[str, bytes]:
    small = coded(quarters())
    alpha = coded(Image.new("L", (64, 64)), ALPHA, size=(6000, 6000))
    alpha.references = {b"auxl": [2, 3, 4]}
    shared = bytearray(heif(small, *(Item(b"Exif", bytes(3 << 20), [], {b"cdsc": [1]}) for _ in range(3))))
    places = shared.index(b"iloc") + 12
    entry = shared[places + 14 + 6 : places + 28]
    for number in (2, 3):
        shared[places + 14 * number + 6 : places + 14 * (number + 1)] = entry
    return {
        "a size that lies upwards": heif(coded(quarters(), size=(20_000, 20_000))),
        "a size that lies downwards": heif(coded(Image.new("RGB", (512, 512)), size=(64, 64))),
        "a large grid": heif(grid(1, 1, 20_000, 20_000, [2]), small),
        "a large overlay": heif(overlay(20_000, 20_000, [2]), small),
        "an overlay that lies": heif(lying_canvas(), small),
        "a large picture in each tile": heif(grid(16, 16, 64, 64, [2] * 256), large()),
        "a large picture in each layer": heif(overlay(64, 64, [2] * 200), large()),
        "layers of layers": layers_of_layers(),
        "layers of itself": heif(overlay(64, 64, [1, 2]), small),
        "layers of each other": heif(overlay(64, 64, [2]), overlay(64, 64, [1])),
        "transparency for each tile": heif(grid(3, 3, 192, 192, [2, 3, 4] * 3), small, small, small, alpha),
        "one text many times": bytes(shared).replace(bytes(3 << 20), b"", 2),
        "a grid within a small overlay": heif(overlay(64, 64, [2]), grid(1, 1, 20_000, 20_000, [3]), small),
    }


@pytest.mark.parametrize("name", bombs())
def test_what_would_take_too_much_is_refused_before_it_is_decoded(name: str) -> None:
    data = bombs()[name]
    growth = peak_growth(lambda: refusal(data))
    assert growth < 20
    assert refusal(data).code in ("too_many_pixels", "damaged")


def test_limits_hold_for_the_largest_part_and_for_all_parts_together() -> None:
    data = heif(grid(2, 2, 100, 100, [2] * 4), coded(quarters()))
    assert reader.decoding_cost(data) == (4 * 64 * 64, 100 * 100)
    assert opened(data).shape == (100, 100, 3)
    assert open_image(data, min_side=448, max_pixels=4 * 64 * 64).size == (100, 100)
    assert refusal(data, max_pixels=100 * 100 - 1).code == "too_many_pixels"
    many = heif(overlay(64, 64, [2] * 4), coded(quarters()))
    assert refusal(many, max_pixels=64 * 64).code == "too_many_pixels"
    assert refusal(heif(coded(quarters(), size=(70_000, 1)))).code == "too_many_pixels"


def test_what_is_admitted_are_the_pixels_of_all_parts() -> None:
    depth, alpha = coded(smooth(64, 64), DEPTH), coded(Image.new("L", (64, 64)), ALPHA)
    depth.references = alpha.references = {b"auxl": [1]}
    assert pixels_to_decode(heif(coded(quarters())), min_side=448) == 64 * 64
    assert pixels_to_decode(heif(coded(quarters()), depth), min_side=448) == 64 * 64
    assert pixels_to_decode(heif(coded(quarters()), alpha), min_side=448) == 2 * 64 * 64
    assert pixels_to_decode(heif(grid(2, 1, 128, 64, [2, 2]), coded(quarters())), min_side=448) == 2 * 64 * 64
    assert pixels_to_decode(b"\0\0\0\x18ftypheic", min_side=448) is None


@pytest.mark.parametrize(
    "brand", [b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"]
)
def test_files_of_every_brand_are_counted(brand: bytes) -> None:
    refused = refusal(heif(grid(16, 16, 64 * 16, 64 * 16, [2] * 256), coded(quarters()), brand=brand), max_pixels=9999)
    assert "256 pixels" in str(refused) or "1,048,576" in str(refused)


# Anything at all


def counted(data: bytes) -> None:
    started = time.process_time()
    try:
        found = reader.decoding_cost(data)
    except ValueError:
        pass
    else:
        assert found.largest <= max(found.total, MAX_PIXELS**2)
    reader.colours(data)
    assert time.process_time() - started < 5


SAMPLE = heif(grid(2, 1, 128, 64, [2, 3], nclx(12, 13, 6)), coded(quarters()), coded(quarters()))


@given(st.lists(st.tuples(st.integers(0, len(SAMPLE)), st.binary(min_size=1, max_size=4)), max_size=6))
def test_broken_tables_are_counted_or_refused(changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(SAMPLE)
    for place, change in changes:
        data[place : place + len(change)] = change
    counted(bytes(data))


@given(st.lists(st.sampled_from([b"meta", b"iinf", b"iloc", b"iprp", b"ipco", b"ipma", b"iref", b"pitm"])), st.binary())
def test_made_up_boxes_are_counted_or_refused(kinds: list[bytes], body: bytes) -> None:
    data = body
    for kind in kinds:
        data = box(kind, bytes(4), data)
    counted(box(b"ftyp", b"heic") + data)


def test_places_without_bytes_take_no_time() -> None:
    entries = b"".join(struct.pack(">HHH", number, 0, 65535) for number in range(60_000))
    meta = full_box(
        b"meta",
        0,
        0,
        full_box(b"pitm", 0, 0, b"\0\1"),
        full_box(b"iinf", 0, 0, b"\0\0"),
        full_box(b"iloc", 0, 0, struct.pack(">BBH", 0, 0, 60_000), entries),
        box(b"iprp"),
    )
    with pytest.raises(ValueError, match="60,000 items"):
        reader.decoding_cost(box(b"ftyp", b"heic") + meta)
