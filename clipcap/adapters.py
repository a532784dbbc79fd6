"""Low-rank adapters (LoRA; Hu et al., arXiv 2106.09685): what a style adds to the projections of a language model that
all styles share.

Rows of a batch may have different adapters, or none. Rows of the same adapter are gathered, unless they stand together
already, and each adapter is multiplied by its own rows only, all adapters in one batched product. Adapters are for
projections of attention, of the MLP, or both; beside others, they add zeros where they have none.

Legend: L rows, T positions, I and O sizes of a projection, r rank, A different adapters, N rows of the commonest one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from clipcap.language_model import LanguageModel

BOTH = "both"  # attention and MLP


class Adapters(nn.Module):
    """For each of an LM's projections two narrow matrices, whose product is added to its weights."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Of the matrices by name: those of projection P are `P.down` (I, r) and `P.up` (r, O).

        Raises:
            ValueError: a matrix is missing, or they are not of one rank.
        """
        super().__init__()
        self.names = sorted({name.rpartition(".")[0] for name in weights})
        if odd := sorted(weights.keys() ^ {f"{name}.{part}" for name in self.names for part in ("down", "up")}):
            raise ValueError(f"each adapter has two matrices, down and up, unlike that of {odd[0]}")
        ranks = {tensor.shape[name.endswith(".down")] for name, tensor in weights.items() if tensor.ndim == 2}
        if len(ranks) != 1 or 0 in ranks or any(tensor.ndim != 2 for tensor in weights.values()):
            raise ValueError("the matrices of the adapters are not of one rank")
        self.down = nn.ParameterList([weights[f"{name}.down"] for name in self.names])
        self.up = nn.ParameterList([weights[f"{name}.up"] for name in self.names])
        (self.rank,) = ranks  # r

    @classmethod
    def new(cls, lm: LanguageModel, rank: int, seed: int, targets: str = BOTH) -> Adapters:
        """Adapters of the projections of attention, of the MLP, or both, which change nothing yet.

        Raises:
            ValueError: the LM has no projections there.
        """
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for name, (inputs, outputs) in sizes_of(lm, targets).items():
            weights[f"{name}.down"] = torch.randn(inputs, rank, generator=generator) / math.sqrt(inputs)
            weights[f"{name}.up"] = torch.zeros(rank, outputs)
        if not weights:
            raise ValueError(f"{lm.identity} has no projections of its {targets} for adapters; choose other targets")
        return cls(weights)

    @property
    def targets(self) -> str:
        """What they are for: attention, mlp or both."""
        found = {part_of(name) for name in self.names}
        return BOTH if len(found) > 1 else found.pop()

    @property
    def weights(self) -> dict[str, Tensor]:
        """The matrices by name, as they are given."""
        parts = [(f"{name}.down", tensor) for name, tensor in zip(self.names, self.down, strict=True)]
        return dict(parts + [(f"{name}.up", tensor) for name, tensor in zip(self.names, self.up, strict=True)])

    def misfit(self, lm: LanguageModel) -> str:
        """Where they are not adapters of an LM: the first projection, with its right sizes and theirs; "" if they
        are."""
        right = sizes_of(lm, self.targets)
        theirs = {n: (len(d), u.shape[1]) for n, d, u in zip(self.names, self.down, self.up, strict=True)}
        for name in sorted(right | theirs):
            should, sizes = right.get(name, "absent"), theirs.get(name, "absent")
            if should != sizes:
                return f"{name} should be {should} and is {sizes}"
        return ""


class Mixture:
    """The adapters of a batch's rows, stacked, and which rows each of them is for."""

    def __init__(self, lm: LanguageModel, of_rows: Sequence[Adapters | None]) -> None:
        used = list(dict.fromkeys(adapters for adapters in of_rows if adapters is not None))
        place = {id(adapters): number for number, adapters in enumerate(used)}
        rank = max((adapters.rank for adapters in used), default=0)
        self.adapters = len(used)  # A
        self.parts: list[tuple[nn.Module, Tensor, Tensor]] = []  # projections, with (A, I, r) and (A, r, O)
        weights = [adapters.weights for adapters in used]
        for name, module in projections(lm) if used else ():
            down, up = f"{name}.down", f"{name}.up"
            some = next((of for of in weights if down in of), None)
            if some is None:
                continue
            downs = [of.get(down, some[down][:, :0]) for of in weights]  # of rank 0 where there is none
            ups = [of.get(up, some[up][:0]) for of in weights]
            below = torch.stack([F.pad(narrow, (0, rank - narrow.shape[1])) for narrow in downs])
            above = torch.stack([F.pad(narrow, (0, 0, 0, rank - len(narrow))) for narrow in ups])
            self.parts.append((module, below.to(lm.device, lm.dtype), above.to(lm.device, lm.dtype)))
        self.rows = torch.tensor([place.get(id(adapters), -1) for adapters in of_rows], device=lm.device)  # (L,)
        self._arrange()

    def select(self, sources: Tensor) -> None:
        """Go on with rows `sources` (L,) of those before."""
        rows = self.rows[sources]
        if not torch.equal(rows, self.rows):  # most steps of a search stay within the rows of a photo
            self.rows = rows
            self._arrange()

    def _arrange(self) -> None:
        belongs = self.rows[:, None] == torch.arange(self.adapters, device=self.rows.device)  # (L, A)
        before = belongs.cumsum(0) - 1
        self.adapted = (self.rows >= 0).nonzero()[:, 0]
        owners = self.rows[self.adapted]
        seats = before[self.adapted, owners]
        most = int(seats.max()) + 1 if len(seats) else 0  # N
        # Where an adapter has fewer rows than another, row 0 fills up, and what comes of it is left out.
        self.places = owners * most + seats  # of the adapted rows among the members
        self.members = torch.zeros(self.adapters * most, dtype=torch.long, device=self.rows.device)  # (A * N,)
        self.members[self.places] = self.adapted
        # All rows are adapted, as many by each adapter, and one after the other: nothing needs to be gathered. A row 0
        # that fills up looks so too, where it has no adapters itself.
        in_order = torch.equal(self.members, torch.arange(len(self.rows), device=self.rows.device))
        self.in_order = in_order and len(self.adapted) == len(self.rows)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the LM's passes within the block be those of the adapted LM, for these rows. No other thread may run it
        meanwhile."""
        hooks = []
        try:
            for module, down, up in self.parts:
                hooks.append(module.register_forward_hook(partial(self._add, down, up)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _add(self, down: Tensor, up: Tensor, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A projection's (..., O) with what the adapters add; some models flatten rows and positions in between."""
        if self.in_order:
            x = inputs[0].reshape(len(down), -1, down.shape[1])  # (A, N * T, I)
            output.view(len(down), -1, up.shape[2]).add_(x.bmm(down).bmm(up))
            return output
        x = inputs[0].reshape(len(self.rows), -1, down.shape[1])  # (L, T, I)
        grouped = x.index_select(0, self.members).view(len(down), -1, down.shape[1])  # (A, N * T, I)
        added = grouped.bmm(down).bmm(up).view(-1, x.shape[1], up.shape[2])  # (A * N, T, O)
        output.view(len(x), -1, up.shape[2]).index_add_(0, self.adapted, added.index_select(0, self.places))
        return output


def projections(lm: LanguageModel) -> list[tuple[str, nn.Module]]:
    """The matrices of attention and MLP by name: all linear layers but the one that gives the logits."""
    from transformers.pytorch_utils import Conv1D  # here, because whoever only reads mappers' files has no need of it

    head: Any = lm.model.get_output_embeddings()
    linear = (nn.Linear, Conv1D)
    return [(n, module) for n, module in lm.model.named_modules() if isinstance(module, linear) and module is not head]


def part_of(name: str) -> str:
    """Which part of a layer a projection belongs to, attention or mlp, by what models of all makes call it."""
    return "attention" if re.search("att(n|ention)", name) else "mlp"


def sizes_of(lm: LanguageModel, targets: str = BOTH) -> dict[str, tuple[int, int]]:
    """I and O of each projection of attention, of the MLP, or both."""
    found = {}
    for name, module in projections(lm):
        if targets not in (BOTH, part_of(name)):
            continue
        weight: Any = module.weight
        rows, columns = weight.shape
        found[name] = (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)
    return found
