"""The processes that train one style together, and what one that trains alone does in their place."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
TOLD = "in the first process of the group"  # a note of what the others raise because it did


class Group:
    """The processes of torch's process group, if it was initialised; else this process alone.

    They do the same steps: each computes a part of every batch and gets the gradient of all. What is read, written and
    told is the first one's affair, and what it meets with, all meet with: so none waits for one that has given up.
    """

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.rank, self.size = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)

    def first(self, action: Callable[[], T]) -> T:
        """What `action` returns, or raises, in the first process, in all of them."""
        if self.size == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = action()
            except Exception as error:
                outcome[1] = error
        distributed.broadcast_object_list(outcome)
        if outcome[1]:
            if self.rank:
                outcome[1].add_note(TOLD)
            raise outcome[1]
        value: T = outcome[0]
        return value

    def total(self, numbers: list[float], device: torch.device) -> list[float]:
        """The sums of the processes' numbers; the group computes on `device`."""
        if self.size == 1:
            return numbers
        summed = torch.tensor(numbers, dtype=torch.float64, device=device)
        distributed.all_reduce(summed)
        return summed.tolist()

    def wrapped(self, module: nn.Module) -> nn.Module:
        """A module whose gradients are the mean of all processes' after each backward pass outside of `apart`."""
        return module if self.size == 1 else DistributedDataParallel(module)

    def apart(self, module: nn.Module, *, really: bool) -> AbstractContextManager[None]:
        """A block in which gradients of a wrapped module are added up in this process only."""
        return module.no_sync() if really and isinstance(module, DistributedDataParallel) else nullcontext()
