"""The three styles in service, and something that happens while a batch is decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import Tensor

from captioner.inference.engine import CaptionEngine
from captioner.models import Style
from clipcap.model import ClipCaptionModel
from clipcap.options import DecodingOptions


@pytest.fixture(autouse=True)
def in_service(styles: dict[str, Style]) -> None:
    """Every test here has the three styles."""


Captioning = Callable[[Tensor, Sequence[ClipCaptionModel], DecodingOptions], Any]


@pytest.fixture
def instead(engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Let something happen whenever the engine is about to decode a batch."""

    def install(happening: Callable[..., None]) -> None:
        caption = engine.captioner.caption

        def wrapped(embeddings: Tensor, models: Sequence[ClipCaptionModel], options: DecodingOptions) -> Any:
            happening(len(models))
            return caption(embeddings, models, options)

        monkeypatch.setattr(engine.captioner, "caption", wrapped)

    return install
