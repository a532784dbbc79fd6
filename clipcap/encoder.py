"""Image and text -> CLIP embedding. The only place that preprocesses or normalises images.

Legend: B images, H x W the model's input in pixels, N texts, T tokens, E size of an embedding.
"""

import clipcap.torchvision_schemas  # noqa: F401 (before open_clip is imported)

# isort: split
import difflib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.transformer import TextTransformer
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from clipcap.clip_folder import (
    CONFIG,
    TEXT,
    ClipFolderError,
    claimed_identity,
    image_files,
    load_image_tower,
    load_text_tower,
    read_config,
)
from clipcap.device import pick_device, pick_dtype
from clipcap.fast_tower import fastest, first
from clipcap.fingerprint import file_sha256
from clipcap.image import ImageError, ImageSource, open_image

LOCAL_PREFIX, HUB_PREFIX = "local-dir:", "hf-hub:"
SIMPLE_VOCABULARY = 49408  # of the tokenizer that open_clip takes where a config names none
DAMAGED = "the folder's files are damaged or do not belong together; copy all of them again"
DOWNLOADED = (
    f"its weights are downloaded on first use: check the network and the free disk space, "
    f"or give a folder that has them ({LOCAL_PREFIX}PATH)"
)


Tokenizer = Callable[[list[str]], Tensor]  # texts -> (N, T) token ids


class EncoderError(ValueError):
    """A CLIP model that cannot be loaded, or lacks what it is asked for; the message names the cause and the remedy."""


@dataclass(frozen=True)
class TextHalf:
    """What makes a text comparable with photos; `load` gives the tower, (N, T) -> (N, E), and its tokenizer."""

    identity: str
    load: Callable[[], tuple[nn.Module, Tokenizer]]


