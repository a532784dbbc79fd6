"""ClipCap (arXiv 2111.09734) as a library: CLIP embedding -> mapping network -> prefix -> language model.

Pure PyTorch; knows nothing of Django, Celery or a database. What is exported here is imported when it is first used:
`clipcap.image` and `clipcap.options` do without torch, and importing this package must not load it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipcap.adapters import Adapters
    from clipcap.captioner import Caption, Captioner
    from clipcap.checkpoint import CheckpointError, MapperCheckpoint, load_mapper, read_original, save_mapper
    from clipcap.decoding.rerank import Reranker
    from clipcap.encoder import Encoder
    from clipcap.language_model import LanguageModel
    from clipcap.mapper import Mapper, MapperConfig, build_mapper
    from clipcap.model import ClipCaptionModel
    from clipcap.options import DecodingOptions
    from clipcap.training import CaptionedImages, TrainingOptions, train_mapper, trainable

__version__ = "0.2.0"
__all__ = [
    "Adapters",
    "Caption",
    "CaptionedImages",
    "Captioner",
    "CheckpointError",
    "ClipCaptionModel",
    "DecodingOptions",
    "Encoder",
    "LanguageModel",
    "Mapper",
    "MapperCheckpoint",
    "MapperConfig",
    "Reranker",
    "TrainingOptions",
    "build_mapper",
    "load_mapper",
    "read_original",
    "save_mapper",
    "train_mapper",
    "trainable",
]

_HOMES = {
    "Adapters": "adapters",
    "Caption": "captioner",
    "Captioner": "captioner",
    "CaptionedImages": "training",
    "CheckpointError": "checkpoint",
    "ClipCaptionModel": "model",
    "DecodingOptions": "options",
    "Encoder": "encoder",
    "LanguageModel": "language_model",
    "Mapper": "mapper",
    "MapperCheckpoint": "checkpoint",
    "MapperConfig": "mapper",
    "Reranker": "decoding.rerank",
    "TrainingOptions": "training",
    "build_mapper": "mapper",
    "load_mapper": "checkpoint",
    "read_original": "checkpoint",
    "save_mapper": "checkpoint",
    "train_mapper": "training",
    "trainable": "training",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"clipcap.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'clipcap' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
