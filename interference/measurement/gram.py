"""Gram matrices of spooled gradients, K_b[u, v] = <g_u^b, g_v^b>. Tiles are multiplied, so that memory is bounded."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interference.measurement.shard import ALL, Shard
from interference.measurement.spool import Spool
from interference.run.grams import sum_of


def gram(
    spool: Spool,
    sizes: Sequence[int],
    block: str,
    width: int,
    budget: int,
    shard: Shard = ALL,
    scale: Tensor | None = None,
) -> NDArray[np.float32]:
    """The Gram matrix of one block over all units, in the order of the parts.

    Each of the processes that share the work holds the rows of its own parts, and multiplies its share of every tile.

    Args:
        spool: where the gradients are.
        sizes: units in each part.
        block: the block's name.
        width: entries of the block's rows.
        budget: bytes of gradients that may be in memory at a time; two parts are held even if they need more.
        shard: which parts are in this process's spool.
        scale: [width], what the rows are multiplied by, entry by entry; None for as they are.

    Returns:
        [units, units], exactly symmetric.

    Raises:
        RunError: in all processes, if one cannot read its parts.
    """
    tiles = _tiles(sizes, max(budget // (2 * 4 * width), 1))
    offsets = np.concatenate([[0], np.cumsum([sum(sizes[part] for part in tile) for tile in tiles])])
    found = torch.zeros(int(offsets[-1]), int(offsets[-1]))
    for a, row_parts in enumerate(tiles):
        rows = _load(spool, row_parts, sizes, block, width, shard, scale)
        mine = shard.share(len(rows))
        for b in range(a + 1):
            columns = rows if a == b else _load(spool, tiles[b], sizes, block, width, shard, scale)
            product = (rows[mine] @ columns.T).float()
            found[offsets[a] + mine.start : offsets[a] + mine.stop, offsets[b] : offsets[b + 1]] = product
    whole = shard.total(found).numpy()
    _mirror(whole)
    return whole


def grams(
    spool: Spool,
    sizes: Sequence[int],
    sums: Mapping[str, Sequence[tuple[str, int]]],
    budget: int,
    shard: Shard = ALL,
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The Gram matrices to store, one after another.

    Args:
        spool: where the gradients are.
        sizes: units in each part.
        sums: {stored name: [(block name, entries of its rows)] whose Gram matrices are added up}.
        budget: as in `gram`.
        shard: as in `gram`.
    """
    for name, members in sums.items():
        yield name, sum_of(gram(spool, sizes, block, width, budget, shard) for block, width in members)


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


def _load(
    spool: Spool,
    parts: Sequence[int],
    sizes: Sequence[int],
    block: str,
    width: int,
    shard: Shard,
    scale: Tensor | None,
) -> Tensor:
    """The rows [units, width] of some parts, scaled, in every process; each process reads its own parts."""
    if shard.count == 1:
        rows = torch.cat([spool.read(part, block).flatten(1) for part in parts])
        return rows if scale is None else rows * scale
    rows, first = torch.zeros(sum(sizes[part] for part in parts), width), 0
    with shard.together():  # or the others would wait for the share of a process that failed
        for part in parts:
            if shard.owns(part):
                rows[first : first + sizes[part]] = spool.read(part, block).flatten(1)
            first += sizes[part]
    return shard.total(rows if scale is None else rows * scale)


def _mirror(matrix: NDArray[np.float32]) -> None:
    """Copy the lower triangle to the upper one."""
    for row in range(len(matrix)):
        matrix[row, row + 1 :] = matrix[row + 1 :, row]
