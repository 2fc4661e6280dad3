"""Muon, an optimizer for the base's weight matrices, which needs about half as many pictures as AdamW.

Each matrix moves along the orthogonal factor of its averaged gradient, which the Newton-Schulz iteration approximates
(K. Jordan et al., "Muon: an optimizer for hidden layers", 2024). `torch.optim.Muon` computes in bfloat16, which is many
times slower on processors without such instructions.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the published quintic, which maps singular values in (0, 1] to about 1 in five iterations."""


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Near-orthogonal factors U V^T of matrices U S V^T, [batch, rows, columns] with rows <= columns."""
    one, three, five = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = one * x + (three * gram + five * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonalised Nesterov momentum, scaled so that an entry moves about 0.2 x the learning rate.

    Args:
        params: matrices.
        lr: the learning rate.
        momentum: the decay of the gradient's running mean.
        weight_decay: the share of lr by which weights shrink in a step.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move every matrix; those of one shape are orthogonalised together."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                shapes.setdefault(matrix.shape, []).append(matrix)
            for matrices in shapes.values():
                self._move(matrices, group["lr"], group["momentum"], group["weight_decay"])

    def _move(self, matrices: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        rows, columns = matrices[0].shape
        slopes = torch.stack([self._slope(matrix, momentum) for matrix in matrices])
        moves = orthogonal(slopes) if rows <= columns else orthogonal(slopes.mT).mT
        for matrix, move in zip(matrices, moves, strict=True):
            matrix.mul_(1 - lr * weight_decay).add_(move, alpha=-0.2 * lr * max(rows, columns) ** 0.5)

    def _slope(self, matrix: Tensor, momentum: float) -> Tensor:
        gradient = torch.zeros_like(matrix) if matrix.grad is None else matrix.grad
        mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
        mean.lerp_(gradient, 1 - momentum)
        return torch.lerp(gradient, mean, momentum)
