"""A file or its bytes -> the picture as people see it. With repair.py the only place that opens images.

Pillow and its plugin for HEIF alone: the web process, which loads no torch, opens uploads with them too.
"""

import io
import os
import warnings
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from pillow_heif import register_heif_opener

from clipcap import heif
from clipcap.colour import profile_of, to_srgb
from clipcap.repair import is_whole_png, repaired

MAX_PIXELS = 100_000_000  # decoded, 0.4 GB in most formats, 1.5 GB as WebP; JPEGs are decoded at reduced size
MAX_SIDE = 65_535  # no JPEG can be longer; Pillow spends dozens of bytes on every row, however short
MAX_BYTES = 1 << 29  # of a file; some decoders read all of it before they tell how large the picture is
MAX_SCANS = 100  # of a progressive JPEG, which needs about ten; each passes over the whole picture for a few bytes

ImageSource = bytes | str | os.PathLike[str] | Image.Image
ImageErrorCode = Literal[
    "empty", "unreadable_file", "not_an_image", "unsupported_format", "damaged", "too_many_pixels", "too_many_bytes"
]

# How the names of pictures end, in whatever capitals.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".hif"),
)

# JPEG XL is left out: its plugin for Pillow decodes a picture when it opens it, before it can be refused for its size.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
_NAMES = ", ".join((*_FORMATS[:-1], "HEIC"))
_PARTS = 3  # times the pixels accepted may be decoded for one picture: tiles reach over edges, transparency is another
_ADVICE = "save the picture as JPEG or PNG"

# Offset and bytes that a format begins with. Pillow recognises by itself what it may open; these tell a damaged
# picture from a format that is not accepted, and both from what is not a picture at all.
_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphe", "HEIF"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (4, b"jP  ", "JPEG 2000"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"<svg", "SVG"),
)
_UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BAND = 1 << 22  # pixels converted at a time

# Neither the thumbnails nor the maps of depth that a phone stores beside a photo are wanted. One thread decodes a
# picture, as in other formats: several photos are decoded side by side.
register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


class ImageError(ValueError):
    """A picture that cannot be used; the message names the cause and the remedy.

    `code` is stable: `empty` (no bytes), `unreadable_file` (missing, a folder, no permission), `not_an_image`,
    `unsupported_format` (a picture in a format that is not accepted), `damaged` (broken, cut short or of a variant
    that cannot be decoded), `too_many_pixels`, `too_many_bytes`. `index` is the picture's place in the sequence given
    to `encode`.
    """

    def __init__(self, code: ImageErrorCode, message: str) -> None:
        super().__init__(code, message)  # both, because pickle rebuilds an exception from its arguments
        self.code = code
        self.index: int | None = None

    def __str__(self) -> str:
        return str(self.args[1])


