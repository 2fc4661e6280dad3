"""Gram matrices as a run stores them: packed upper triangles, in memory or in a file, and sums of them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

_ADAM = " adam"


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
    """The symmetric matrix [units, units] that `pack` packed; what follows it is not read."""
    matrix, first = np.empty((units, units), dtype=packed.dtype), 0
    for row in range(units):
        matrix[row, row:] = matrix[row:, row] = packed[first : first + units - row]
        first += units - row
    return matrix


def adam(name: str) -> str:
    """The name of a block's matrix of AdamW's step: what `pack` gives of <g_u, P g_v>, then |P g_u|^2 of each unit."""
    return f"{name}{_ADAM}"


def is_adam(name: str) -> bool:
    """Whether a name is one of `adam`."""
    return name.endswith(_ADAM)


def block_of(name: str) -> str:
    """The block of a matrix, which of AdamW's step `adam` named."""
    return name.removesuffix(_ADAM)


def packed_size(name: str, units: int) -> int:
    """Numbers that the packed matrix of a name has."""
    return units * (units + 1) // 2 + (units if is_adam(name) else 0)


def packed_bytes(matrices: int, units: int, steps: int = 0) -> int:
    """Bytes that a number of packed matrices take, each of this many units, and `steps` matrices of AdamW's."""
    return 4 * (matrices * packed_size("", units) + steps * packed_size(_ADAM, units))


def write_packed(
    path: Path, names: Sequence[str], units: int, packed: Iterable[tuple[str, NDArray[np.float32]]]
) -> None:
    """Write packed matrices as a safetensors file, one in memory at a time; a library call would want them all.

    Args:
        path: of the file.
        names: of the matrices, in the order in which they come.
        units: rows of each matrix.
        packed: (name, [`packed_size`]).

    Raises:
        OSError: if it cannot be written.
    """
    sizes = [packed_size(name, units) for name in names]
    ends = np.cumsum([0, *sizes]).tolist()
    header = {
        name: {"dtype": "F32", "shape": [size], "data_offsets": [4 * ends[k], 4 * ends[k + 1]]}
        for k, (name, size) in enumerate(zip(names, sizes, strict=True))
    }
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the matrices begin at a multiple of their entries' size
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, matrix in packed:
            file.write(np.ascontiguousarray(matrix, dtype="<f4").data)


class Grams(Sequence[NDArray[np.float32]]):
    """Packed Gram matrices as a sequence of [units, units], each unpacked when it is asked for."""

    def __init__(self, packed: Mapping[str, NDArray[np.float32]], names: Sequence[str], units: int) -> None:
        self._packed = packed
        self._names = list(names)
        self._units = units

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        return unpack(self._packed[self._names[index]], self._units)


class GramFile(Mapping[str, NDArray[np.float32]]):
    """The packed Gram matrices of a run on disk, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="np")
        self._names = dict.fromkeys(self._file.keys())

    def shape(self, name: str) -> list[int]:
        """The shape of one, without reading it."""
        return list(self._file.get_slice(name).get_shape())

    def kind(self, name: str) -> str:
        """The type of one's numbers, as safetensors calls it."""
        return str(self._file.get_slice(name).get_dtype())

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
