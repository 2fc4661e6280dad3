"""Packed Gram matrices, in memory or in a run's file, each unpacked when it is asked for."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from interference.run.packing import unpack


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