def open_image(source: ImageSource, *, min_side: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as people see it, in RGB: upright, on white where transparent, the first frame where animated.

    Big pictures come smaller, but never with a short side below `min_side`: JPEGs are decoded at 1/2, 1/4 or 1/8
    of their size, which is several times faster, and what is still too big is averaged down by a whole factor.

    Args:
        source: the bytes of a file, its path, or a picture.
        min_side: short side in pixels that the caller needs; a smaller picture stays as it is.
        max_pixels: a picture that declares more is refused before any of it is decoded.

    Raises:
        ImageError: the picture cannot be used.
    """
    head = b""
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged metadata, which does not concern the pixels. The filter names Pillow, so
            # that threads that race to restore the filters can leave nothing worse than this one behind.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            if isinstance(source, Image.Image):
                _check_size(source, max_pixels)
                return _to_rgb(source, min_side)
            with _open_file(source) as file:
                size = file.seek(0, io.SEEK_END)
                if size > MAX_BYTES:
                    raise ImageError(
                        "too_many_bytes", f"the file has {size:,} bytes; the limit is {MAX_BYTES:,}; {_ADVICE}"
                    )
                file.seek(0)
                head = file.read(256)
                if not head:
                    raise ImageError("empty", f"the file is empty; {_ADVICE} and send it again")
                try:
                    return _read(file, min_side, max_pixels)
                except (ImageError, Image.DecompressionBombError, MemoryError):
                    raise
                except Exception:
                    file.seek(0)
                    whole = repaired(file.read(), max_pixels)
                    if whole is None:
                        raise
                    return _read(io.BytesIO(whole), min_side, max_pixels)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            "too_many_pixels", f"the picture has more than {max_pixels:,} pixels; make it smaller"
        ) from error
    except Exception as error:  # a hostile file can make the decoders raise nearly anything
        raise _explain(head, error) from error


def pixels_to_decode(source: ImageSource, *, min_side: int) -> int | None:
    """How many pixels `open_image` will hold at a time; None where only trying tells.

    They are those of the picture, but that JPEGs are decoded at a reduced size, unless they are progressive: of such
    the whole is kept until its last scan.
    """
    if isinstance(source, Image.Image):
        return source.width * source.height
    try:
        with warnings.catch_warnings(), _open_file(source) as file:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            if _kind(file.read(256)) == "HEIF":
                file.seek(0)
                return heif.decoding_cost(file.read(MAX_BYTES)).total
            file.seek(0)
            with Image.open(file, formats=_FORMATS) as image:
                if not image.info.get("progressive"):
                    image.draft("RGB", (min_side, min_side))
                return image.width * image.height
    except Exception:  # as in `open_image`
        return None


def _open_file(source: bytes | str | os.PathLike[str]) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    path = Path(source)
    try:
        if path.is_file():  # opening a pipe would wait for its writer, and a device may never end
            return path.open("rb")
        cause = "it does not exist" if not path.exists() else "it is not a file"
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or str(error)
    raise ImageError(
        "unreadable_file", f"{str(source)[:200]!r} cannot be read: {cause}; give the path of an image file"
    )


def _read(file: BinaryIO, min_side: int, max_pixels: int) -> Image.Image:
    file.seek(0)
    kind = _kind(file.read(256))
    colours = None
    if kind in ("AVIF", "HEIF"):
        file.seek(0)
        colours = _look_into(file.read(), kind, max_pixels)
    file.seek(0)
    with Image.open(file, formats=_FORMATS) as image:
        if not image.info.get(
            "primary", True
        ):  # of a HEIF file: the decoder does not know the kind of the one it shows
            raise OSError("this is not the picture that the file shows")
        if colours and "icc_profile" not in image.info:
            image.info["icc_profile"] = profile_of(*colours)
        _check_size(image, max_pixels)
        if image.info.get("progressive"):
            _check_scans(file)
        image.draft("RGB", (min_side, min_side))
        depth = image.tile[0].args if image.format == "PNG" else None  # and order, in Pillow's words
        image.load()
        _check_size(image, max_pixels)  # some decoders know better afterwards
        if image.format == "PNG":
            _check_end(image, file)
            _apply_key(image, depth, file)
        return _to_rgb(image, min_side)


def _look_into(data: bytes, kind: str, max_pixels: int) -> tuple[int, int] | None:
    """Refuse a HEIF file that would have too much decoded; the numbers of its colours, if it has any.

    Of an AVIF file libavif checks as much itself."""
    if kind == "HEIF":
        cost = heif.decoding_cost(data)
        if cost.largest > max_pixels or cost.total > _PARTS * max_pixels:
            raise ImageError(
                "too_many_pixels",
                f"the picture is put together from {cost.total:,} pixels, up to {cost.largest:,} in one part; at most "
                f"{max_pixels:,} are accepted; make it smaller",
            )
    return heif.colours(data)


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise ImageError(
            "too_many_pixels",
            f"the picture has {width} x {height} pixels; at most {max_pixels:,} are accepted, and {MAX_SIDE:,} a side; "
            f"make it smaller",
        )
    if width < 1 or height < 1:
        raise ImageError("damaged", f"the picture has no pixels ({width} x {height}); {_ADVICE}")


def _check_scans(file: BinaryIO) -> None:
    position = file.tell()  # behind the first scan's header
    scans, last = 1, b""
    while part := file.read(1 << 20):
        scans += (last + part).count(b"\xff\xda")
        last = part[-1:]
    file.seek(position)
    if scans > MAX_SCANS:
        raise ImageError(
            "damaged", f"the JPEG picture has {scans} scans, more than the {MAX_SCANS} accepted; {_ADVICE}"
        )


def _check_end(image: Image.Image, file: BinaryIO) -> None:
    """Refuse a PNG whose data end early, which leaves zeros in the last rows and is not an error to the decoder."""
    last = (image.crop((0, row, image.width, row + 1)) for row in {max(0, image.height - 2), image.height - 1})
    if any(not np.asarray(row).any() for row in last):  # both, as every other row of an interlaced picture is its last
        file.seek(0)
        if not is_whole_png(file.read()):
            raise OSError("the data ends before the last row")


def _apply_key(image: Image.Image, depth: Any, file: BinaryIO) -> None:
    """Bring a PNG's transparent colour to the depth that its pixels have in Pillow, which leaves it in the file's."""
    key = image.info.get("transparency")
    if isinstance(key, int) and depth in ("L", "L;2", "L;4"):
        highest = {"L": 255, "L;2": 3, "L;4": 15}[depth]
        image.info["transparency"] = (key & highest) * (255 // highest)
    elif isinstance(key, tuple) and depth == "RGB;16B":
        del image.info["transparency"]
        image.putalpha(_opaque(image, key, file))
    elif isinstance(key, tuple):
        image.info["transparency"] = tuple(level & 255 for level in key)


def _opaque(image: Image.Image, key: tuple[int, ...], file: BinaryIO) -> Image.Image:
    """Of a PNG with 16 bits a sample, of which `image` has the upper 8: 0 where all of a pixel's bits are the key's,
    elsewhere 255."""
    mask = Image.new("L", image.size, 255)
    rows = max(1, _BAND // image.width)
    file.seek(0)
    with Image.open(file, formats=("PNG",)) as low:
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]  # the other byte of each sample
        for number, (upper, lower) in enumerate(zip(_bands(image, rows), _bands(low, rows), strict=True)):
            samples = np.asarray(upper).astype(np.uint16) << 8 | np.asarray(lower)
            mask.paste(Image.fromarray((samples != key).any(axis=2).astype(np.uint8) * 255), (0, number * rows))
    return mask


def _kind(head: bytes) -> str | None:
    """What a file that begins with `head` says it is."""
    return next((name for offset, magic, name in _SIGNATURES if head.startswith(magic, offset)), None)


def _explain(head: bytes, error: Exception) -> ImageError:
    """What to tell of a file that begins with `head` and made the decoders raise `error`."""
    kind = _kind(head)
    if kind is None and b"<svg" in head:
        kind = "SVG"
    if kind in _FORMATS:
        return ImageError(
            "damaged", f"the {kind} picture is damaged, truncated or of an unsupported variant; {_ADVICE}"
        )
    if kind:
        return ImageError("unsupported_format", f"{kind} is not supported, only {_NAMES}; {_ADVICE}")
    if head:
        return ImageError("not_an_image", f"this is not a picture in a supported format ({_NAMES}); {_ADVICE}")
    return ImageError("damaged", f"the picture cannot be decoded ({type(error).__name__}: {error}); {_ADVICE}")


def _to_rgb(image: Image.Image, min_side: int) -> Image.Image:
    """Upright RGB, averaged down by the greatest whole factor that leaves a short side of at least `min_side`.

    It goes band by band: a second full copy of a big picture would double the memory that it takes.
    """
    image.load()
    width, height = image.size
    factor = max(1, min(width, height) // min_side)
    rows = factor * max(1, _BAND // (width * factor))
    deep = image.mode.startswith("I;16") or image.mode in ("I", "F")
    to_rgb = _Deep(image, rows).to_rgb if deep else _flat_to_rgb
    managed = to_srgb(image)
    in_ink = managed is not None and managed.mode == "CMYK"  # only the profile says which colours that makes
    small = Image.new("CMYK" if in_ink else "RGB", (ceil(width / factor), ceil(height / factor)))
    for number, band in enumerate(_bands(image, rows)):
        small.paste((band if in_ink else to_rgb(band)).reduce(factor), (0, number * rows // factor))
    rgb = managed.apply(small) if managed else small
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken metadata must not cost a good picture
        turn = None
    return rgb if turn is None else rgb.transpose(turn)


def _bands(image: Image.Image, rows: int) -> Iterator[Image.Image]:
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


class _Deep:
    """The greys of a picture in a mode that Pillow would clip to 8 bits."""

    def __init__(self, image: Image.Image, rows: int) -> None:
        tags: Any = getattr(image, "tag_v2", {})  # of a TIFF; Pillow does not heed these two
        self.white_is_zero = tags.get(ExifTags.Base.PhotometricInterpretation) == 0
        self.unsigned = image.mode == "I" and tags.get(ExifTags.Base.SampleFormat) == (1,)
        self.transparent = image.info.get("transparency")
        self.white = self._white_level(image, rows)

    def _white_level(self, image: Image.Image, rows: int) -> float:
        """Only 16-bit pictures define it. For wider ones it is the smallest customary level that holds every pixel."""
        if image.mode.startswith("I;16"):
            return 65535
        peak = 0.0
        for band in _bands(image, rows):
            values = self._values(band)
            peak = max(peak, float(values[np.isfinite(values)].max(initial=0)))
        levels = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        return next((level for level in levels if peak <= level), peak)

    def _values(self, band: Image.Image) -> npt.NDArray[Any]:
        values = np.asarray(band)
        return values.view(np.uint32) if self.unsigned else values

    def to_rgb(self, band: Image.Image) -> Image.Image:
        values = self._values(band)
        grey = np.nan_to_num(np.clip(values.astype(np.float32), 0, self.white)) * (255 / self.white)
        if self.white_is_zero:
            grey = 255 - grey
        if isinstance(self.transparent, int):
            grey[values == self.transparent] = 255
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")


def _flat_to_rgb(band: Image.Image) -> Image.Image:
    if band.has_transparency_data:
        band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band.convert("RGBA"))
    return band.convert("RGB")
