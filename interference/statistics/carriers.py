"""How many units carry a task: their effective number, whether it is too few for an interval, and which they are.

Where a few units have nearly all of a task's gradient, the next draw of units has others, and no interval made from
this one knows it. Gradients of groups are their units' sum, so that what holds of units holds of groups.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from interference.statistics.groups import Cells
from interference.statistics.layout import Array, Grams, Layout, pool

FEW = 5
"""Effective units below which a few carry a task that has many more; see `is_carried`."""
SCARCE = 16
"""Effective units below which own Delta of a task that has many more has no interval; see `is_scarce`."""
SHARE = 1 / 3
"""Effective units, relative to all, below which the law of a task's gradients has a heavy tail."""


def squared_norms(total: Array, layout: Layout) -> Array:
    """[cells]: squared norm of the summed gradient of the units of every group, over all blocks.

    Args:
        total: [units, units], the Gram of all blocks, grouped.
        layout: The tasks and groups of the grouped units.
    """
    cells = layout.cells
    if layout.groups is None:
        return np.diagonal(total).astype(np.float64)
    within = np.where(cells.of_unit[:, None] == cells.of_unit, total, 0)
    return np.maximum(np.bincount(cells.of_unit, within.sum(axis=1)), 0)


def effective_units(norms: Array, cells: Cells) -> Array:
    """[tasks]: (sum s)^2 / sum s^2 over the squared norms s of a task's groups (Kish 1965); NaN without a gradient.

    As many as the task has where all are equally long, 1 where one has all the gradient.

    Args:
        norms: [cells], of `squared_norms`.
        cells: The groups of every task.
    """
    return np.array([_effective(norms[cells.of_task(task)]) for task in range(len(cells.counts))])


def _effective(norms: Array) -> float:
    largest = norms.max()
    if not largest > 0:
        return np.nan
    share = norms / largest  # of a size whose square is a number
    return float(share.sum() ** 2 / (share**2).sum())


def is_tailed(effective: Array, counts: NDArray[np.intp]) -> NDArray[np.bool_]:
    """[tasks]: whether the scatter of gradient lengths is so wide that percentiles of own Delta do not cover.

    Args:
        effective: [tasks], of `effective_units`.
        counts: [tasks], units, or groups where units have them.
    """
    found: NDArray[np.bool_] = effective < SHARE * counts
    return found


def is_carried(effective: Array, counts: NDArray[np.intp]) -> NDArray[np.bool_]:
    """[tasks]: whether a few units carry a task, so that a verdict, or an interval of its Delta, promises too much.

    So it is below `FEW` effective units where the task has three times as many: a task of 5 equal units has few, but
    none that carries it.

    Args:
        effective: [tasks], of `effective_units`.
        counts: [tasks], units, or groups where units have them.
    """
    return is_tailed(effective, counts) & (effective < FEW)


def is_scarce(effective: Array, counts: NDArray[np.intp]) -> NDArray[np.bool_]:
    """[tasks]: whether so few units lead a task that no interval of its own Delta covers.

    `SCARCE` is the least with which own Delta is covered or withheld in 90% of cases in all simulations where the
    sample can tell (tests/interference/statistics/COVERAGE.md). Verdicts, and intervals of other cells, hold there.

    Args:
        effective: [tasks], of `effective_units`.
        counts: [tasks], units, or groups where units have them.
    """
    return is_tailed(effective, counts) & (effective < SCARCE)


def carriers(norms: Array) -> NDArray[np.intp]:
    """The fewest groups of a task that have half of the sum of its squared norms, the longest first.

    Args:
        norms: [groups of the task], of `squared_norms`.
    """
    order = np.argsort(-norms, kind="stable")
    reached = np.cumsum(norms[order]) >= norms.sum() / 2
    return order[: int(np.argmax(reached)) + 1]


def carried_by(
    gram: Grams, tasks: Sequence[str], groups: Sequence[Hashable] | None = None
) -> dict[str, list[list[int]]]:
    """The tasks that a few units carry, each with its carriers: the units of each group, the longest gradient first.

    Args:
        gram: [units, units], or a stack or sequence of them, one a block.
        tasks: The task of every unit.
        groups: A label of every unit, the same for units that are not independent; None where all are.
    """
    layout = Layout.of(tasks, groups)
    total = pool(gram, layout)
    layout = layout.with_copies(total)
    norms, cells, found = squared_norms(total, layout), layout.cells, {}
    for task in np.flatnonzero(is_carried(effective_units(norms, cells), cells.counts)):
        own = cells.of_task(int(task))
        places = own.start + carriers(norms[own])
        found[layout.tasks[task]] = [layout.order[cells.of_unit == place].tolist() for place in places]
    return found
