"""The Muon optimizer, in bfloat16 only where that is faster."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from clipcap.device import multiplies_bfloat16

# Of the odd polynomial ax + bx³ + cx⁵ that, applied again and again, draws all singular values near 1.
A, B, C = 3.4445, -4.775, 2.0315
ITERATIONS = 5
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are replaced by the nearest orthogonal ones (Jordan et al. 2024), with the size of
    AdamW's updates (Liu et al. 2025, arXiv 2502.16982), so that one learning rate does for both.

    torch's own computes them in bfloat16 everywhere, which a processor without instructions for it emulates: there this
    one takes a third of its time.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change the matrices by their gradients."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(matrix)
                momentum = state["momentum"]
                momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonal(matrix.grad.lerp(momentum, MOMENTUM))  # Nesterov's
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest (semi-)orthogonal matrix: (M, N) -> (M, N). Its singular values are between 0.7 and 1.2, but
    for those that were less than a thousandth of the matrix's norm."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).contiguous()
    x = x / x.norm().clamp(min=1e-7)
    if multiplies_bfloat16(x.device):
        x = x.bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return (x.T if tall else x).to(matrix.dtype)
