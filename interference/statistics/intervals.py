"""Intervals: the ends of resamples, where they are studentised or withheld, and tables of cells in tidy columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interference.statistics.estimand import Estimand
from interference.statistics.layout import Array, Pairs
from interference.statistics.resamples import Resamples


def studentised_ends(resamples: Resamples, estimand: Estimand, ends: tuple[Array, Array]) -> tuple[Array, Array]:
    """Ends of Delta's intervals, those of own Delta studentised where a task's gradient lengths scatter widely."""
    low, high = ends
    for task in np.flatnonzero(resamples.tailed) if estimand.pair_rule is Pairs.LEAVE_ONE_OUT else []:
        found = resamples.studentised(estimand, int(task))
        below, above = interval(found.t[:, None], resamples.level)
        low[task, task], high[task, task] = found.value - found.error * np.concatenate([above, below])
    return low, high


def withheld(few: tuple[NDArray[np.bool_], NDArray[np.bool_]], ends: tuple[Array, Array]) -> tuple[Array, Array]:
    """Ends of Delta's intervals: none in the rows of carried tasks, and none of own Delta of scarce ones."""
    carried, scarce = few
    none = carried[:, None] | np.diag(scarce)
    low, high = (np.where(none, np.nan, end) for end in ends)
    return low, high


def interval(draws: Array, level: float) -> tuple[Array, Array]:
    """The percentile interval over replicates.

    The k-th of B sorted draws counts as the k / (B + 1) quantile, which is what its coverage is.

    Args:
        draws: [replicates, ...].
        level: Share of the distribution that lies within, from 0 to 1.

    Returns:
        Lower and upper ends, each [...]; NaN where more draws than a tail holds have no value.

    Example:
        >>> import numpy as np
        >>> low, high = interval(np.arange(1.0, 100.0), 0.9)
        >>> round(float(low)), round(float(high))
        (5, 95)
    """
    tails = [(1 - level) / 2, (1 + level) / 2]
    undefined = np.isnan(draws)
    if not undefined.any():
        low, high = np.quantile(draws, tails, axis=0, method="weibull")
        return low, high
    enough = undefined.mean(axis=0) <= tails[0]
    quantiles = np.nanquantile(np.where(enough, draws, 0), tails, axis=0, method="weibull")
    low, high = np.where(enough, quantiles, np.nan)
    return low, high


def around(value: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
    """An interval widened to hold the value, where one unit has thrown that beyond nearly all resamples."""
    return np.minimum(ends[0], value), np.maximum(ends[1], value)


def tidy(found: Any, arrays: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of a table of cells in columns, after affected and stepped; see `uncertainty.Table.columns`."""
    names, count = np.array(found.tasks, dtype=object), len(found.tasks)  # object keeps the NULs at a name's end
    cells = {"affected": np.repeat(names, count), "stepped": np.tile(names, count)}
    return cells | {name: getattr(found, name).ravel() for name in arrays}
