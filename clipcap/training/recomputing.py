"""Gradient checkpointing (Chen et al., arXiv 1604.06174): a step that computes twice what it has no memory to keep."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from clipcap.language_model import LanguageModel


@contextmanager
def recomputed(lm: LanguageModel) -> Iterator[None]:
    """Let the LM's passes within the block keep nothing but what goes into each of its layers; the backward pass, which
    belongs in the block too, computes the rest again, layer by layer, to the same bits. No other thread may run the LM
    meanwhile."""
    # transformers does it in training mode only, in which there would be dropout.
    layers = next(
        module for module in lm.model.modules() if isinstance(module, nn.ModuleList) and len(module) == lm.layers
    )
    try:
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
