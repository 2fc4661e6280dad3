"""Differences: how a metric changes between two runs of the same units, with paired intervals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interference.statistics.bootstrap import resample_pair_means
from interference.statistics.estimand import REDUCE, Aggregate, Estimand, Norms, Reduce
from interference.statistics.intervals import around, interval, studentised_ends, tidy, withheld
from interference.statistics.layout import Array, Grams, Pairs
from interference.statistics.pairs import Kernel
from interference.statistics.resamples import Resamples
from interference.statistics.significance import benjamini_hochberg, changes, interval_p_value, p_value


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
            `interference` whose affected task lacks a signal in one of the runs is "unclear".
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
        """The comparison in tidy columns, for a DataFrame.

        Returns:
            affected, stepped and every array of the comparison, each [tasks * tasks]: one entry per cell, row by row.
        """
        return tidy(self, ("a", "b", "difference", "low", "high", "p", "q", "verdict"))


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
    """The change of a metric from run a to run b: the Grams must hold the same units in the same order.

    The blocks need not be the same: two methods, or two moments of one training.

    Args:
        gram_a: [units, units] or [blocks, units, units] of the first run.
        gram_b: Of the second; its blocks may be others.
        tasks: The task of every unit.
        metric: A key of `metrics.METRICS`.
        pairs: Which pairs of units count, as in `metrics.interference`.
        reduce: How ratios become one number, as in `metrics.interference`.
        aggregate: How blocks become one matrix, as in `metrics.interference`.
        norms: As in `metrics.cosine`.
        step: As in `metrics.delta`.
        replicates: Resamples.
        level: Level of the intervals; verdicts hold the false discovery rate at 1 - level.
        seed: Seed of the resamples.
        groups: A label of every unit in run a, the same for units that are not independent; None where all are.
        groups_b: Likewise in run b. Units that share a group in either run share one in both.

    Returns:
        Arrays [tasks i, tasks j].

    Raises:
        ConfigError: If a metric, setting or level is not allowed.
        ScopeError: If a task has fewer than 2 units or groups, or `groups` does not have one label per unit.
        MeasurementError: If the Gram has the wrong shape, is not finite, or is zero throughout.
    """
    estimand = Estimand(metric, pairs, reduce, aggregate, norms, step)
    first, second = (
        Resamples(gram, tasks, aggregate, replicates=replicates, level=level, seed=seed, groups=own)
        for gram, own in ((gram_a, groups), (gram_b, groups_b))
    )
    return change_of(first, second, estimand)


def change_of(first: Resamples, second: Resamples, estimand: Estimand) -> Comparison:
    """What `compare` gives, of one of several estimands that share their resamples: the same units, drawn alike.

    Args:
        first: Resamples of run a.
        second: Resamples of run b, with the same seed and as many.
        estimand: The metric with its options.

    Returns:
        Arrays [tasks i, tasks j].
    """
    first, second = first.alike(second), second.alike(first)  # the same pairs count in both
    a, b = first.value(estimand), second.value(estimand)
    layout, level = first.layout, first.level
    if estimand.linear:
        kernel = _difference(first.kernel(estimand), second.kernel(estimand))
        change = resample_pair_means(kernel, first.weights, layout, estimand.pair_rule, level)
        low, high = interval(change.draws, level)
        if estimand.metric == "delta":
            few = first.carried | second.carried, first.scarce | second.scarce
            low, high = withheld(few, (low, high))
        p = p_value(change.value, change.variance, change.degrees)
    else:
        low, high = around(b - a, interval(second.of(estimand)[1] - first.of(estimand)[1], level))
        p = interval_p_value(b - a, low, high, level, np.minimum.outer(layout.cells.counts, layout.cells.counts) - 1)
    if estimand.metric == "interference":
        ends = [studentised_ends(one, one.delta, interval(one.fall.draws, level))[0] for one in (first, second)]
        signal = np.logical_and(*(np.diagonal(low_end) > 0 for low_end in ends))
        p = np.where(signal[:, None], p, np.nan)
    q = benjamini_hochberg(p)
    return Comparison(layout.tasks, a, b, b - a, low, high, p, q, changes(low, high, q, level))


def _difference(a: Kernel, b: Kernel) -> Kernel:
    """The kernel whose pair mean is the change of a linear estimand."""
    return Kernel(b.values - a.values, None if a.own is None or b.own is None else b.own - a.own)
