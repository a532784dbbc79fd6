"""An image tower in the arithmetic that this CPU is fastest at and that leaves its embeddings as they are."""

import torch
from torch import Tensor, nn

from clipcap.bfloat16 import in_bfloat16
from clipcap.device import multiplies_bfloat16, multiplies_int8
from clipcap.int8 import in_int8

SAME = 0.999  # cosine of an embedding to that of float32, at least


def fastest(tower: nn.Module, size: tuple[int, int]) -> nn.Module:
    """`tower`, or its twin with products in bfloat16 or in 8-bit integers, where this CPU has instructions for them and
    the twin's embeddings are the same.

    Args:
        tower: (B, 3, H, W) -> (B, E) or a tuple that begins with it, in float32 on the CPU, and frozen.
        size: H and W, in pixels.
    """
    if multiplies_bfloat16(torch.device("cpu")):
        convert = in_bfloat16
    elif multiplies_int8():
        convert = in_int8
    else:
        return tower
    try:
        twin = OneByOne(convert(tower))
        return twin if likeness(twin, tower, size) >= SAME else tower
    except Exception:  # it reads the weights of its layers by itself, as the attention pool of CLIP's ResNets does
        return tower


class OneByOne(nn.Module):
    """A tower that looks at each picture alone.

    How products are rounded, those of bfloat16 most of all, depends on how many rows they have, so a picture's
    embedding would depend on those beside it. On a CPU a batch is no faster.
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
