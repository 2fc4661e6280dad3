"""How sure a metric is: bootstrap intervals, verdicts, the split-half null, and the comparison of two runs.

The bootstrap draws the units of every task anew, a thousand times at once, as weights under the sums of `pairing.py`.

Why it is corrected. A plain bootstrap of a mean over pairs of units counts the scatter of single pairs up to three
times (once for itself, once through the resampled row means and once through the column means), so that where noise
dominates its intervals are up to sqrt(3) too wide; and with 20 units it misses the factor n / (n - 1) and Student's t.
Here the resamples of every pair mean are therefore centred on the value measured and scaled to the standard error of
the two-way analysis of variance (`significance.pair_mean_variance`), times t / z at its degrees of freedom. Ratios and
cosines are functions of those corrected pair means; intervals are the percentiles of the result.

What is left. Percentiles follow a skewed law only half-way: with 20 units whose gradient lengths scatter tenfold, a
task's own Delta is covered in 91 to 93% of cells instead of 95%. In a row without signal the interval of a ratio of
means covers nearly always; an interval of a mean of ratios has no coverage to promise, since that mean need not exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from interference.errors import ConfigError, ScopeError
from interference.measure import Aggregate, Average, Measure, Norms, Reduce, estimate
from interference.metrics import ratio_health
from interference.pairing import Array, Grams, Kernel, Layout, Pairs, blocks_of, pair_means, pool
from interference.significance import (
    benjamini_hochberg,
    changes,
    interval_p_value,
    p_value,
    pair_mean_variance,
    verdicts,
)


def bootstrap_weights(tasks: Sequence[str], replicates: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """How often each unit is drawn in each resample: [replicates, units] counts, multinomial within every task."""
    if replicates < 2:
        raise ConfigError(f"replicates is {replicates}, but a bootstrap needs at least 2 (1000 is usual)")
    layout, rng = Layout.of(tasks), np.random.default_rng(seed)
    weights = np.empty((replicates, len(tasks)))
    for task, count in zip(layout.slices, layout.counts, strict=True):
        weights[:, layout.order[task]] = rng.multinomial(count, np.full(count, 1 / count), size=replicates)
    return weights


@dataclass(frozen=True)
class Table:
    """A metric with what is known about its error; arrays are [tasks i, tasks j].

    Attributes:
        tasks: Names, in the order of rows and columns.
        value: The metric.
        low: Lower end of its interval; like `high`, NaN where more resamples than the interval's tail have no value.
        high: Upper end.
        p: Two-sided p-value of Delta_j L_i = 0 (leave-one-out, Student's t), whatever the metric.
        q: p adjusted by Benjamini-Hochberg over the off-diagonal cells of tasks that carry signal; NaN elsewhere.
        verdict: Values of `Verdict`, always about Delta_j L_i: "conflict" (interval below 0 and q <= 1 - level),
            "synergy" (above), "unclear", "no-signal" where Delta_i L_i's own interval is not above 0, "self".
        nonpositive: Share of units v of i with Delta_i L_i(v) <= 0.
        leverage: Share of the worst unit in the cell's ratios.
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

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """The tidy table, one entry a cell, row by row: affected, stepped and every array of the table."""
        names, count = np.array(self.tasks), len(self.tasks)
        cells = {"affected": np.repeat(names, count), "stepped": np.tile(names, count)}
        arrays = ("value", "low", "high", "verdict", "p", "q", "nonpositive", "leverage")
        return cells | {name: getattr(self, name).ravel() for name in arrays}


def table(
    gram: Grams,
    tasks: Sequence[str],
    metric: str = "interference",
    *,
    pairs: Pairs | str = Pairs.LEAVE_ONE_OUT,
    reduce: Reduce | str = Reduce.MEAN_OF_RATIOS,
    aggregate: Aggregate | str = Aggregate.SUM,
    norms: Norms | str = Norms.PLAIN,
    step: float = 1.0,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
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
    """
    _check_level(level)
    measure = Measure(metric, pairs, reduce, aggregate, norms, step)
    gram, tasks = _pooled(gram, tasks, measure)
    layout = Layout.of(tasks)
    weights = layout.group(bootstrap_weights(tasks, replicates, seed), (1,))
    fall = _fall(gram, aggregate, layout, weights, level)
    low, high = interval(fall.draws, level)
    p = p_value(fall.value, fall.variance, fall.degrees)
    own_low = np.diagonal(low)
    tested = np.where((own_low > 0)[:, None] & ~np.eye(len(own_low), dtype=bool), p, np.nan)
    q = benjamini_hochberg(tested)
    verdict = verdicts(low, high, own_low, q, level)
    value, draws = resample(measure, gram, layout, weights, level)
    low, high = _around(value, interval(draws, level))
    health = ratio_health(gram, tasks, pairs, aggregate)
    return Table(layout.tasks, value, low, high, p, q, verdict, health.nonpositive, health.leverage)


@dataclass(frozen=True)
class PairMeans:
    """Pair means of one kernel and their error, corrected as the head of this file says.

    Attributes:
        value: [i, j], as measured.
        variance: [i, j], of the value under a new draw of units.
        degrees: [i, j], Student's degrees of freedom of that variance.
        scale: [i, j], what the plain resamples' deviations were multiplied by.
        draws: [replicates, i, j], the corrected resamples.
    """

    value: Array
    variance: Array
    degrees: Array
    scale: Array
    draws: Array


def resample_pair_means(kernel: Kernel, weights: Array, layout: Layout, pairs: Pairs, level: float = 0.95) -> PairMeans:
    """Pair means with corrected resamples; `weights` [replicates, units] grouped, `level` sets the t / z factor."""
    value = pair_means(kernel, np.ones((1, weights.shape[1])), layout, pairs)[0]
    variance, degrees = pair_mean_variance(kernel, layout, pairs)
    draws = pair_means(kernel.astype(weights.dtype.type), weights, layout, pairs)
    defined = ~np.isnan(draws)
    count = np.maximum(defined.sum(axis=0), 1)
    draws -= np.where(defined, draws, 0).sum(axis=0) / count
    spread = np.sqrt((np.where(defined, draws, 0) ** 2).sum(axis=0) / count)
    tail = (1 + level) / 2
    wanted = np.sqrt(variance) * stats.t.ppf(tail, degrees) / stats.norm.ppf(tail)
    scale = np.divide(wanted, spread, out=np.zeros_like(wanted), where=spread > 0)
    draws *= scale
    draws += value
    return PairMeans(value, variance, degrees, scale, draws)


def resample(measure: Measure, gram: Grams, layout: Layout, weights: Array, level: float = 0.95) -> tuple[Array, Array]:
    """A measure's value [i, j] and its corrected resamples [replicates, i, j]; `weights` [replicates, units] grouped.

    Ratios taken unit by unit are no function of pair means: their resamples are scaled, about their own median, as
    those of Delta are. They are not centred on the value, which one unit near a zero denominator may have thrown far.
    """
    if measure.aggregate is Aggregate.MEAN and not measure.linear:
        weights = weights.astype(np.float32)  # many kernels; the resamples' own scatter is 1e4 times the rounding
    ones, values, draws = np.ones((1, weights.shape[1])), Average(), Average()
    for kernel in measure.kernels(gram, layout):
        if measure.by_unit:
            values.add(measure.of_kernel(kernel, ones, layout))
            draws.add(measure.of_kernel(kernel.astype(weights.dtype.type), weights, layout))
        else:
            means = resample_pair_means(kernel, weights, layout, measure.pair_rule, level)
            values.add(measure.finish(means.value[None]))
            draws.add(measure.finish(means.draws))
    value, drawn = values.mean()[0], draws.mean()
    if measure.by_unit:
        (kernel,) = replace(measure, metric="delta").kernels(gram, layout)
        scale = resample_pair_means(kernel, weights, layout, measure.pair_rule, level).scale
        middle = np.nanmedian(np.where(np.isnan(value), 0, drawn), axis=0)  # a row without any ratio stays NaN below
        drawn = middle + scale * (drawn - middle)
    return value, drawn


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
        low: Lower end of the difference's interval, from resamples of the same units in both runs.
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


def compare(
    gram_a: Grams,
    gram_b: Grams,
    tasks: Sequence[str],
    metric: str = "interference",
    *,
    pairs: Pairs | str = Pairs.LEAVE_ONE_OUT,
    reduce: Reduce | str = Reduce.MEAN_OF_RATIOS,
    aggregate: Aggregate | str = Aggregate.SUM,
    norms: Norms | str = Norms.PLAIN,
    step: float = 1.0,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Run b beside run a, unit by unit: the Grams must hold the same units in the same order.

    The blocks need not be the same: two methods, or two moments of one training. Arguments as in `table`.
    """
    _check_level(level)
    measure = Measure(metric, pairs, reduce, aggregate, norms, step)
    (gram_a, _), (gram_b, tasks) = _pooled(gram_a, tasks, measure), _pooled(gram_b, tasks, measure)
    layout = Layout.of(tasks)
    weights = layout.group(bootstrap_weights(tasks, replicates, seed), (1,))
    a, b = estimate(measure, gram_a, tasks)[0], estimate(measure, gram_b, tasks)[0]
    if measure.linear:
        change = resample_pair_means(
            _difference(measure, gram_a, gram_b, layout), weights, layout, measure.pair_rule, level
        )
        low, high = interval(change.draws, level)
        p = p_value(change.value, change.variance, change.degrees)
    else:
        draws = [resample(measure, gram, layout, weights, level)[1] for gram in (gram_a, gram_b)]
        low, high = _around(b - a, interval(draws[1] - draws[0], level))
        p = interval_p_value(b - a, low, high, level, np.minimum.outer(layout.counts, layout.counts) - 1)
    if metric == "interference":
        measured = [_fall(gram, aggregate, layout, weights, level) for gram in (gram_a, gram_b)]
        signal = np.logical_and(*(np.diagonal(interval(fall.draws, level)[0]) > 0 for fall in measured))
        p = np.where(signal[:, None], p, np.nan)
    q = benjamini_hochberg(p)
    return Comparison(layout.tasks, a, b, b - a, low, high, p, q, changes(low, high, q, level))


def _around(value: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
    """An interval widened to hold the value, where one unit has thrown that beyond nearly all resamples."""
    return np.minimum(ends[0], value), np.maximum(ends[1], value)


def _pooled(gram: Grams, tasks: Sequence[str], measure: Measure) -> tuple[Grams, Sequence[str]]:
    """Gram and tasks with units grouped and blocks summed, once for all that follows, where the measure sums them."""
    if measure.aggregate is not Aggregate.SUM:
        return gram, tasks
    layout = Layout.of(tasks)
    return pool(gram, layout), [tasks[unit] for unit in layout.order]


def _difference(measure: Measure, gram_a: Grams, gram_b: Grams, layout: Layout) -> Kernel:
    """The kernel whose pair mean is the change of a linear measure."""
    (a,), (b,) = measure.kernels(gram_a, layout), measure.kernels(gram_b, layout)
    return Kernel(b.values - a.values, None if a.own is None or b.own is None else b.own - a.own)


def _fall(gram: Grams, aggregate: Aggregate | str, layout: Layout, weights: Array, level: float) -> PairMeans:
    """Delta, self pairs left out: what every verdict is about."""
    (kernel,) = Measure("delta", aggregate=aggregate).kernels(gram, layout)
    return resample_pair_means(kernel, weights, layout, Pairs.LEAVE_ONE_OUT, level)


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
    reduce: Reduce | str = Reduce.MEAN_OF_RATIOS,
    aggregate: Aggregate | str = Aggregate.SUM,
    splits: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> SplitHalfNull:
    """The interference between two random halves of each task's own units.

    With pairs "same-example" it is the mean pair cosine within the task, which is not 1. A task without a gradient is
    NaN.

    Raises:
        ScopeError: If a task has fewer than 4 units: each half needs 2.
    """
    _check_level(level)
    measure, layout = Measure("interference", pairs, reduce, aggregate), Layout.of(tasks)
    if layout.counts.min() < 4:
        least = layout.tasks[int(layout.counts.argmin())]
        raise ScopeError(f"a split-half null needs 4 units a task, but {least!r} has {layout.counts.min()}")
    rng, blocks = np.random.default_rng(seed), list(blocks_of(gram, layout))
    bounds = np.full((3, len(layout.tasks)), np.nan)
    for index, (task, count) in enumerate(zip(layout.slices, layout.counts, strict=True)):
        halves = rng.permuted(np.tile(np.arange(count) < count // 2, (splits, 1)), axis=1)
        twice = [np.tile(block[task, task], (2, 2)) for block in blocks]  # the same units as two tasks
        if any(block.any() for block in twice):
            weights = np.concatenate([halves, ~halves], axis=1).astype(np.float64)
            null = estimate(measure, twice, ["half"] * count + ["other half"] * count, weights)[:, 0, 1]
            bounds[:, index] = null.mean(), *interval(null, level)
    return SplitHalfNull(layout.tasks, *bounds)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"level is {level}, but must lie between 0 and 1 (0.95 is usual)")
