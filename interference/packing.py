"""Packing: symmetric matrices as a run stores them, their upper triangles; and sums of them."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def sum_of(matrices: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The sum of equally shaped matrices, one in memory at a time."""
    iterator = iter(matrices)
    total = next(iterator).copy()
    for matrix in iterator:
        total += matrix
    return total


def pack(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """The upper triangle of a symmetric matrix, row by row: [units * (units + 1) / 2]."""
    return np.ascontiguousarray(matrix[np.triu_indices(len(matrix))])


def unpack(packed: NDArray[np.float32], units: int) -> NDArray[np.float32]:
    """The symmetric matrix [units, units] that `pack` packed."""
    matrix = np.empty((units, units), dtype=packed.dtype)
    upper = np.triu_indices(units)
    matrix[upper] = packed
    matrix.T[upper] = packed
    return matrix
