"""What the service keeps of a picture is enough to caption it as the command does."""

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image
from torch.nn.functional import cosine_similarity

from captioner import services
from captioner.inference.engine import CaptionEngine
from captioner.models import Style, Viewer
from captioner.uploads import ENCODER_SIDE, SIDE, store
from clipcap import cli


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


@pytest.mark.parametrize("upright", [True, False])
def test_a_picture_twenty_times_as_long_as_wide_gets_the_caption_of_the_command(
    upright: bool, styles: dict[str, Style], photo: bytes, engine: CaptionEngine, tmp_path: Path, capsys: Any
) -> None:
    data = strip(photo, 600, 20, upright=upright)

    def by_both(method: str, file: bytes) -> tuple[str, str]:
        """The caption of the upload by the service, and that of a file by the command."""
        upload, options = services.Upload(data), {"method": method}
        request = services.request_captions(viewer=Viewer(), images=[upload], styles=["factual"], options=options)
        engine.work()
        (tmp_path / "long.jpg").write_bytes(file)
        command = ["caption", str(tmp_path / "long.jpg"), "--style", "factual", "--method", method, "--json"]
        assert cli.main(command) == 0
        return request.captions.get().text, json.loads(capsys.readouterr().out)["caption"]

    service, command = by_both("greedy", data)
    assert service == command
    # With samples, an embedding that differs by 0.0003 picks another of candidates that are about as good: so the
    # command gets what is stored.
    with store(data).file.open("rb") as stored:
        service, command = by_both("beam", stored.read())
    assert service == command


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("quality", [40, 75, 95])
def test_a_jpeg_is_stored_as_it_was_rounded_and_takes_no_more_bytes(
    quality: int, subsampling: int, db: None, media: Any, photo: bytes, engine: CaptionEngine
) -> None:
    file = io.BytesIO()
    with Image.open(io.BytesIO(photo)) as whole:
        whole.convert("RGB").resize((256, 256)).save(file, "JPEG", quality=quality, subsampling=subsampling)
    image = store(file.getvalue())
    with image.file.open("rb") as stored:
        sent, kept = engine.captioner.encoder.encode([file.getvalue(), stored.read()])
    assert cosine_similarity(sent, kept, dim=0) > 0.99  # what is said of colours is coarser, and is rounded once more
    assert image.size < 1.05 * len(file.getvalue())


@pytest.mark.parametrize(("kind", "orientation"), [("PNG", 1), ("JPEG", 6), ("JPEG", 3)])
def test_a_small_picture_of_another_kind_or_turned_is_stored_without_loss_that_an_encoder_sees(
    kind: str, orientation: int, db: None, media: Any, photo: bytes, engine: CaptionEngine
) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with Image.open(io.BytesIO(photo)) as whole:
        whole.convert("RGB").resize((256, 200)).save(file, kind, exif=exif)
    image = store(file.getvalue())
    with image.file.open("rb") as stored:
        sent, kept = engine.captioner.encoder.encode([file.getvalue(), stored.read()])
    assert cosine_similarity(sent, kept, dim=0) > 0.99
    assert (image.width, image.height) == ((200, 256) if orientation == 6 else (256, 200))


def test_broken_metadata_costs_no_picture(db: None, media: Any, photo: bytes) -> None:
    broken = photo[:2] + b"\xff\xe1\x00\x12Exif\0\0" + b"MM\0*\xff\xff\xff\xff\xff\xff"[:8] + photo[2:]
    assert store(broken).width


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


@pytest.mark.parametrize(("form", "compression"), [("PNG", {}), ("JPEG", {"quality": 99, "subsampling": 0})])
@pytest.mark.parametrize("side", [200, 900, 2000])
def test_noise_which_takes_more_bytes_than_pixels_is_stored_like_any_picture(
    side: int, form: str, compression: dict[str, Any], db: None, media: Any
) -> None:
    noise = Image.frombytes("RGB", (side, side), random.Random(side).randbytes(3 * side * side))
    file = io.BytesIO()
    noise.save(file, form, **compression)
    image = store(file.getvalue())
    with image.file.open("rb") as stored, Image.open(stored) as picture:
        picture.load()
        assert picture.size == (image.width, image.height)
    assert image.thumbnail.size > 0
