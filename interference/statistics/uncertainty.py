"""How sure a metric is: bootstrap intervals, verdicts, the split-half null, and the comparison of two runs.

The resamples come from `bootstrap.py`, whose head says how they are corrected and what their intervals are worth.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interference.errors import ScopeError
from interference.statistics.bootstrap import Resamples, bootstrap_weights, check_level, resample_pair_means
from interference.statistics.estimand import METRICS, REDUCE, Aggregate, Estimand, Norms, Reduce, estimate
from interference.statistics.layout import Array, Grams, Pairs, blocks_of, layout_of
from interference.statistics.pairs import Kernel
from interference.statistics.significance import (
    at_odds,
    benjamini_hochberg,
    changes,
    interval_p_value,
    p_value,
    verdicts,
)

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
    """Whether every task has enough units, or groups where units have them, for a split-half null."""
    labels = range(len(tasks)) if groups is None else groups
    return bool(layout_of(gram, tasks, labels).cells.counts.min() >= LEAST_UNITS)


LEAST_UNITS = 4
"""Units of a task, or groups where units have them, that a split-half null needs: each half needs 2."""


@dataclass(frozen=True)
class Table:
    """A metric with what is known about its error; arrays are [tasks i, tasks j].

    Attributes:
        tasks: Names, in the order of rows and columns.
        value: The metric.
        low: Lower end of its interval; like `high`, NaN where more resamples than the interval's tail have no value,
            for Delta in rows of tasks that a few units carry, and for own Delta where few units lead a task (`scarce`).
        high: Upper end.
        p: Two-sided p-value of Delta_j L_i = 0 (leave-one-out, Student's t), whatever the metric.
        q: p adjusted by Benjamini-Hochberg over the off-diagonal cells of tasks that have a signal; NaN elsewhere.
        verdict: Values of `Verdict`, always about Delta_j L_i: "conflict" (interval below 0 and q <= 1 - level),
            "synergy" (above), "unclear", "no-signal" where Delta_i L_i's own interval is not above 0, "carried" where a
            few units have nearly all of i's gradient (`carriers.py`), "self".
        nonpositive: Share of units v of i with Delta_i L_i(v) <= 0.
        leverage: Share of the worst unit in the cell's ratios.
        at_odds: Where the metric does not bear its verdict out, how: see `significance.at_odds`; else "".
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
        """The tidy table, one entry a cell, row by row: affected, stepped and every array of the table."""
        return _tidy(self, ("value", "low", "high", "verdict", "p", "q", "nonpositive", "leverage", "at_odds"))


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
        level: Of the intervals; verdicts hold the false discovery rate at 1 - level.
        seed: Of the resamples.
        groups: A label of every unit, the same for units that are not independent, within a task or between two: whole
            groups are drawn, and pairs of one group are left out. None where all units are independent.
    """
    estimand = Estimand(metric, pairs, reduce, aggregate, norms, step)
    drawn = Resamples(gram, tasks, aggregate, replicates=replicates, level=level, seed=seed, groups=groups)
    return table_of(drawn, estimand)


def table_of(resamples: Resamples, estimand: Estimand) -> Table:
    """What `table` gives, of one of several estimands that share their resamples, and so most of the work."""
    level, fall = resamples.level, resamples.fall
    low, high = _studentised(resamples, resamples.delta, interval(fall.draws, level))
    own_low, carried = np.diagonal(low), resamples.carried
    p = p_value(fall.value, fall.variance, fall.degrees)
    tested = np.where((own_low > 0)[:, None] & ~np.eye(len(own_low), dtype=bool), p, np.nan)
    q = benjamini_hochberg(tested)
    verdict = verdicts(low, high, own_low, q, level, carried)
    value, draws = resamples.of(estimand)
    low, high = _around(value, interval(draws, level))
    if estimand.metric == "delta":
        low, high = _withheld((carried, resamples.scarce), _studentised(resamples, estimand, (low, high)))
    metric, health = METRICS[estimand.metric], resamples.health(estimand)
    opposed = at_odds(value, low, high, verdict, metric.even, metric.helps)
    return Table(resamples.tasks, value, low, high, p, q, verdict, health.nonpositive, health.leverage, opposed)


def _studentised(resamples: Resamples, estimand: Estimand, ends: tuple[Array, Array]) -> tuple[Array, Array]:
    """Ends of Delta's intervals, those of own Delta studentised where a task's gradient lengths scatter widely."""
    low, high = ends
    for task in np.flatnonzero(resamples.tailed) if estimand.pair_rule is Pairs.LEAVE_ONE_OUT else []:
        found = resamples.studentised(estimand, int(task))
        below, above = interval(found.t[:, None], resamples.level)
        low[task, task], high[task, task] = found.value - found.error * np.concatenate([above, below])
    return low, high


def _withheld(few: tuple[NDArray[np.bool_], NDArray[np.bool_]], ends: tuple[Array, Array]) -> tuple[Array, Array]:
    """Ends of Delta's intervals: none in the rows of carried tasks, and none of own Delta of scarce ones."""
    carried, scarce = few
    none = carried[:, None] | np.diag(scarce)
    low, high = (np.where(none, np.nan, end) for end in ends)
    return low, high


def interval(draws: Array, level: float) -> tuple[Array, Array]:
    """Percentile interval over the replicates; NaN where more of them than a tail holds have no value.

    The k-th of B sorted draws counts as the k / (B + 1) quantile, which is what its coverage is.
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


@dataclass(frozen=True)
class Comparison:
    """The change of a metric from run a to run b on the same units; arrays are [tasks i, tasks j].

    Attributes:
        tasks: Names, in the order of rows and columns.
        a: The metric in the first run.
        b: The metric in the second.
        difference: b - a.
        low: Lower end of the difference's interval, from resamples of the same units in both runs; like `high`, NaN for
            Delta in rows of tasks that a few units carry in either run.
        high: Upper end.
        p: Two-sided p-value of no difference.
        q: p adjusted by Benjamini-Hochberg over the cells that have one.
        verdict: Values of `Change`: "lower" or "higher" where the interval excludes 0 and q <= 1 - level. A cell of
            `interference` whose affected task has no signal in either run is "unclear".
    """

    tasks: tuple[str, ...]
    a: Array
    b: Array
    difference: Array
    low: Array
    high: Array
    p: Array
    q: Array
    verdict: NDArray[np.str_]

    def columns(self) -> dict[str, NDArray[Any]]:
        """The tidy comparison, one entry a cell, row by row: affected, stepped and every array."""
        return _tidy(self, ("a", "b", "difference", "low", "high", "p", "q", "verdict"))


def compare(
    gram_a: Grams,
    gram_b: Grams,
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
    groups_b: Sequence[Hashable] | None = None,
) -> Comparison:
    """Run b beside run a, unit by unit: the Grams must hold the same units in the same order.

    The blocks need not be the same: two methods, or two moments of one training. Arguments as in `table`. Units that
    share a group in either run (`groups`, `groups_b`) share one in both.
    """
    estimand = Estimand(metric, pairs, reduce, aggregate, norms, step)
    first, second = (
        Resamples(gram, tasks, aggregate, replicates=replicates, level=level, seed=seed, groups=own)
        for gram, own in ((gram_a, groups), (gram_b, groups_b))
    )
    return change_of(first, second, estimand)


def change_of(first: Resamples, second: Resamples, estimand: Estimand) -> Comparison:
    """What `compare` gives, of one of several estimands that share their resamples: the same units, drawn alike."""
    first, second = first.alike(second), second.alike(first)  # the same pairs count in both
    a, b = first.value(estimand), second.value(estimand)
    layout, level = first.layout, first.level
    if estimand.linear:
        kernel = _difference(first.kernel(estimand), second.kernel(estimand))
        change = resample_pair_means(kernel, first.weights, layout, estimand.pair_rule, level)
        low, high = interval(change.draws, level)
        if estimand.metric == "delta":
            few = first.carried | second.carried, first.scarce | second.scarce
            low, high = _withheld(few, (low, high))
        p = p_value(change.value, change.variance, change.degrees)
    else:
        low, high = _around(b - a, interval(second.of(estimand)[1] - first.of(estimand)[1], level))
        p = interval_p_value(b - a, low, high, level, np.minimum.outer(layout.cells.counts, layout.cells.counts) - 1)
    if estimand.metric == "interference":
        ends = [_studentised(one, one.delta, interval(one.fall.draws, level))[0] for one in (first, second)]
        signal = np.logical_and(*(np.diagonal(low_end) > 0 for low_end in ends))
        p = np.where(signal[:, None], p, np.nan)
    q = benjamini_hochberg(p)
    return Comparison(layout.tasks, a, b, b - a, low, high, p, q, changes(low, high, q, level))


def _tidy(found: Table | Comparison, arrays: Sequence[str]) -> dict[str, NDArray[Any]]:
    names, count = np.array(found.tasks, dtype=object), len(found.tasks)  # object keeps the NULs at a name's end
    cells = {"affected": np.repeat(names, count), "stepped": np.tile(names, count)}
    return cells | {name: getattr(found, name).ravel() for name in arrays}


def _around(value: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
    """An interval widened to hold the value, where one unit has thrown that beyond nearly all resamples."""
    return np.minimum(ends[0], value), np.maximum(ends[1], value)


def _difference(a: Kernel, b: Kernel) -> Kernel:
    """The kernel whose pair mean is the change of a linear estimand."""
    return Kernel(b.values - a.values, None if a.own is None or b.own is None else b.own - a.own)


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

    With pairs "same-example" it is the mean pair cosine within the task (of the ratio of means, one in which longer
    gradients of the affected half weigh more), which is not 1. A task without a gradient is NaN.

    Raises:
        ScopeError: If a task has fewer than 4 units, or groups where units have them: each half needs 2.
    """
    check_level(level)
    labels = range(len(tasks)) if groups is None else groups
    estimand, layout = Estimand("interference", pairs, reduce, aggregate), layout_of(gram, tasks, labels)
    cells = layout.cells
    if cells.counts.min() < LEAST_UNITS:
        least, kind = int(cells.counts.argmin()), "units" if layout.groups is None else "groups"
        raise ScopeError(
            f"a split-half null needs {LEAST_UNITS} {kind} a task, but {layout.tasks[least]!r} has "
            f"{cells.counts[least]}"
        )
    rng, blocks = np.random.default_rng(seed), list(blocks_of(gram, layout))
    bounds = np.full((3, len(layout.tasks)), np.nan)
    for index, (task, count) in enumerate(zip(layout.slices, cells.counts, strict=True)):
        halves = rng.permuted(np.tile(np.arange(count) < count // 2, (splits, 1)), axis=1)
        own = cells.of_unit[task] - cells.starts[index]
        twice = [np.tile(block[task, task], (2, 2)) for block in blocks]  # the same units as two tasks
        if any(block.any() for block in twice):
            weights = np.concatenate([halves[:, own], ~halves[:, own]], axis=1).astype(np.float64)
            names = ["half"] * len(own) + ["other half"] * len(own)
            null = estimate(estimand, twice, names, weights, [*own, *own])[:, 0, 1]
            bounds[:, index] = null.mean(), *interval(null, level)
    return SplitHalfNull(layout.tasks, *bounds)
