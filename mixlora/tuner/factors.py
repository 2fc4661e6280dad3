"""Factor banks: gathering each instance's factors, and the low-rank product. Pure functions, and a module to hook."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Gather(nn.Module):
    """Gathers the factors that every instance has selected.

    It is a module without parameters, so that a forward hook sees each instance's own factors: the gradient at its
    output is the gradient of every example.
    """

    def forward(self, bank: Tensor, selection: Tensor) -> Tensor:
        """Rows of a bank [E, d] by a selection [instances, r]: [instances, r, d]."""
        return F.embedding(selection, bank)


def project(x: Tensor, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """sum_k w_k b_k <a_k, x>, without ever forming a [d_in, d_out] matrix (Eq. 11).

    Args:
        x: [instances, seq, d_in].
        a: selected A factors [instances, r, d_in].
        b: selected B factors [instances, r, d_out].
        weights: [instances, r], of every pair of factors; they include the scaling and the routers' gradient.

    Returns:
        [instances, seq, d_out].
    """
    return torch.bmm(_inner(x, a, weights), b)


def add_projected(result: Tensor, x: Tensor, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """`result` [instances, seq, d_out] plus `project`, in one pass if the dtypes allow it."""
    inner = _inner(x, a, weights)
    if result.dtype == inner.dtype == b.dtype:
        return torch.baddbmm(result, inner, b)
    return result + torch.bmm(inner, b).to(result.dtype)


def _inner(x: Tensor, a: Tensor, weights: Tensor) -> Tensor:
    return torch.bmm(x, a.transpose(1, 2)) * weights.to(x.dtype).unsqueeze(1)
