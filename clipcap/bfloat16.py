"""An image tower with its matrix products in bfloat16, for CPUs that have instructions for them.

What lies between the products stays in float32: a tower that is bfloat16 throughout rounds its residual stream at every
layer, and embeddings of drawings and text then have a cosine of 0.995 to those of float32 in place of 0.9999. Products
of 8-bit integers (VNNI) were tried too: with activations rounded to 8 bits the cosine is 0.93 to 0.99, so CPUs that
have nothing better stay with float32.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clipcap.device import multiplies_bfloat16

SAME = 0.999  # cosine of an embedding to that of float32, at least


def fastest(tower: nn.Module, size: tuple[int, int]) -> nn.Module:
    """`tower`, or its bfloat16 twin where this CPU multiplies bfloat16 and the twin's embeddings are the same.

    Args:
        tower: (B, 3, H, W) -> (B, E) or a tuple that begins with it, in float32 on the CPU.
        size: H and W, in pixels.
    """
    if not multiplies_bfloat16(torch.device("cpu")):
        return tower
    twin = OneByOne(in_bfloat16(tower))
    return twin if likeness(twin, tower, size) >= SAME else tower


class OneByOne(nn.Module):
    """A tower that looks at each picture alone.

    How products of bfloat16 are rounded depends on how many rows they have, so a picture's embedding would depend on
    those beside it. On a CPU a batch is no faster.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, E)"""
        return torch.cat([first(self.tower(picture)) for picture in pixels.split(1)])


def first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The embeddings (B, E) of what a tower gives: CoCa's adds its tokens."""
    return out[0] if isinstance(out, tuple) else out


def in_bfloat16(tower: nn.Module) -> nn.Module:
    """A copy of `tower` whose linear layers and attentions compute in bfloat16; it takes and gives float32."""
    twin = copy.deepcopy(tower)
    attentions = [module for module in twin.modules() if isinstance(module, nn.MultiheadAttention)]
    within = {part for attention in attentions for part in attention.modules()}
    linear = [module for module in twin.modules() if isinstance(module, nn.Linear) and module not in within]
    for module in (*attentions, *linear):
        module.to(torch.bfloat16)
        module.register_forward_pre_hook(_lower, with_kwargs=True)
        module.register_forward_hook(_raise)
    return twin


@torch.inference_mode()
def likeness(tower: nn.Module, other: nn.Module, size: tuple[int, int]) -> float:
    """The lowest cosine between what two towers make of a picture of soft shapes and of one of noise."""
    height, width = size
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None, :]
    shapes = torch.stack(
        [torch.sin(5 * x * y + 1), torch.cos(7 * x - 3 * y), (x.square() + y.square() < 0.5) * 2.0 - 1]
    )
    noise = torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))
    pixels = torch.stack([shapes, noise])
    cosines = torch.cosine_similarity(first(tower(pixels)), first(other(pixels)))
    return float(torch.nan_to_num(cosines, nan=-1.0).min())


def _lower(
    module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    lowered: dict[int, Tensor] = {}  # one tensor given three times means attention of a text to itself

    def lower(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        return lowered.setdefault(id(value), value.to(torch.bfloat16))

    return tuple(map(lower, arguments)), {name: lower(value) for name, value in named.items()}


def _raise(module: nn.Module, arguments: tuple[Any, ...], out: Any) -> Any:
    if isinstance(out, tuple):
        return tuple(_raise(module, arguments, part) for part in out)
    return out.float() if isinstance(out, Tensor) and out.is_floating_point() else out
