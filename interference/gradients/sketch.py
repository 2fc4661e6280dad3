"""Sketches: gradients of a block as a few random sums. On average, their inner products are those of the gradients.

A count sketch (Charikar, Chen and Farach-Colton 2002; Weinberger et al. 2009) adds every entry, with a random sign, to
one of k sums. All units of a block share the signs and places, so that <S g, S h> has mean <g, h> and a variance of at
most (|g|^2 |h|^2 + <g, h>^2) / k. The signs of different blocks are independent, so that the errors of a scope's blocks
do not add up: their variance is at most the sum of the blocks' variances, which is again at most 2 |g|^2 |h|^2 / k. The
same holds for squared norms. The Gram of sketches is one of vectors: equal gradients stay equal, and no inner product
exceeds its norms.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def sketched(rows: Mapping[str, Tensor], size: int, seed: int) -> dict[str, Tensor]:
    """Sketches of the rows of blocks.

    Args:
        rows: {block name: [units, *factor shape]}.
        size: sums k that a block's row becomes; a row that is not longer stays as it is.
        seed: seed of signs and places.

    Returns:
        {block name: [units, min(k, entries)]}.
    """
    flat = {name: tensor.flatten(1) for name, tensor in rows.items()}
    return {name: row if row.shape[1] <= size else _count_sketch(row, name, size, seed) for name, row in flat.items()}


def relative_error(size: int) -> float:
    """The largest standard error of an inner product, as a share of the product of the norms."""
    return float((2 / size) ** 0.5)


def _count_sketch(rows: Tensor, name: str, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(_seed(name, seed))
    places = torch.randint(size, (rows.shape[1],), generator=generator)
    signs = torch.randint(2, (rows.shape[1],), generator=generator) * 2 - 1
    found = rows.new_zeros(len(rows), size)
    return found.index_add_(1, places.to(rows.device), rows * signs.to(rows))


def _seed(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=7).digest(), "big")
