"""What a prefix says (ClipCap, section 4): the vocabulary's words nearest to its vectors, and how far prefixes differ.

The paper's warning holds: with a frozen LM the words are hardly readable, because the mapper is free to steer the LM
by directions that are no words. They are a look at the mechanism, not an explanation of a caption.

Legend: B images, K prefix length, D size of a token embedding, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.language_model import LanguageModel


@dataclass(frozen=True)
class NearWord:
    """A token of the vocabulary and the cosine similarity of its embedding to a prefix vector."""

    text: str
    similarity: float


@torch.inference_mode()
def nearest_words(lm: LanguageModel, prefix: Tensor, count: int = 5) -> list[list[NearWord]]:
    """The `count` tokens nearest to each vector of a (K, D) prefix, the nearest first."""
    vocabulary = lm.embed(torch.arange(lm.vocabulary, device=lm.device)[None])[0].float()  # (V, D)
    similarity = F.normalize(prefix.to(lm.device).float(), dim=-1) @ F.normalize(vocabulary, dim=-1).T  # (K, V)
    best, tokens = similarity.topk(min(count, lm.vocabulary), dim=-1)
    return [
        [NearWord(str(lm.tokenizer.decode([token])), round(value, 4)) for token, value in zip(ids, values, strict=True)]
        for ids, values in zip(tokens.tolist(), best.tolist(), strict=True)
    ]


@torch.inference_mode()
def distances(prefixes: Tensor) -> Tensor:
    """How far the prefixes of different images differ: (B, K, D) -> (B, B), the mean cosine distance of their
    vectors at the same place, 0 for the same prefix and 1 for unrelated ones."""
    unit = F.normalize(prefixes.float(), dim=-1)
    return (1 - torch.einsum("akd,bkd->ab", unit, unit) / prefixes.shape[1]).clamp(min=0)
