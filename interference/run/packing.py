"""Packing: symmetric matrices as a run stores them, their upper triangles; and sums of them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def sum_of(matrices: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The sum of equally shaped matrices, one in memory at a time."""
    iterator = iter(matrices)
    total = next(iterator).copy()
    for matrix in iterator:
        total += matrix
    return total


def pack(matrix: NDArray[np.float32], order: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
    """The upper triangle of a symmetric matrix, row by row: [units * (units + 1) / 2].

    Args:
        matrix: [units, units].
        order: of its rows and columns; None for as they are.
    """
    order = np.arange(len(matrix)) if order is None else order
    return np.concatenate([matrix[row, order[k:]] for k, row in enumerate(order)])


def unpack(packed: NDArray[np.float32], units: int) -> NDArray[np.float32]:
    """The symmetric matrix [units, units] that `pack` packed."""
    matrix, first = np.empty((units, units), dtype=packed.dtype), 0
    for row in range(units):
        matrix[row, row:] = matrix[row:, row] = packed[first : first + units - row]
        first += units - row
    return matrix


def packed_bytes(matrices: int, units: int) -> int:
    """Bytes that so many packed matrices of so many units take."""
    return 4 * matrices * (units * (units + 1) // 2)


def write_packed(
    path: Path, names: Sequence[str], units: int, packed: Iterable[tuple[str, NDArray[np.float32]]]
) -> None:
    """Write packed matrices as a safetensors file, one in memory at a time; a library call would want them all.

    Args:
        path: of the file.
        names: of the matrices, in the order in which they come.
        units: rows of each matrix.
        packed: (name, [units * (units + 1) / 2]).

    Raises:
        OSError: if it cannot be written.
    """
    size = units * (units + 1) // 2
    header = {
        name: {"dtype": "F32", "shape": [size], "data_offsets": [4 * size * k, 4 * size * (k + 1)]}
        for k, name in enumerate(names)
    }
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the matrices begin at a multiple of their entries' size
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, matrix in packed:
            file.write(np.ascontiguousarray(matrix, dtype="<f4").data)
