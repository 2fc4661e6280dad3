"""The weight-space view: gradients of A and B as rows of the weight that their product changes."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from interference.blocks import Block, Side
from interference.gradients.targets import Target


def weight_rows(gradient_a: Tensor, gradient_b: Tensor, factor_a: Tensor, factor_b: Tensor, scaling: float) -> Tensor:
    """Rows whose inner products are those of the steps that LoRA gradients take in the space of the weight.

    With G the gradient at W = scaling * B A, the gradients are g_A = scaling * B^T G and g_B = scaling * G A^T. The
    part of G that a change B dA + dB A can follow is its projection on the tangent space of the matrices of rank r,
    P_B G + (1 - P_B) G P_A, with P_B and P_A projecting on the columns of B and the rows of A. It does not depend on
    how BA is split (A -> cA, B -> B/c, or any invertible matrix between them); plain B g_A + g_B A does. To first
    order, a step along it changes task i's loss by its inner product with task i's own projection. At B = 0 only the
    second term is left.

    Args:
        gradient_a: [units, rank, d_in].
        gradient_b: [units, d_out, rank].
        factor_a: [rank, d_in].
        factor_b: [d_out, rank].
        scaling: the factor before B A.

    Returns:
        [units, rank * d_in + d_out * rank].
    """
    root_a, root_b = _inverse_root(factor_a @ factor_a.T), _inverse_root(factor_b.T @ factor_b)
    first = root_b @ gradient_a
    columns = factor_b @ root_b
    off = gradient_b - columns @ (columns.T @ gradient_b)
    second = off @ root_a
    return torch.cat([first.flatten(1), second.flatten(1)], dim=1) / scaling


def _inverse_root(matrix: Tensor) -> Tensor:
    """The square root of the pseudo-inverse of a symmetric positive semi-definite [rank, rank] matrix."""
    values, vectors = torch.linalg.eigh(matrix.double())
    kept = values > values.max().clamp(min=0) * len(values) * torch.finfo(torch.float32).eps
    roots = torch.where(kept, values.clamp(min=torch.finfo(torch.float64).tiny).rsqrt(), 0.0)
    return ((vectors * roots) @ vectors.T).to(matrix.dtype)


def weight_space_rows(targets: Iterable[Target], rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows of the weight-space view, from the targets' gradients {block name: [units, *factor shape]}."""
    found = {}
    for target in targets:
        gradient_a, gradient_b = (rows[block.name] for block in target.blocks)
        a, b = (tap.weight.detach().to(gradient_a) for tap in target.taps.values())
        scaling = target.layer.scaling[target.adapter]
        found[weight_block(target).name] = weight_rows(gradient_a, gradient_b, a, b, scaling)
    return found


def weight_block(target: Target) -> Block:
    """The block of the weight-space view of a target."""
    a, b = target.blocks
    return Block(a.component, a.layer, a.module, a.group, Side.W, a.size + b.size)
