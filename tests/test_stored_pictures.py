"""What the service keeps of a picture is enough to caption it as the command does."""

import io
from typing import Any

import pytest
from PIL import Image
from torch.nn.functional import cosine_similarity

from captioner.inference.engine import CaptionEngine
from captioner.uploads import ENCODER_SIDE, SIDE, store


def strip(photo: bytes, side: int, times: int, *, upright: bool) -> bytes:
    """A JPEG with the photo, `side` pixels square, in the middle of `times` of them in a row."""
    with Image.open(io.BytesIO(photo)) as image:
        square = image.convert("RGB").resize((side, side))
    length = side * times
    canvas = Image.new("RGB", (side, length) if upright else (length, side), (120, 110, 90))
    middle = (length - side) // 2
    canvas.paste(square, (0, middle) if upright else (middle, 0))
    file = io.BytesIO()
    canvas.save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize(("side", "times"), [(1500, 1), (300, 1), (600, 10), (600, 20), (300, 40), (300, 150)])
def test_a_picture_of_any_shape_is_seen_stored_as_it_was_sent(
    side: int, times: int, upright: bool, db: None, media: Any, photo: bytes, engine: CaptionEngine
) -> None:
    data = strip(photo, side, times, upright=upright)
    image = store(data)
    with image.file.open("rb") as file:
        sent, stored = engine.captioner.encoder.encode([data, file.read()])
    assert cosine_similarity(sent, stored, dim=0) > 0.99
    assert min(image.width, image.height) >= min(side, ENCODER_SIDE)


def test_a_long_picture_is_stored_small_all_the_same(db: None, media: Any) -> None:
    file = io.BytesIO()
    Image.new("RGB", (1000, 10_000), (120, 110, 90)).save(file, "PNG")
    image = store(file.getvalue())
    assert (image.width, image.height) == (ENCODER_SIDE, 10 * ENCODER_SIDE)


def test_pictures_of_usual_shapes_are_stored_with_two_thousand_pixels_at_most(db: None, media: Any) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8000, 6000), (120, 110, 90)).save(file, "JPEG")
    image = store(file.getvalue())
    assert image.width <= 2 * SIDE
    assert image.height >= SIDE
