"""Weights for choosing captions."""

from dataclasses import replace
from typing import Any

import torch

from clipcap.captioner import Captioner
from clipcap.decoding.rerank import Reranker
from clipcap.options import DecodingOptions

SIZE = 16
WAYS = (
    DecodingOptions("beam", captions=3, beam_size=3, max_length=12),
    DecodingOptions("nucleus", captions=6, temperature=1.5, top_p=0.95, seed=1, max_length=12),
)


def reranker(**changes: Any) -> Reranker:
    generator = torch.Generator().manual_seed(0)
    return replace(
        Reranker(
            encoder="tiny@0",
            text="tiny@0",
            language_model="lm@0",
            ways=WAYS,
            choice={"similarity": 4.0, "wording": 1.0, "log_probability": 0.5},
            confidence={"similarity": 3.0, "strangeness": -0.5, "samples_wording": 1.0},
            intercept=0.25,
            photo_mean=(0.1 * torch.randn(SIZE, generator=generator)).half().double(),
            text_mean=(0.1 * torch.randn(SIZE, generator=generator)).half().double(),
            whitening=torch.randn(4, SIZE, generator=generator).half().double(),
            rarity={"a": 0.5, "dog": 3.0},
            stock={"the whole world waits for": 0.25},
            notes={"fitted on": "nothing"},
        ),
        **changes,
    )


def fitting(captioner: Captioner, **changes: Any) -> Reranker:
    """One for the models of `captioner`."""
    return reranker(
        encoder=captioner.encoder.identity,
        text=captioner.encoder.text_identity,
        language_model=captioner.language_model.identity,
        **changes,
    )