class Encoder:
    """A frozen CLIP model: its image tower, and its text tower where it has one.

    `identity` is what a mapper's checkpoint records of the image tower: the name of a published model, or a local
    folder's name with the beginning of its weights' SHA-256, unless the folder claims to hold a published model's.
    `text_identity` is the same of the text tower, None where there is none. `embedding_size` is E.
    """

    def __init__(
        self,
        tower: nn.Module,
        preprocessing: PreprocessCfg,
        identity: str,
        device: torch.device,
        dtype: torch.dtype,
        text: TextHalf | None = None,
    ) -> None:
        self.tower = tower.eval().requires_grad_(False).to(device, dtype)
        self.preprocessing = preprocessing
        self.identity = identity
        self.text_identity = text.identity if text else None
        self.device, self.dtype = device, dtype
        self._text_half = text
        height, width = _height_width(preprocessing)
        self.embedding_size = self.encode_pixels(torch.zeros(1, 3, height, width)).shape[1]

    @classmethod
    def load(cls, name: str, *, device: str = "auto", dtype: str = "auto") -> "Encoder":
        """Load a model that open_clip knows (`ViT-B-32/openai`), one of the model hub (`hf-hub:OWNER/NAME`) or one in a
        folder (`local-dir:PATH`), which has open_clip's own files or those of `clipcap.clip_folder`.

        The text tower is loaded when it is first used. With dtype `auto`, a CPU computes in bfloat16 or 8-bit integers
        if it has instructions for them (see `clipcap.fast_tower`).

        Raises:
            EncoderError: no such model, tag or folder, damaged weights, or no network to fetch them.
            ValueError: the device or dtype cannot be used here.
        """
        where = pick_device(device)
        precision = pick_dtype(dtype, where)
        with _explained(name, DAMAGED):
            model = _found(name)
        with _explained(name, model.remedy):
            tower, preprocessing = model.load_image()
            encoder = cls(tower, preprocessing, model.identity, where, precision, model.text)
            if dtype == "auto" and where.type == "cpu":
                encoder.tower = fastest(encoder.tower, _height_width(preprocessing))
            return encoder

    @property
    def together(self) -> int:
        """How many pictures are best encoded at a time. On a CPU more are no faster, and the activations of 32 photos
        alone take half a gigabyte."""
        return 1 if self.device.type == "cpu" else 32

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
        return first(self.tower(pixels.to(self.device, self.dtype))).float().cpu()

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

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Embeddings of texts, to be compared by their cosine with those of photos: (N, E) float32, on the CPU and not
        normalised.

        Raises:
            EncoderError: the model has no text half, or it cannot be loaded.
        """
        tower, tokenize = self._text
        vectors = torch.empty(len(texts), self.embedding_size)
        # Texts of like length together: what is behind the longest of a batch costs nothing.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(texts), batch_size):
            rows = order[start : start + batch_size]
            tokens = tokenize([texts[i] for i in rows]).to(self.device)
            vectors[rows] = encode_tokens(tower, tokens).float().cpu()
        return vectors

    @cached_property
    def _text(self) -> tuple[nn.Module, Tokenizer]:
        if self._text_half is None:
            raise EncoderError(
                f"{self.identity} has no text tower, so text cannot be compared with photos; load a CLIP model that "
                f"has one, such as ViT-B-32/openai"
            )
        with _explained(self._text_half.identity, "check its text tower and tokenizer, and the network they come from"):
            tower, tokenize = self._text_half.load()
            return tower.eval().requires_grad_(False).to(self.device, self.dtype), tokenize


def encode_tokens(tower: nn.Module, tokens: Tensor) -> Tensor:
    """(N, T) token ids -> (N, E), as `tower(tokens)`, without the work on what is behind the end of all the texts.

    Where every token sees only those before it and the text is read at its end token, what comes after is padding.
    """
    if isinstance(tower, TextTransformer) and tower.attn_mask is not None and tower.cls_emb is None:
        ends = {"eos": tokens == tower.eos_id, "argmax": tokens}.get(tower.pool_type)
        if ends is not None and len(tokens):
            length = int(ends.int().argmax(1).max()) + 1
            shorter = {"attn_mask": tower.attn_mask[:length, :length]}
            return cast(Tensor, functional_call(tower, shorter, (tokens[:, :length],)))
    return first(tower(tokens))


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


@dataclass(frozen=True)
class _Model:
    """A model that was found and is not loaded yet; `remedy` is for when it cannot be."""

    identity: str
    load_image: Callable[[], tuple[nn.Module, PreprocessCfg]]
    text: TextHalf | None
    remedy: str


@contextmanager
def _explained(name: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except EncoderError:
        raise
    except ClipFolderError as error:
        raise EncoderError(f"encoder {name!r} cannot be loaded: {error}") from error
    except Exception as error:  # open_clip, timm, safetensors, torch and the hub each raise their own kinds
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise EncoderError(f"encoder {name!r} cannot be loaded ({cause}); {remedy}") from error


def _found(name: str) -> _Model:
    if name.startswith(LOCAL_PREFIX):
        return _in_folder(Path(name.removeprefix(LOCAL_PREFIX)))
    if name.startswith(HUB_PREFIX):
        return _of_open_clip(name, None, name, name, DOWNLOADED)
    model, tag = _model_and_tag(name)
    return _of_open_clip(model, tag, f"{model}/{tag}", f"{model}/{tag}", DOWNLOADED)


def _in_folder(folder: Path) -> _Model:
    if folder.is_dir() and (weights := image_files(folder)):
        return _of_clip_folder(folder, weights)
    whole = folder / "open_clip_model.safetensors"
    for path in (folder / CONFIG, whole):
        if not path.is_file():
            cause = f"it has no {path.name}" if folder.is_dir() else "it does not exist"
            raise EncoderError(
                f"encoder folder {str(folder)!r} cannot be used: {cause}; give a folder with {CONFIG} "
                f"and {whole.name}, or one that recipes/encoder.py wrote"
            )
    config = read_config(folder)
    text = config["model_cfg"].get("text_cfg", {})
    # open_clip has no model without a text tower. One whose tokens no tokenizer makes is there for the form.
    has_text = "hf_tokenizer_name" in text or text.get("vocab_size", SIMPLE_VOCABULARY) >= SIMPLE_VOCABULARY
    own = _name_of(folder, [whole])
    identity = claimed_identity(config) or own
    return _of_open_clip(f"{LOCAL_PREFIX}{folder}", None, identity, own if has_text else None, DAMAGED)


def _of_clip_folder(folder: Path, weights: list[Path]) -> _Model:
    config = read_config(folder)

    def load_image() -> tuple[nn.Module, PreprocessCfg]:
        tower = load_image_tower(folder, config)
        wanted = merge_preprocess_dict(PreprocessCfg(), config.get("preprocess_cfg", {}))
        return tower, PreprocessCfg(**wanted | {"size": tower.image_size})

    def load_text() -> tuple[nn.Module, Tokenizer]:
        return load_text_tower(folder, config), open_clip.get_tokenizer(f"{LOCAL_PREFIX}{folder}")

    text = TextHalf(_name_of(folder, [folder / TEXT]), load_text) if (folder / TEXT).is_file() else None
    return _Model(claimed_identity(config) or _name_of(folder, weights), load_image, text, DAMAGED)


def _of_open_clip(model: str, tag: str | None, identity: str, text_identity: str | None, remedy: str) -> _Model:
    def create() -> Any:
        # open_clip only warns where weights trained with QuickGELU, as OpenAI's were, meet a plain GELU
        quick_gelu = tag is not None and open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False)
        return open_clip.create_model(
            model, tag, force_quick_gelu=quick_gelu, force_custom_text=True, require_pretrained=True
        )

    def load_image() -> tuple[nn.Module, PreprocessCfg]:
        tower = create().visual
        return tower, PreprocessCfg(**tower.preprocess_cfg)

    def load_text() -> tuple[nn.Module, Tokenizer]:
        return create().text, open_clip.get_tokenizer(model)

    return _Model(identity, load_image, TextHalf(text_identity, load_text) if text_identity else None, remedy)


def _name_of(folder: Path, files: list[Path]) -> str:
    """NAME@DIGEST of a local folder, by the files that hold its weights."""
    digests = [file_sha256(path) for path in files]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return f"{folder.resolve().name}@{digest[:16]}"


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
            f"{model or tag!r} is not a model of open_clip{hint} "
            f"(an encoder is named MODEL/TAG, as in ViT-B-32/openai, {HUB_PREFIX}OWNER/NAME or {LOCAL_PREFIX}PATH)"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not tag and "openai" in tags:  # a name alone means the weights that made it known
        tag = "openai"
    if tag not in tags:
        cause = f"has no pretrained weights {tag!r}" if tag else "does not say which weights to load"
        raise EncoderError(f"{model} {cause}; write {model}/TAG with one of: {', '.join(tags) or '(none)'}")
    return model, tag
