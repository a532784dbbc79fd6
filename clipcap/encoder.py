"""Image -> CLIP embedding. The only place that opens, preprocesses or normalises images.

Legend: B images, H x W the model's input in pixels, E size of an embedding.
"""

import difflib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg
from PIL import ExifTags, Image
from torch import Tensor, nn

from clipcap.device import pick_device, pick_dtype
from clipcap.fingerprint import file_sha256

LOCAL_PREFIX = "local-dir:"
MAX_PIXELS = 100_000_000  # decoded, 0.4 GB in most formats, 1.5 GB as WebP; JPEGs are decoded at reduced size
MAX_SIDE = 65_535  # no JPEG can be longer; Pillow spends dozens of bytes on every row, however short
MAX_SCANS = 100  # of a progressive JPEG, which needs about ten; each passes over the whole picture for a few bytes

ImageSource = bytes | str | os.PathLike[str] | Image.Image
ImageErrorCode = Literal["empty", "unreadable_file", "not_an_image", "unsupported_format", "damaged", "too_many_pixels"]

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_ADVICE = "save the picture as JPEG or PNG"

# Offset and bytes that a format begins with. Pillow recognises by itself what it may open; these tell a damaged
# picture from a format that is not accepted, and both from what is no picture at all.
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
    (4, b"ftyphe", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
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


class EncoderError(ValueError):
    """A CLIP model that cannot be loaded; the message names the cause and the remedy."""


class ImageError(ValueError):
    """A picture that cannot be used; the message names the cause and the remedy.

    `code` is stable: `empty` (no bytes), `unreadable_file` (missing, a folder, no permission), `not_an_image`,
    `unsupported_format` (a picture in a format that is not accepted), `damaged` (broken, cut short or of a variant
    that cannot be decoded), `too_many_pixels`. `index` is the picture's place in the sequence given to `encode`.
    """

    def __init__(self, code: ImageErrorCode, message: str) -> None:
        super().__init__(code, message)  # both, because pickle rebuilds an exception from its arguments
        self.code = code
        self.index: int | None = None

    def __str__(self) -> str:
        return str(self.args[1])


class Encoder:
    """The frozen image tower of a CLIP model.

    `identity` is what a mapper's checkpoint records of it: `MODEL/TAG` of a published model, or a local folder's
    name with the beginning of its weights' SHA-256. `embedding_size` is E.
    """

    def __init__(
        self, tower: nn.Module, preprocessing: PreprocessCfg, identity: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.tower = tower.eval().requires_grad_(False).to(device, dtype)
        self.preprocessing = preprocessing
        self.identity = identity
        self.device, self.dtype = device, dtype
        height, width = _height_width(preprocessing)
        self.embedding_size = self.encode_pixels(torch.zeros(1, 3, height, width)).shape[1]

    @classmethod
    def load(cls, name: str, *, device: str = "auto", dtype: str = "auto") -> "Encoder":
        """Load a published model of open_clip (`ViT-B-32/openai`) or one in a folder (`local-dir:PATH`).

        Raises:
            EncoderError: no such model, tag or folder, damaged weights, or no network to fetch them.
            ValueError: the device or dtype cannot be used here.
        """
        where = pick_device(device)
        precision = pick_dtype(dtype, where)
        if name.startswith(LOCAL_PREFIX):
            model, tag, quick_gelu = name, None, False
            identity = _local_identity(Path(name.removeprefix(LOCAL_PREFIX)))
            remedy = "the folder's files are damaged or do not belong together; copy them again, whole"
        else:
            model, tag = _model_and_tag(name)
            identity = f"{model}/{tag}"
            # open_clip only warns where weights trained with QuickGELU, as OpenAI's were, meet a plain GELU
            quick_gelu = open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False)
            remedy = (
                f"its weights are downloaded on first use: check the network and the free disk space, "
                f"or give a folder that has them ({LOCAL_PREFIX}PATH)"
            )
        try:
            clip = open_clip.create_model(model, tag, force_quick_gelu=quick_gelu, require_pretrained=True)
            return cls(clip.visual, PreprocessCfg(**clip.visual.preprocess_cfg), identity, where, precision)
        except Exception as error:  # open_clip, timm, safetensors, torch and the hub each raise their own kinds
            cause = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            raise EncoderError(f"encoder {name!r} cannot be loaded ({cause}); {remedy}") from error

    def preprocess(self, source: ImageSource) -> Tensor:
        """The picture as the model wants to see it: (3, H, W) float32.

        Raises:
            ImageError: the picture cannot be used.
        """
        config = self.preprocessing
        image = _fit(open_image(source, min_side=2 * max(_height_width(config))), config)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255  # (3, H, W)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
        return (pixels - mean) / std

    @torch.inference_mode()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) preprocessed pictures -> (B, E) embeddings, float32, on the CPU and not normalised."""
        out = self.tower(pixels.to(self.device, self.dtype))
        embeddings: Tensor = out[0] if isinstance(out, tuple) else out  # CoCa's tower adds its patch tokens
        return embeddings.float().cpu()

    def encode(self, sources: Sequence[ImageSource], batch_size: int = 32) -> Tensor:
        """Embeddings of pictures: (B, E) float32, on the CPU and not normalised.

        Raises:
            ImageError: a picture cannot be used; `index` says which one.
        """
        rows = [torch.empty(0, self.embedding_size)]
        for start in range(0, len(sources), batch_size):
            pixels = []
            for index, source in enumerate(sources[start : start + batch_size], start):
                try:
                    pixels.append(self.preprocess(source))
                except ImageError as error:
                    error.index = index
                    raise
            rows.append(self.encode_pixels(torch.stack(pixels)))
        return torch.cat(rows)


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
                head = file.read(256)
                if not head:
                    raise ImageError("empty", f"the file is empty; {_ADVICE} and send it again")
                with Image.open(file, formats=_FORMATS) as image:
                    _check_size(image, max_pixels)
                    if image.info.get("progressive"):
                        _check_scans(file)
                    image.draft("RGB", (min_side, min_side))
                    return _to_rgb(image, min_side)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            "too_many_pixels", f"the picture has more than {max_pixels:,} pixels; make it smaller"
        ) from error
    except Exception as error:  # a hostile file can make the decoders raise nearly anything
        raise _explain(head, error) from error


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
    raise ImageError("unreadable_file", f"{str(source)[:200]!r} cannot be read: {cause}; give the path of a picture")


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
    scans = 1 + file.read().count(b"\xff\xda")
    file.seek(position)
    if scans > MAX_SCANS:
        raise ImageError("damaged", f"the JPEG picture has {scans} scans and at most {MAX_SCANS} are sane; {_ADVICE}")


def _explain(head: bytes, error: Exception) -> ImageError:
    """What to tell of a file that begins with `head` and made the decoders raise `error`."""
    kind = next((name for offset, magic, name in _SIGNATURES if head.startswith(magic, offset)), None)
    if kind is None and b"<svg" in head:
        kind = "SVG"
    if kind in _FORMATS:
        return ImageError("damaged", f"the {kind} picture is damaged, cut short or of a rare variant; {_ADVICE}")
    if kind:
        return ImageError("unsupported_format", f"{kind} is not accepted, only {', '.join(_FORMATS)}; {_ADVICE}")
    if head:
        return ImageError("not_an_image", f"this is no picture in {', '.join(_FORMATS)}; {_ADVICE}")
    return ImageError("damaged", f"the picture cannot be decoded ({type(error).__name__}: {error}); {_ADVICE}")


def _to_rgb(image: Image.Image, min_side: int) -> Image.Image:
    """Upright RGB, averaged down by the greatest whole factor that leaves a short side of at least `min_side`.

    It goes band by band: a second full copy of a big picture would double the memory that it takes.
    """
    image.load()
    width, height = image.size
    factor = max(1, min(width, height) // min_side)
    rows = factor * max(1, _BAND // (width * factor))
    white = _white_level(image, rows)
    rgb = Image.new("RGB", (ceil(width / factor), ceil(height / factor)))
    for number, band in enumerate(_bands(image, rows)):
        rgb.paste(_band_to_rgb(band, white).reduce(factor), (0, number * rows // factor))
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken metadata must not cost a good picture
        turn = None
    return rgb if turn is None else rgb.transpose(turn)


def _bands(image: Image.Image, rows: int) -> Iterator[Image.Image]:
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _white_level(image: Image.Image, rows: int) -> float | None:
    """The value that means white in modes that Pillow would clip to 8 bits; None in all others.

    Only 16-bit pictures define it. For wider ones it is the smallest customary level that holds every pixel.
    """
    if image.mode.startswith("I;16"):
        return 65535
    if image.mode not in ("I", "F"):
        return None
    peak = 0.0
    for band in _bands(image, rows):
        values = np.asarray(band)
        peak = max(peak, float(values[np.isfinite(values)].max(initial=0)))
    levels = (1, 255, 65535) if image.mode == "F" else (255, 65535)
    return next((level for level in levels if peak <= level), peak)


def _band_to_rgb(band: Image.Image, white: float | None) -> Image.Image:
    if white is not None:
        grey = np.nan_to_num(np.clip(np.asarray(band, dtype=np.float32), 0, white)) * (255 / white)
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if band.has_transparency_data:
        band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band.convert("RGBA"))
    return band.convert("RGB")


def _fit(image: Image.Image, config: PreprocessCfg) -> Image.Image:
    """Resize and crop to the model's input, with the results of open_clip's `image_transform`.

    Only what the model will see is resized: the short side of 20,000 x 10 brought to 224 pixels would make a
    picture of 448,000 x 224.
    """
    height, width = _height_width(config)
    resample = Image.Resampling.BILINEAR if config.interpolation == "bilinear" else Image.Resampling.BICUBIC

    def resize(size: tuple[int, int], box: tuple[float, float, float, float] | None = None) -> Image.Image:
        # The gap concerns sides above 32 times the wanted size only; their filter would take gigabytes.
        return image.resize(size, resample, box, reducing_gap=16)

    if config.resize_mode == "squash":
        return resize((width, height))
    if config.resize_mode == "longest":
        ratio = max(image.height / height, image.width / width)
        inner_width, inner_height = (max(1, round(side / ratio)) for side in image.size)
        canvas = Image.new("RGB", (width, height), (config.fill_color,) * 3)
        canvas.paste(resize((inner_width, inner_height)), ((width - inner_width) // 2, (height - inner_height) // 2))
        return canvas
    whole = int if height == width else round  # open_clip takes another path for models that are not square
    if image.width * height >= image.height * width:
        full_width, full_height = max(width, whole(height * image.width / image.height)), height
    else:
        full_width, full_height = width, max(height, whole(width * image.height / image.width))
    left, top = round((full_width - width) / 2), round((full_height - height) / 2)
    to_x, to_y = image.width / full_width, image.height / full_height
    right, bottom = min((left + width) * to_x, image.width), min((top + height) * to_y, image.height)
    return resize((width, height), (left * to_x, top * to_y, right, bottom))


def _height_width(config: PreprocessCfg) -> tuple[int, int]:
    if isinstance(config.size, int):
        return config.size, config.size
    return cast(tuple[int, int], tuple(config.size))


def _local_identity(folder: Path) -> str:
    weights = folder / "open_clip_model.safetensors"
    for path in (folder / "open_clip_config.json", weights):
        if not path.is_file():
            cause = f"it has no {path.name}" if folder.is_dir() else "it does not exist"
            raise EncoderError(
                f"encoder folder {str(folder)!r} cannot be used: {cause}; give a folder with open_clip_config.json "
                f"and open_clip_model.safetensors"
            )
    return f"{folder.resolve().name}@{file_sha256(weights)[:16]}"


def _model_and_tag(name: str) -> tuple[str, str]:
    model, _, tag = name.rpartition("/")
    known = open_clip.list_models()
    if not model and tag in known:
        model, tag = tag, ""
    if model not in known:
        by_lower = {one.lower(): one for one in known}
        near = [by_lower[one] for one in difflib.get_close_matches((model or tag).lower(), by_lower, n=4)]
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise EncoderError(
            f"{model or tag!r} is not a model that open_clip knows{hint} "
            f"(an encoder is named MODEL/TAG, as in ViT-B-32/openai, or {LOCAL_PREFIX}PATH)"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        raise EncoderError(
            f"{model} has no pretrained weights {tag!r}; write {model}/TAG with one of: {', '.join(tags) or '(none)'}"
        )
    return model, tag
