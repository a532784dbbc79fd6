"""Training from nothing with the library's loop: two optimizers, and a running average of the weights they make."""

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from clipcap.training import loop
from clipcap.training.loop import Task
from clipcap.training.options import Schedule
from recipes.muon import Muon
from recipes.report import Report, report_epoch

STATE_EVERY = 250  # steps
B = TypeVar("B")
M = TypeVar("M", bound=nn.Module)


class Optimizers(Generic[M]):
    """Muon for the matrices inside the layers, AdamW for everything else: embeddings, norms, biases, projections.

    Muon takes about two thirds of AdamW's steps to the same loss. `average` is the running average of what they make of
    the weights, which generalises better than the last of them.
    """

    def __init__(
        self, module: M, matrices: Sequence[nn.Parameter], *, peak: float, weight_decay: float, average_decay: float
    ) -> None:
        self.module, self.average, self.average_decay = module, copy.deepcopy(module).eval(), average_decay
        self.settings = ("Muon and AdamW", peak, weight_decay, average_decay)
        self.steps = 0
        inside = {id(p) for p in matrices}
        rest = [p for p in module.parameters() if p.requires_grad and id(p) not in inside]
        muon = Muon(matrices, lr=peak, weight_decay=weight_decay)
        groups = [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.both: tuple[torch.optim.Optimizer, ...] = (muon, torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98)))
        for group in self.param_groups:
            group["peak"] = peak

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for each in self.both for group in each.param_groups]

    def zero_grad(self) -> None:
        for each in self.both:
            each.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        for each in self.both:
            each.step()
        self.steps += 1
        mine, theirs = list(weights_of(self.average).values()), list(weights_of(self.module).values())
        torch._foreach_lerp_(mine, theirs, max(1 - self.average_decay, 1 / (self.steps + 1)))

    def state_dict(self) -> dict[str, Any]:
        both = [each.state_dict() for each in self.both]
        return {"both": both, "average": weights_of(self.average), "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for each, state in zip(self.both, state_dict["both"], strict=True):
            each.load_state_dict(state)
        fill(self.average, state_dict["average"])
        self.steps = state_dict["steps"]


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Those that are trained, by name."""
    return {name: weights.data for name, weights in module.named_parameters() if weights.requires_grad}


def fill(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a module these weights."""
    for name, tensor in weights_of(module).items():
        tensor.copy_(weights[name])


class Averaged(Generic[M]):
    """What tasks have in common whose result is the running average of a module's weights."""

    def __init__(self, optimizer: Optimizers[M], *described: object) -> None:
        """
        Args:
            described: all that the result depends on besides the optimizer and the weights that training begins with.
        """
        self.optimizer, self.module = optimizer, optimizer.module
        self.weights, self.validated = weights_of(optimizer.module), weights_of(optimizer.average)
        self.identity = _digest(optimizer.settings, *self.weights.values(), *described)

    def keep(self, loss: float) -> None:
        """Nothing: the loop holds the best weights, and a file is made of them at the end."""


def train(task: Task[B], average: M, schedule: Schedule, state_path: Path) -> M:
    """Train with the library's loop.

    Args:
        average: of the task's optimizer.
        state_path: a file; if it is there, training goes on from it.

    Returns:
        The average, as it was when it was best on dev.
    """
    _, best = loop.train(
        task, schedule, state_path, state_every=STATE_EVERY, on_progress=Report(), on_epoch=report_epoch
    )
    fill(average, best)
    return average


def _digest(*described: object) -> str:
    digest = hashlib.sha256()
    for each in described:
        if isinstance(each, Tensor):
            digest.update(each.contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(repr(each).encode())
    return digest.hexdigest()
