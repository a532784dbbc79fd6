"""What the recipes' training loops share."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn


def learning_rate(step: int, steps: int, peak: float, final: float) -> float:
    """A linear warm-up over 100 steps, then a cosine from `peak` to `final`."""
    if step < 100:
        return peak * (step + 1) / 100
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * (step - 100) / max(1, steps - 100)))


M = TypeVar("M", bound=nn.Module)


class Average(Generic[M]):
    """The running average of a module's weights, which generalises better than its last ones."""

    def __init__(self, module: M, decay: float) -> None:
        self.module, self.decay = copy.deepcopy(module), decay
        self.module.eval()
        self.steps = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        weight = max(1 - self.decay, 1 / (self.steps + 1))
        for mine, theirs in zip(self.module.parameters(), module.parameters(), strict=True):
            mine.lerp_(theirs, weight)
        for own, other in zip(self.module.buffers(), module.buffers(), strict=True):
            own.copy_(other)
