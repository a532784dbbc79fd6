"""What is measured: models at the shapes of GPT-2 and ViT-B/32 with random weights, and those of `models/base`.

Everything is built when first asked for, so that a measurement of memory holds no model that it does not use.

Legend: B images, E size of an embedding, K prefix length, D size of a token embedding.
"""

import copy
import io
import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from open_clip.transform import PreprocessCfg
from open_clip.transformer import VisionTransformer
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from clipcap.captioner import Captioner
from clipcap.decoding.rerank import Reranker
from clipcap.encoder import Encoder
from clipcap.language_model import LanguageModel
from clipcap.mapper import Mapper, MapperConfig, build_mapper

BASE = Path(__file__).parent.parent / "models" / "base"
WEIGHT_SETS = 8  # mappers in memory at once; eight of true size are 1.3 GB, more than any cache holds


class Shape(NamedTuple):
    """The shape of a Transformer."""

    size: int
    layers: int
    heads: int


BASE_SHAPE = Shape(768, 12, 12)  # of GPT-2 and of ViT-B


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the defaults are the true shapes.

    batch: images in a batch. peer_greedy, peer_beam: how many of them the original captions. limit: tokens of a
    caption with random weights. pairs: measurements of each row. photo: pixels of the JPEG, width and height.
    """

    batch: int = 32
    peer_greedy: int = 2
    peer_beam: int = 1
    limit: int = 20
    pairs: int = 3
    photo: tuple[int, int] = (4000, 3000)
    vocabulary: int = 50257
    lm: Shape = BASE_SHAPE
    vision: Shape = BASE_SHAPE
    embedding_size: int = 512
    mapper_layers: int = 8


QUICK = Sizes(
    batch=12,
    limit=8,
    pairs=2,
    photo=(1200, 900),
    vocabulary=2000,
    lm=Shape(64, 2, 4),
    vision=Shape(64, 2, 1),
    embedding_size=32,
    mapper_layers=2,
)


class RandomGPT2:
    """GPT-2 and ViT-B/32 in their true shapes with random weights, which take as long as trained ones.

    Random weights of the usual deviation, 0.02, give nearly equal logits, and which is the greatest would hang on
    rounding; with 0.1 they lie well apart. The end token's embedding is zero and so is its logit: it is never the
    greatest, and all captions have `limit` tokens.
    """

    reranker = None  # nothing was fitted to random weights

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        self.limit = sizes.limit  # tokens of a caption, at the most
        self.name = "GPT-2 + ViT-B/32" if sizes == Sizes() else "tiny models"

    @cached_property
    def encoder(self) -> Encoder:
        torch.manual_seed(1)
        sizes = self.sizes
        tower = VisionTransformer(
            image_size=224,
            patch_size=32,
            width=sizes.vision.size,
            layers=sizes.vision.layers,
            heads=sizes.vision.heads,
            mlp_ratio=4.0,
            output_dim=sizes.embedding_size,
        )
        return Encoder(tower, PreprocessCfg(), "random", self.device, torch.float32)

    @property
    def fast_encoder(self) -> Encoder:
        """The encoder in the precision that captions are made with."""
        return self.encoder

    @property
    def embedding_size(self) -> int:
        return self.sizes.embedding_size

    @cached_property
    def lm(self) -> LanguageModel:
        torch.manual_seed(2)
        sizes = self.sizes
        end = sizes.vocabulary - 1
        config = GPT2Config(
            vocab_size=sizes.vocabulary,
            n_embd=sizes.lm.size,
            n_layer=sizes.lm.layers,
            n_head=sizes.lm.heads,
            initializer_range=0.1,
            bos_token_id=end,
            eos_token_id=end,
        )
        with self.device:
            model = GPT2LMHeadModel(config)
        with torch.no_grad():
            model.transformer.wte.weight[end].zero_()
        words = Tokenizer(WordLevel({str(token): token for token in range(sizes.vocabulary)}, unk_token="0"))
        return LanguageModel(model, PreTrainedTokenizerFast(tokenizer_object=words, eos_token=str(end)), "random")

    @cached_property
    def mapper(self) -> Mapper:
        torch.manual_seed(3)
        config = MapperConfig("transformer", self.sizes.embedding_size, self.lm.size, layers=self.sizes.mapper_layers)
        return build_mapper(config).eval().to(self.lm.device)

    @cached_property
    def embeddings(self) -> Tensor:
        """(B, E) of different pictures."""
        return torch.randn(
            self.sizes.batch, self.sizes.embedding_size, generator=torch.Generator().manual_seed(4), device="cpu"
        )

    @cached_property
    def prefixes(self) -> list[Tensor]:
        """B prefixes (K, D) that lead to different captions."""
        generator = torch.Generator().manual_seed(5)  # a random mapper would make nearly the same of all pictures
        return list(
            torch.randn(self.sizes.batch, 10, self.lm.size, generator=generator, device="cpu").to(self.lm.device)
        )

    @cached_property
    def stop_id(self) -> int:
        return self.lm.end_id


class Bundle:
    """The trained models of `models/base`, captioning made-up pictures in the first style until captions end."""

    name = "models/base"
    limit = 40

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder.load(f"local-dir:{BASE / 'encoder'}", device=str(self.device), dtype="float32")

    @cached_property
    def fast_encoder(self) -> Encoder:
        return Encoder.load(f"local-dir:{BASE / 'encoder'}", device=str(self.device))

    @property
    def embedding_size(self) -> int:
        return self.encoder.embedding_size

    @cached_property
    def lm(self) -> LanguageModel:
        return LanguageModel.load(f"local-dir:{BASE / 'lm'}", device=str(self.device), dtype="float32")

    @cached_property
    def reranker(self) -> Reranker | None:
        weights = BASE / "reranking.json"
        return Reranker.load(weights) if weights.is_file() else None

    @cached_property
    def mapper(self) -> Mapper:
        style = min((BASE / "styles").glob("*.safetensors"))
        return Captioner(self.encoder, self.lm).load_model(style).mapper.eval()

    @cached_property
    def embeddings(self) -> Tensor:
        return self.encoder.encode([picture(seed, 320, 240) for seed in range(self.sizes.batch)])

    @cached_property
    def prefixes(self) -> list[Tensor]:
        with torch.inference_mode():
            return list(self.mapper(self.embeddings.to(self.lm.device)))

    @cached_property
    def stop_id(self) -> int:
        return Captioner(self.encoder, self.lm).stop_id(self.mapper)


Subject = RandomGPT2 | Bundle


def copies(mapper: Mapper, count: int) -> list[Mapper]:
    """Mappers that are each run on their own, with the same weights, so that their captions are as long as those of a
    single style. The weights lie in up to `WEIGHT_SETS` places, as those of different styles do."""
    sets = [copy.deepcopy(mapper) for _ in range(min(count, WEIGHT_SETS))]
    return [copy.copy(each) for each in itertools.islice(itertools.cycle(sets), count)]


def subjects(sizes: Sizes, device: torch.device) -> list[Subject]:
    """What can be measured here: `models/base` only where it is whole."""
    found: list[Subject] = [RandomGPT2(sizes, device)]
    if (BASE / "encoder").is_dir() and (BASE / "lm").is_dir() and any((BASE / "styles").glob("*.safetensors")):
        found.append(Bundle(sizes, device))
    return found


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Soft patches of colour with some noise, which a JPEG compresses about as much as a photograph."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    pixels = np.asarray(patches.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    noise = rng.standard_normal((height, width, 1), dtype=np.float32) * 8
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def jpeg(width: int, height: int) -> bytes:
    """A picture as the bytes of a JPEG."""
    file = io.BytesIO()
    picture(0, width, height).save(file, "JPEG", quality=90)
    return file.getvalue()
