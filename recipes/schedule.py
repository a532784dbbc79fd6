"""What the recipes' training loop is made of: learning rate, optimizers, and the average of the weights."""

import copy
import math
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn


def learning_rate(done: float, peak: float, final: float, warm_up: float) -> float:
    """A linear warm-up, then a cosine from `peak` to `final`.

    Args:
        done, warm_up: shares of the whole training, from 0 to 1.
    """
    if done < warm_up:
        return peak * done / warm_up
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


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
        mine, theirs = ([p.detach() for p in each.parameters()] for each in (self.module, module))
        torch._foreach_lerp_(mine, theirs, weight)
        for own, other in zip(self.module.buffers(), module.buffers(), strict=True):
            own.copy_(other)


class Optimizers:
    """Muon for the matrices inside the layers, AdamW for everything else: embeddings, norms, biases, projections.

    Muon (Jordan et al. 2024), here as torch has it, takes about two thirds of AdamW's steps to the same loss.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], matrices: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        inside = {id(p) for p in matrices}
        rest = [p for p in self.parameters if id(p) not in inside]
        self.muon = torch.optim.Muon(
            matrices, lr=1e-3, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        groups = [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))

    def set_learning_rate(self, rate: float) -> None:
        """Let all of them use `rate` from now on."""
        for group in self.muon.param_groups + self.adam.param_groups:
            group["lr"] = rate

    def step(self, loss: Tensor, clip: float = 1.0) -> None:
        """One step down the gradient of `loss`."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, clip)
        for each in (self.muon, self.adam):
            each.step()  # type: ignore[no-untyped-call]
            each.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
