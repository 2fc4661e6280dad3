"""From per-unit gradients to Gram matrices, in bounded memory: a spool holds the gradients, tiles of it are multiplied.

K_b[u, v] = <g_u^b, g_v^b>. Gradients are needed only until K is known.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from interference.packing import sum_of

Rows = Mapping[str, Tensor]


class Spool(Protocol):
    """Where gradients wait, in parts of some units each."""

    def write(self, part: int, rows: Rows) -> None:
        """Keep {block name: [units of the part, size]} as part number `part`."""

    def read(self, part: int, block: str) -> Tensor:
        """The rows [units of the part, size] of one block."""


class MemorySpool:
    """Gradients kept in memory up to a limit, and in temporary files beyond it; use as a context manager.

    Args:
        limit: bytes kept in memory.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._parts: dict[int, dict[str, Tensor]] = {}
        self._stack = ExitStack()
        self._disk: DiskSpool | None = None

    def __enter__(self) -> "MemorySpool":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def write(self, part: int, rows: Rows) -> None:
        """Keep the rows as they are, or write them to a file once the limit is reached."""
        self._left -= sum(tensor.nbytes for tensor in rows.values())
        if self._left >= 0:
            self._parts[part] = dict(rows)
            return
        if self._disk is None:
            self._disk = DiskSpool(Path(self._stack.enter_context(TemporaryDirectory(prefix="interference-"))))
        self._disk.write(part, rows)

    def read(self, part: int, block: str) -> Tensor:
        """The rows that were written."""
        if part in self._parts or self._disk is None:
            return self._parts[part][block]
        return self._disk.read(part, block)


class DiskSpool:
    """Gradients kept as one safetensors file a part; a file is whole or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{part:06d}.safetensors"

    def write(self, part: int, rows: Rows, metadata: dict[str, str] | None = None) -> None:
        """Write the rows under a temporary name, then rename."""
        path = self.path(part)
        temporary = path.with_suffix(".tmp")
        save_file({name: tensor.contiguous() for name, tensor in rows.items()}, temporary, metadata)
        temporary.rename(path)

    def read(self, part: int, block: str) -> Tensor:
        """Read one block of a part; the others stay on disk."""
        with safe_open(self.path(part), framework="pt") as file:
            return file.get_tensor(block)

    def metadata(self, part: int) -> dict[str, str] | None:
        """What was noted beside a part; None if the part is not there."""
        if not self.path(part).exists():
            return None
        with safe_open(self.path(part), framework="pt") as file:
            return dict(file.metadata() or {})


def gram(spool: Spool, sizes: Sequence[int], block: str, width: int, budget: int) -> NDArray[np.float32]:
    """The Gram matrix of one block over all units, in the order of the parts.

    Args:
        spool: where the gradients are.
        sizes: units in each part.
        block: the block's name.
        width: gradient entries of the block.
        budget: bytes that the gradients in memory at one time may take; at least two parts are held.

    Returns:
        [units, units], exactly symmetric.
    """
    tiles = _tiles(sizes, max(budget // (2 * 4 * width), 1))
    offsets = np.concatenate([[0], np.cumsum([sum(sizes[part] for part in tile) for tile in tiles])])
    found = np.empty((offsets[-1], offsets[-1]), dtype=np.float32)
    for a, row_parts in enumerate(tiles):
        rows = _load(spool, row_parts, block)
        for b in range(a + 1):
            columns = rows if a == b else _load(spool, tiles[b], block)
            product = (rows @ columns.T).float().numpy()
            found[offsets[a] : offsets[a + 1], offsets[b] : offsets[b + 1]] = product
            found[offsets[b] : offsets[b + 1], offsets[a] : offsets[a + 1]] = product.T
    lower = np.tril_indices(len(found), -1)
    found.T[lower] = found[lower]
    return found


def grams(
    spool: Spool, sizes: Sequence[int], sums: Mapping[str, Sequence[tuple[str, int]]], budget: int
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The Gram matrices to store, one after another.

    Args:
        spool: where the gradients are.
        sizes: units in each part.
        sums: {stored name: [(block name, its width)] whose Gram matrices are added up}.
        budget: as in `gram`.
    """
    for name, members in sums.items():
        yield name, sum_of(gram(spool, sizes, block, width, budget) for block, width in members)


def weight_rows(gradient_a: Tensor, gradient_b: Tensor, factor_a: Tensor, factor_b: Tensor, scaling: float) -> Tensor:
    """Rows whose inner products are those of the steps that LoRA gradients take in the space of the weight.

    With G the gradient at W = scaling * B A, the gradients are g_A = scaling * B^T G and g_B = scaling * G A^T. The
    part of G that a change B dA + dB A can follow is its projection on the tangent space of the matrices of rank r,
    P_B G + (1 - P_B) G P_A, with P_B and P_A projecting on the columns of B and the rows of A. It is the same however
    BA is split (A -> cA, B -> B/c, or any invertible matrix between them), which plain B g_A + g_B A is not, and the
    change of task i's loss under it is, to first order, the inner product with task i's own. At B = 0 only the second
    term is left.

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


def _tiles(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Runs of neighbouring parts of at most `most` units together (or a single larger part)."""
    tiles: list[list[int]] = []
    held = most + 1
    for part, size in enumerate(sizes):
        if held + size > most:
            tiles.append([])
            held = 0
        tiles[-1].append(part)
        held += size
    return tiles


def _load(spool: Spool, parts: Sequence[int], block: str) -> Tensor:
    return torch.cat([spool.read(part, block).flatten(1) for part in parts])
