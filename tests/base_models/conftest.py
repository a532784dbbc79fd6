"""Two pairs of small base models, and a style in service on the first."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from captioner import services, uploads
from captioner.inference.engine import CaptionEngine
from captioner.models import (
    Style,
)
from captioner.services import drafts
from clipcap.captioner import Captioner
from clipcap.encoder import Encoder
from clipcap.language_model import LanguageModel
from clipcap.options import DecodingOptions
from tests.base_models.pair import PHOTOS, Base
from training import examples as training_examples
from training import services as training_services
from training import worker as training_worker
from training.models import Example


@pytest.fixture(scope="session")
def pairs(tiny_encoder_dir: Path, tiny_clip_dir: Path, tiny_lm: LanguageModel, tiny_lm_dir: Path) -> list[Base]:
    """Today's base models, and others with another encoder."""
    found = []
    for name, folder in {"today": tiny_encoder_dir, "tomorrow": tiny_clip_dir}.items():
        encoder = Encoder.load(f"local-dir:{folder}", device="cpu")
        sources = {"encoder_source": f"local-dir:{folder}", "language_model_source": f"local-dir:{tiny_lm_dir}"}
        found.append(Base(CaptionEngine(Captioner(encoder, tiny_lm), name, 8), sources))
    return found


@pytest.fixture
def today(pairs: list[Base], db: None, media: Path) -> Base:
    pairs[0].engine.mappers.clear()
    return pairs[0]


@pytest.fixture
def tomorrow(pairs: list[Base], db: None) -> Base:
    pairs[1].engine.mappers.clear()
    return pairs[1]


@pytest.fixture
def plain(style: Style, today: Base, tmp_path: Path) -> Style:
    """A style with a version in service on today's base models."""
    today.starts()
    services.promote(version=today.version(style, tmp_path))
    return style


@pytest.fixture
def dataset(plain: Style, photo: bytes, monkeypatch: pytest.MonkeyPatch) -> Style:
    """The style with some photos to learn from and to be judged by."""
    monkeypatch.setattr(training_examples, "DecodingOptions", partial(DecodingOptions, max_length=5))
    monkeypatch.setattr(drafts, "DecodingOptions", partial(DecodingOptions, max_length=5))
    monkeypatch.setattr(training_worker, "SAMPLES", 1)
    files = sorted(PHOTOS.glob("*.jpg"))[:30]
    for number, image in enumerate(uploads.store(file.read_bytes()) for file in files):
        text = f"a {('dog', 'cat', 'man')[number % 3]} on a {('bed', 'boat')[number % 2]}"
        training_services.add_example(style=plain, image=image, text=text, source=Example.Source.IMPORTED)
    return plain
