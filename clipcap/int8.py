"""An image tower with its matrix products in 8-bit integers, for CPUs that have instructions for them (VNNI).

CLIP has a few activations that are far larger than the rest: rounded to 8 bits, even each row by itself, they give
embeddings with a cosine of 0.94 to 0.99 to those of float32. So a row is the sum of two of 8 bits, of which the second
holds what the first leaves, and a product the sum of two. Weights have 8 bits, and a scale for each output.
"""

import clipcap.torchvision_schemas  # noqa: F401 (before open_clip is imported)

# isort: split
import copy

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST = 127  # a number and its negative are as far from zero, so -128 is not used
FINER = 2 * LARGEST  # the first rounding leaves at most half a step
WIDE = 512  # inputs and outputs of a layer, at least: narrower ones take longer than in float32


def in_int8(tower: nn.Module) -> nn.Module:
    """A copy of `tower` whose wide linear layers compute in 8-bit integers; it takes and gives float32, and shares the
    parameters that stay as they are, so `tower` has to be frozen."""
    twin = copy.deepcopy(tower, {id(parameter): parameter for parameter in tower.parameters()})
    for block in twin.modules():
        attention = block.attn if isinstance(block, ResidualAttentionBlock) else None
        if isinstance(attention, nn.MultiheadAttention) and attention.embed_dim >= WIDE:
            block.attn = SelfAttention(attention)
    _replace_linear(twin)
    return twin


def _replace_linear(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            if min(child.weight.shape) >= WIDE:
                setattr(module, name, Linear(child.weight, child.bias))
        elif not isinstance(child, nn.MultiheadAttention):  # reads the weights of its parts by itself
            _replace_linear(child)


class Linear(nn.Module):
    """A linear layer (..., D) -> (..., E) in 8-bit integers.

    Args:
        weight: (E, D)
        bias: (E) or none
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        weight = weight.detach()
        scale = _scale(weight)
        self.register_buffer("weight", (weight / scale).round().to(torch.int8).t())  # (D, E)
        self.register_buffer("scale", scale.squeeze(1))  # (E)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., E)"""
        rows = x.reshape(-1, x.shape[-1])  # (R, D)
        scale = _scale(rows)
        steps = rows / scale
        coarse = steps.round()
        halves = torch.empty((2, *rows.shape), dtype=torch.int8)  # (2, R, D)
        halves[0].copy_(coarse)
        halves[1].copy_(steps.sub_(coarse).mul_(FINER).round_())
        products = torch._int_mm(halves.flatten(0, 1), self.weight).float()  # (2R, E)
        out = products[: len(rows)].add_(products[len(rows) :], alpha=1 / FINER).mul_(scale).mul_(self.scale)
        return (out if self.bias is None else out.add_(self.bias)).view(*x.shape[:-1], len(self.scale))


class SelfAttention(nn.Module):
    """What `nn.MultiheadAttention` does in a residual block of open_clip, its projections in 8-bit integers."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.project = Linear(attention.in_proj_weight, attention.in_proj_bias)
        self.out = Linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """(B, N, D), three times the same -> (B, N, D)"""
        split = self.project(query).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, H, D / H)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)  # (B, H, N, D / H)
        return self.out(attended.transpose(1, 2).flatten(2)), None


def _scale(rows: Tensor) -> Tensor:
    """(R, D) -> (R, 1): the step between the numbers that each row is rounded to."""
    return (rows.abs().amax(1, keepdim=True) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
