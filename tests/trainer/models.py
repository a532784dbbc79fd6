"""Images with captions, and models that learn from them."""

from collections.abc import Callable

import torch

from clipcap.language_model import LanguageModel
from clipcap.mapper import Mapper, MapperConfig
from clipcap.model import ClipCaptionModel
from clipcap.options import TrainingChoices
from clipcap.training import CaptionedImages, TrainingOptions, TrainingResult, new_mapper, trainable

OPTIONS = TrainingOptions(epochs=3, batch_size=6, learning_rate=5e-3, noise=0.1, precision="float32", seed=3)


def images_of(count: int, captions_each: int = 3, views: int = 2, seed: int = 0) -> CaptionedImages:
    generator = torch.Generator().manual_seed(seed)
    captions = [[f"Photo {i} shows thing {n}{'!' * (i % 4)}" for n in range(captions_each)] for i in range(count)]
    return CaptionedImages(
        [f"{i}.jpg" for i in range(count)], torch.randn(count, views, 8, generator=generator), captions
    )


def mapper_for(lm: LanguageModel, images: CaptionedImages, kind: str = "transformer") -> Mapper:
    config = MapperConfig(kind, 8, lm.size, prefix_length=4, clip_length=3, layers=2, heads=4)  # type: ignore[arg-type]
    return new_mapper(config, images, seed=1)


Train = Callable[..., TrainingResult]
NewModel = Callable[[], ClipCaptionModel]
LEARNING = ["frozen", "adapters", "finetuned"]


def model_for(lm: LanguageModel, learning: str, kind: str = "transformer") -> ClipCaptionModel:
    """A new model, of which the language model learns or does not."""
    choices = TrainingChoices(language_model=learning, rank=3)  # type: ignore[arg-type]
    return trainable(ClipCaptionModel(mapper_for(lm, images_of(9), kind)), lm, choices, further=False)
