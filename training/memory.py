"""How much memory a run needs, estimated before it is queued. Without torch, so that the web process can ask.

A training step keeps what the frozen LM and the mapper computed of every caption until the gradient has come back to
the prefix. How often each part is kept was measured on a CPU in float32, with prefixes of 10 to 64 vectors, both kinds
of mapper and batches of 128 and 256: the estimate was within 15 % of the peak.
"""

from collections.abc import Mapping
from typing import Any

from captioner.reports import Capacity

CAPTION = 20  # tokens; an image with several captions takes less than its captions one by one, as counted here
CLIP_LENGTH = 10
FLOAT = 4  # bytes
LM_KEEPS, ATTENTION_KEEPS, LOGITS_KEEP, MAPPER_KEEPS = 22, 6, 8, 16
PARAMETERS_KEPT = 5  # weights, gradient, AdamW's two moments, and the best weights so far


def megabytes(shape: Mapping[str, Any], batch_size: float, capacity: Capacity, images: int) -> float:
    """What a run needs beside the loaded models.

    Args:
        shape: of the mapper, as in `MapperConfig`: `kind`, `prefix_length`, `layers`, perhaps `clip_length` and
            `hidden_size`.
        batch_size: captions that are computed at a time.
        capacity: a worker's.
        images: in the dataset; their embeddings are held twice for a moment.
    """
    prefix: int = shape["prefix_length"]
    size = capacity.lm_size
    row = prefix + CAPTION
    lm = LM_KEEPS * row * size + ATTENTION_KEEPS * capacity.lm_heads * row**2
    logits = LOGITS_KEEP * (CAPTION + 1) * capacity.vocabulary
    if shape["kind"] == "mlp":
        hidden = shape.get("hidden_size") or prefix * size // 2
        parameters, mapper = (capacity.embedding_size + prefix * size) * hidden, 0
    else:
        clip = shape.get("clip_length") or CLIP_LENGTH
        parameters = (capacity.embedding_size * clip + 8 * size * shape["layers"]) * size
        mapper = MAPPER_KEEPS * (clip + prefix) * size * shape["layers"]
    floats: float = batch_size * (lm * capacity.lm_layers + logits + mapper) + PARAMETERS_KEPT * parameters
    return (floats + 2 * images * capacity.embedding_size) * FLOAT / 2**20
