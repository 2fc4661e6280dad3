"""How sure a metric is: bootstrap intervals, verdicts and the split-half null; it gathers the comparison of two runs.

The resamples come from `bootstrap.py`, whose head says how they are corrected and how far their intervals hold.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interference.errors import ScopeError
from interference.statistics.bootstrap import bootstrap_weights, check_level
from interference.statistics.differences import Comparison, change_of, compare
from interference.statistics.estimand import METRICS, REDUCE, Aggregate, Estimand, Norms, Reduce, estimate
from interference.statistics.intervals import around, interval, studentised_ends, tidy, withheld
from interference.statistics.layout import Array, Grams, Pairs, Preconditioned, blocks_of, layout_of, squares_of
from interference.statistics.resamples import Resamples
from interference.statistics.significance import LEAST, at_odds, benjamini_hochberg, p_value, verdicts

__all__ = [
    "Comparison",
    "Resamples",
    "SplitHalfNull",
    "Table",
    "bootstrap_weights",
    "change_of",
    "compare",
    "interval",
    "split_half_null",
    "table",
    "table_of",
]


def can_split(gram: Grams, tasks: Sequence[str], groups: Sequence[Hashable] | None = None) -> bool:
    """Whether every task has enough units, or groups where units have them, for a split-half null.

    Args:
        gram: [units, units] or [blocks, units, units].
        tasks: The task of every unit.
        groups: A label of every unit, the same for units that are not independent; None where all are independent.

    Returns:
        True where `split_half_null` takes these.
    """
    labels = range(len(tasks)) if groups is None else groups
    return bool(layout_of(gram, tasks, labels).cells.counts.min() >= LEAST_UNITS)


def too_few(gram: Grams, tasks: Sequence[str], groups: Sequence[Hashable] | None = None) -> dict[str, int]:
    """The tasks with too few units, or groups where units have them, for an interval of their own Delta.

    Args:
        gram: [units, units] or [blocks, units, units].
        tasks: The task of every unit.
        groups: A label of every unit, the same for units that are not independent; None where all are independent.

    Returns:
        {task: how many it has}, each fewer than `LEAST`.
    """
    layout = layout_of(gram, tasks, range(len(tasks)) if groups is None else groups)
    counts = zip(layout.tasks, layout.cells.counts.tolist(), strict=True)
    return {task: count for task, count in counts if count < LEAST}


LEAST_UNITS = 4
"""Units of a task, or groups where units have them, that a split-half null needs: each half needs 2."""


@dataclass(frozen=True)
class Table:
    """A metric with what is known about its error; arrays are [tasks i, tasks j].

    Attributes:
        tasks: Names, in the order of rows and columns.
        value: The metric.
        low: Lower end of its interval; like `high`, NaN where more resamples than the interval's tail have no value.
            Delta has none in rows of tasks that a few units carry, and own Delta none where few units lead a task.
        high: Upper end.
        p: Two-sided p-value of Delta_j L_i = 0 (leave-one-out, Student's t), whatever the metric.
        q: p adjusted by Benjamini-Hochberg over the off-diagonal cells of tasks that have a signal; NaN elsewhere.
        verdict: Values of `Verdict`, always about Delta_j L_i: "conflict" (interval below 0 and q <= 1 - level),
            "synergy" (above), "unclear" or "self". "no-signal" where Delta_i L_i's own interval is not above 0, or
            there is none because i has fewer than 4 units (groups, where units have them).
            "carried" where a few units have nearly all of i's gradient (`carriers.py`).
        nonpositive: Share of units v of i with Delta_i L_i(v) <= 0.
        leverage: Share of the worst unit in the cell's ratios.
        at_odds: How the metric contradicts its verdict, see `significance.at_odds`; "" where it does not.
    """

    tasks: tuple[str, ...]
    value: Array
    low: Array
    high: Array
    p: Array
    q: Array
    verdict: NDArray[np.str_]
    nonpositive: Array
    leverage: Array
    at_odds: NDArray[np.str_]

    def columns(self) -> dict[str, NDArray[Any]]:
        """The table in tidy columns, for a DataFrame.

        Returns:
            affected, stepped and every array of the table, each [tasks * tasks]: one entry per cell, row by row.
        """
        return tidy(self, ("value", "low", "high", "verdict", "p", "q", "nonpositive", "leverage", "at_odds"))


def table(
    gram: Grams,
    tasks: Sequence[str],
    metric: str = "interference",
    *,
    pairs: Pairs | str = Pairs.LEAVE_ONE_OUT,
    reduce: Reduce | str = REDUCE,
    aggregate: Aggregate | str = Aggregate.SUM,
    norms: Norms | str = Norms.PLAIN,
    step: float = 1.0,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> Table:
    """A metric with bootstrap intervals and verdicts; see `Table`, and the head of this file for the bootstrap.

    Args:
        gram: [units, units] or [blocks, units, units].
        tasks: The task of every unit.
        metric: A key of `metrics.METRICS`.
        pairs: As in `metrics.interference`.
        reduce: As in `metrics.interference`; only intervals of "ratio-of-means" have the coverage they claim, since
            the mean of ratios estimates something that need not exist.
        aggregate: As in `metrics.interference`.
        norms: As in `metrics.cosine`.
        step: As in `metrics.delta`.
        replicates: Resamples.
        level: Level of the intervals; verdicts hold the false discovery rate at 1 - level.
        seed: Seed of the resamples.
        groups: A label of every unit, the same for units that are not independent, within a task or between two: whole
            groups are drawn, and pairs of one group are left out. None where all units are independent.

    Returns:
        Arrays [tasks i, tasks j].

    Raises:
        ConfigError: If a metric, setting or level is not allowed.
        ScopeError: If a task has fewer than 2 units or groups, or `groups` does not have one label per unit.
        MeasurementError: If the Gram has the wrong shape, is not finite, or is zero throughout.

    Example:
        >>> import numpy as np
        >>> g = np.array([[1.0, 0.0]] * 6 + [[-1.0, 1.0]] * 6)
        >>> table(g @ g.T, ["a"] * 6 + ["b"] * 6).verdict.tolist()
        [['self', 'conflict'], ['conflict', 'self']]
    """
    estimand = Estimand(metric, pairs, reduce, aggregate, norms, step)
    drawn = Resamples(gram, tasks, aggregate, replicates=replicates, level=level, seed=seed, groups=groups)
    return table_of(drawn, estimand)


def table_of(resamples: Resamples, estimand: Estimand) -> Table:
    """`table` for one of several estimands that share their resamples, and so most of the work.

    Args:
        resamples: Of the Gram.
        estimand: The metric with its options.

    Returns:
        Arrays [tasks i, tasks j].
    """
    level, carried, (p, q, verdict) = resamples.level, resamples.carried, resamples.once("verdicts", _verdicts)
    value, draws = resamples.of(estimand)
    low, high = around(value, interval(draws, level))
    if estimand.metric == "delta":
        low, high = withheld((carried, resamples.scarce), studentised_ends(resamples, estimand, (low, high)))
    metric, health = METRICS[estimand.metric], resamples.health(estimand)
    opposed = at_odds(value, low, high, verdict, metric.even, metric.helps)
    return Table(resamples.tasks, value, low, high, p, q, verdict, health.nonpositive, health.leverage, opposed)


def _verdicts(resamples: Resamples) -> tuple[Array, Array, NDArray[np.str_]]:
    """p, q and verdict of every cell, which are about Delta, each [tasks i, tasks j]."""
    level, fall = resamples.level, resamples.fall
    low, high = studentised_ends(resamples, resamples.delta, interval(fall.draws, level))
    own_low = np.diagonal(low)
    p = p_value(fall.value, fall.variance, fall.degrees)
    tested = np.where((own_low > 0)[:, None] & ~np.eye(len(own_low), dtype=bool), p, np.nan)
    q = benjamini_hochberg(tested)
    return p, q, verdicts(low, high, own_low, q, level, resamples.carried)


@dataclass(frozen=True)
class SplitHalfNull:
    """I of a task's units against its own other half, which should be 1; every array is [tasks].

    Attributes:
        tasks: Their names.
        mean: Over the random splits.
        low: Lower end of the interval that holds `level` of the splits.
        high: Upper end. `high - low` is how far noise alone moves a cell of this row, with half the units.
    """

    tasks: tuple[str, ...]
    mean: Array
    low: Array
    high: Array


def split_half_null(
    gram: Grams,
    tasks: Sequence[str],
    *,
    pairs: Pairs | str = Pairs.LEAVE_ONE_OUT,
    reduce: Reduce | str = REDUCE,
    aggregate: Aggregate | str = Aggregate.SUM,
    splits: int = 200,
    level: float = 0.95,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> SplitHalfNull:
    """The interference between two random halves of each task's own units, or groups where units have them.

    With pairs "same-example" it is the mean pair cosine within the task, which is not 1. Of the ratio of means it is
    one in which longer gradients of the affected half weigh more.

    Args:
        gram: [units, units] or [blocks, units, units].
        tasks: The task of every unit.
        pairs: Which pairs of units count, as in `metrics.interference`.
        reduce: How ratios become one number, as in `metrics.interference`.
        aggregate: How blocks become one matrix, as in `metrics.interference`.
        splits: Random halvings of every task.
        level: Level of the intervals.
        seed: Seed of the halvings.
        groups: A label of every unit, the same for units that are not independent: whole groups are in one half. None
            where all units are independent.

    Returns:
        Arrays [tasks]; a task without a gradient is NaN.

    Raises:
        ConfigError: If a setting or level is not allowed.
        ScopeError: If a task has fewer than 4 units, or groups where units have them: each half needs 2.
        MeasurementError: If the Gram has the wrong shape or is not finite.
    """
    check_level(level)
    labels = range(len(tasks)) if groups is None else groups
    estimand, layout = Estimand("interference", pairs, reduce, aggregate), layout_of(gram, tasks, labels)
    cells = layout.cells
    if cells.counts.min() < LEAST_UNITS:
        least, kind = int(cells.counts.argmin()), "units" if layout.groups is None else "groups"
        raise ScopeError(
            f"a split-half null needs {LEAST_UNITS} {kind} per task, but {layout.tasks[least]!r} has "
            f"{cells.counts[least]}"
        )
    rng, blocks = (
        np.random.default_rng(seed),
        list(zip(blocks_of(gram, layout), squares_of(gram, layout), strict=False)),
    )
    bounds = np.full((3, len(layout.tasks)), np.nan)
    for index, (task, count) in enumerate(zip(layout.slices, cells.counts, strict=True)):
        halves = rng.permuted(np.tile(np.arange(count) < count // 2, (splits, 1)), axis=1)
        own = cells.of_unit[task] - cells.starts[index]
        if any(block[task, task].any() for block, _ in blocks):
            weights = np.concatenate([halves[:, own], ~halves[:, own]], axis=1).astype(np.float64)
            names = ["half"] * len(own) + ["other half"] * len(own)
            null = estimate(estimand, _twice(blocks, task), names, weights, [*own, *own])[:, 0, 1]
            bounds[:, index] = null.mean(), *interval(null, level)
    return SplitHalfNull(layout.tasks, *bounds)


def _twice(blocks: Sequence[tuple[Array, Array | None]], task: slice) -> Grams:
    """The Gram matrices of the units of one task, as those of two tasks."""
    grams = [np.tile(block[task, task], (2, 2)) for block, _ in blocks]
    squares = [np.tile(own[task], 2) for _, own in blocks if own is not None]
    return Preconditioned(grams, np.array(squares)) if squares else grams
