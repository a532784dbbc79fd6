"""Image -> CLIP embedding. The only place that preprocesses or normalises images.

Legend: B images, H x W the model's input in pixels, E size of an embedding.
"""

import clipcap.torchvision_schemas  # noqa: F401 (before open_clip is imported)

# isort: split
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from torch import Tensor, nn

from clipcap.device import pick_device, pick_dtype
from clipcap.fingerprint import file_sha256
from clipcap.image import ImageError, ImageSource, open_image

LOCAL_PREFIX, HUB_PREFIX = "local-dir:", "hf-hub:"


class EncoderError(ValueError):
    """A CLIP model that cannot be loaded; the message names the cause and the remedy."""


class Encoder:
    """The frozen image tower of a CLIP model.

    `identity` is what a mapper's checkpoint records of it: the name of a published model, or a local folder's name
    with the beginning of its weights' SHA-256. `embedding_size` is E.
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
        """Load a model that open_clip knows (`ViT-B-32/openai`), one of the model hub (`hf-hub:OWNER/NAME`) or one in a
        folder (`local-dir:PATH`).

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
            model, tag = (name, None) if name.startswith(HUB_PREFIX) else _model_and_tag(name)
            identity = name if tag is None else f"{model}/{tag}"
            # open_clip only warns where weights trained with QuickGELU, as OpenAI's were, meet a plain GELU
            quick_gelu = tag is not None and open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False)
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


def _model_and_tag(name: str) -> tuple[str, str | None]:
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
            f"(an encoder is named MODEL/TAG, as in ViT-B-32/openai, {HUB_PREFIX}OWNER/NAME or {LOCAL_PREFIX}PATH)"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not tag and "openai" in tags:  # a name alone means the weights that made it known
        tag = "openai"
    if tag not in tags:
        cause = f"has no pretrained weights {tag!r}" if tag else "alone does not say which weights"
        raise EncoderError(f"{model} {cause}; write {model}/TAG with one of: {', '.join(tags) or '(none)'}")
    return model, tag
