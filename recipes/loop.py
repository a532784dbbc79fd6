"""The loop of the recipes that train a model from nothing. One that was killed goes on from its last state."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from recipes.schedule import Average, M, Optimizers, learning_rate

REPORT, SAVE = 50, 250  # steps


def train(
    module: M,
    losses: Callable[[random.Random], Iterator[Tensor]],
    optimizer: Optimizers,
    *,
    steps: int,
    peak: float,
    warm_up: int,
    decay: float,
    state_path: Path,
) -> M:
    """Train a module for so many steps, with a linear warm-up to the peak of the learning rate and a cosine to zero.

    Args:
        losses: makes, from a source of chance, the losses (N,) of one batch after the other, without end.
        decay: of the running average of the weights.
        state_path: a file; if it is there, training goes on from it.

    Returns:
        The running average of the module.
    """
    average = Average(module, decay)
    first = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        module.load_state_dict(state["module"])
        average.module.load_state_dict(state["average"])
        optimizer.load(state["optimizers"])
        first = average.steps = state["step"]
        torch.manual_seed(first)  # or it would draw what it began with once more
        print(f"{state_path} goes on after step {first}", flush=True)
    batches = losses(random.Random(first))
    recent: list[tuple[float, int]] = []
    started = time.monotonic()
    module.train()
    for step in range(first, steps):
        optimizer.set_learning_rate(learning_rate(step / steps, peak, 0.0, warm_up / steps))
        found = next(batches)
        optimizer.step(found.mean())
        average.update(module)
        recent.append((found.sum().item(), len(found)))
        if (step + 1) % REPORT == 0:
            took = time.monotonic() - started
            loss = sum(total for total, _ in recent) / sum(count for _, count in recent)
            print(f"{step + 1}/{steps} loss {loss:.3f} {took / (step + 1 - first):.2f} s a step", flush=True)
            recent = []
        if (step + 1) % SAVE == 0:
            state = {"module": module.state_dict(), "average": average.module.state_dict(), "step": step + 1}
            partial = state_path.with_suffix(".partial")
            torch.save(state | {"optimizers": optimizer.state()}, partial)
            partial.replace(state_path)
    return average.module
