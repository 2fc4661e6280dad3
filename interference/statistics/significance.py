"""What may be concluded from a mean over pairs: its variance, its p-value, its verdict. Formulas, no resampling."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from interference.statistics.groups import Cells, Codes
from interference.statistics.layout import Array, Layout, Pairs
from interference.statistics.pairs import Kernel


class Verdict(StrEnum):
    """What a cell (i, j) of a table says about Delta_j L_i."""

    CONFLICT = "conflict"
    SYNERGY = "synergy"
    UNCLEAR = "unclear"
    NO_SIGNAL = "no-signal"
    CARRIED = "carried"
    SELF = "self"


LEAST = 4
"""Groups of a task (or units, where it has no groups) that an analysis of variance within it takes."""
NOT_JUDGED = (Verdict.NO_SIGNAL.value, Verdict.CARRIED.value)
"""What stands in a row in place of verdicts."""


class Change(StrEnum):
    """What a cell of a comparison says about run b beside run a."""

    LOWER = "lower"
    HIGHER = "higher"
    UNCLEAR = "unclear"


def pair_mean_variance(kernel: Kernel, layout: Layout, pairs: Pairs) -> tuple[Array, Array]:
    """Variance of every cell of `pair_means` under a new draw of units, and its degrees of freedom, both [i, j].

    A mean over pairs varies for three reasons: which units of i were drawn, which of j, and how each two happen to fit
    (the Hoeffding decomposition k[u, v] = theta + alpha_u + beta_v + epsilon_uv). With n units of i and m of j,

        Var = var(beta) / n + var(alpha) / m + var(epsilon) / (n m),

    the components estimated as in a two-way analysis of variance: the scatter of row and column means holds a share of
    var(epsilon), which is taken out, and a component below 0 counts as 0. The diagonal is a U-statistic of the
    symmetrised kernel, Var = 4 var(alpha) / n + 2 var(epsilon) / (n (n - 1)); it needs `LEAST` units and is NaN below.
    Degrees of freedom are Satterthwaite's. Whether self pairs or partners are dropped changes the variance by a share
    of 1 / units, which is not followed here.
    Where units have groups, the analysis is of groups (`_of_groups`).
    """
    return added(*variance_terms(kernel, layout, pairs))


def variance_terms(kernel: Kernel, layout: Layout, pairs: Pairs) -> tuple[Array, Array]:
    """The terms of `pair_mean_variance` [3, i, j] and their degrees of freedom.

    They fall as 1 / groups (or units) of i, as those of j, and as the product of both.
    """
    if layout.groups is not None:
        return _of_groups(kernel, layout, pairs)
    parts, freedom = _two_way(kernel.values, layout)
    for i, task in enumerate(layout.slices):
        if pairs is Pairs.SAME_EXAMPLE and kernel.own is not None:
            own = kernel.own[task]
            parts[:, i, i], freedom[:, i, i] = (own.var(ddof=1) / len(own), 0, 0), len(own) - 1
        else:
            parts[:, i, i], freedom[:, i, i] = _one_way(kernel.values[task, task])
    return parts, freedom


def added(parts: Array, freedom: Array) -> tuple[Array, Array]:
    """The sum of the terms [3, i, j] of a variance, and Satterthwaite's degrees of freedom."""
    variance = parts.sum(axis=0)
    spread = (parts**2 / freedom).sum(axis=0)
    degrees = np.divide(variance**2, spread, out=np.ones_like(variance), where=spread > 0)
    return variance, degrees


def _of_groups(kernel: Kernel, layout: Layout, pairs: Pairs) -> tuple[Array, Array]:
    """The terms of the variance [3, i, j] where units have groups, and their degrees of freedom.

    With k[a, b] the mean over the units of groups a and b, and w the units of a group relative to the task's mean, a
    mean over pairs of units is sum w_a w_b k[a, b] / sum w_a w_b. Its error is that of the mean of

        h[a, b] = w_a w_b (k[a, b] - value),

    to first order, and groups are drawn independently. So the analysis of variance is that of h: two-way where the
    tasks share no group; where they do, that of a U-statistic over the groups of both, in which a group that a task
    lacks weighs 0 there. It holds what a group does to both tasks at once. Pairs of one group are left out.
    """
    cells = layout.cells
    weight = cells.sizes * np.repeat(cells.counts / layout.counts, cells.counts)
    counted = np.outer(weight, weight) * (cells.label[:, None] != cells.label)
    values = cells.averaged(kernel.values.astype(np.float64, copy=False))
    total, of_task = (_summed(_summed(array, cells, 0), cells, 1) for array in (values * counted, counted))
    mean = np.divide(total, of_task, out=np.zeros_like(total), where=of_task > 0)
    task = np.repeat(np.arange(len(cells.counts)), cells.counts)
    centred = counted * (values - mean[np.ix_(task, task)])
    parts, freedom = _two_way(centred, cells)
    for (i, j), places in cells.related.items():
        parts[:, i, j], freedom[:, i, j] = _shared(centred, cells, i, j, places)
        if i == j and pairs is Pairs.SAME_EXAMPLE and kernel.own is not None:
            own = cells.averaged(kernel.own)[cells.of_task(i)]
            share = weight[cells.of_task(i)]
            scatter = share * (own - (share * own).mean())
            parts[:, i, i] = (scatter**2).sum() / (len(own) - 1) / len(own), 0, 0
            freedom[:, i, i] = len(own) - 1
    return parts, freedom


def _summed(array: Array, cells: Cells, axis: int) -> Array:
    """Sums over the cells of every task along an axis."""
    found: Array = np.add.reduceat(array, cells.starts, axis=axis)
    return found


def _shared(centred: Array, cells: Cells, i: int, j: int, places: Codes) -> tuple[Array, Array]:
    """The terms of the variance, and their degrees of freedom, of tasks i and j that share groups."""
    m, n = cells.counts[j], cells.counts[i]
    count = places.max() + 1
    whole = np.zeros((count, count))
    whole[np.ix_(places[:m], places[m:])] = centred[cells.of_task(j), cells.of_task(i)] * (count / m) * (count / n)
    parts, freedom = _one_way(whole)
    freedom[0] = min(m, n) - 1
    return parts, freedom


def _two_way(values: Array, layout: Layout | Cells) -> tuple[Array, Array]:
    """The three terms of the variance of a mean over pairs of two tasks, and their degrees of freedom: [3, i, j]."""

    def blocks(array: Array, axis: int) -> Array:
        return np.add.reduceat(array, layout.starts, axis=axis)

    m, n = layout.counts[:, None].astype(np.float64), layout.counts[None, :].astype(np.float64)
    values = values.astype(np.float64, copy=False)
    by_affected = blocks(values, 0) / m  # [j, v]
    by_stepped = blocks(values, 1) / n  # [u, i]
    mean = blocks(by_affected, 1) / n  # [j, i], and so below
    square, affected, stepped = blocks(blocks(values**2, 0), 1), blocks(by_affected**2, 1), blocks(by_stepped**2, 0)
    epsilon = np.maximum(square - m * affected - n * stepped + n * m * mean**2, 0) / ((n - 1) * (m - 1))
    beta = (affected - n * mean**2) / (n - 1) - epsilon / m
    alpha = (stepped - m * mean**2) / (m - 1) - epsilon / n
    parts = np.stack([np.maximum(beta, 0) / n, np.maximum(alpha, 0) / m, epsilon / (n * m)])
    freedom = np.stack(np.broadcast_arrays(n - 1, m - 1, (n - 1) * (m - 1)))
    return parts.transpose(0, 2, 1), freedom.transpose(0, 2, 1).copy()


def _one_way(values: Array) -> tuple[Array, Array]:
    """The terms of the variance of a mean over pairs within one task [units, units], and their degrees of freedom."""
    n = len(values)
    if n < LEAST:
        return np.full(3, np.nan), np.ones(3)
    pairs = (values + values.T).astype(np.float64) / 2
    np.fill_diagonal(pairs, 0)
    mean = pairs.sum() / (n * (n - 1))
    effect = (pairs.sum(axis=1) - (n - 1) * mean) / (n - 2)  # alpha_u, least squares
    residual = ((pairs**2).sum() - n * (n - 1) * mean**2) / 2 - (n - 2) * (effect**2).sum()
    epsilon = max(residual, 0) / (n * (n - 3) / 2)
    alpha = max((effect**2).sum() / (n - 1) - epsilon / (n - 2), 0)
    return np.array([4 * alpha / n, 0, 2 * epsilon / (n * (n - 1))]), np.array([n - 1, 1, n * (n - 3) / 2])


def p_value(value: Array, variance: Array, degrees: Array) -> Array:
    """Two-sided p of value = 0 by Student's t; NaN where the variance is not known.

    Without any scatter p is 1 for a value of 0 and else 0. A bootstrap of B resamples cannot give a p below
    2 / (B + 1), which no correction over many cells survives; the studentised value has no such floor.
    """
    scattered = ~(variance <= 0)
    error = np.sqrt(np.where(scattered, variance, 1))
    p: Array = np.where(scattered, 2 * stats.t.sf(np.abs(value) / error, degrees), np.where(value == 0, 1.0, 0.0))
    return p


def interval_p_value(value: Array, low: Array, high: Array, level: float, degrees: Array) -> Array:
    """Two-sided p of value = 0 that agrees with an interval: the end nearer 0 is t's quantile away from the value."""
    reach = np.where(value > 0, value - low, high - value)
    reach = np.where(reach > 0, reach, np.nan)
    p: Array = 2 * stats.t.sf(stats.t.ppf((1 + level) / 2, degrees) * np.abs(value) / reach, degrees)
    return p


def benjamini_hochberg(p: Array) -> Array:
    """Adjusted p-values (Benjamini and Hochberg 1995) over the entries that are not NaN; NaN stays."""
    q = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        q[tested] = stats.false_discovery_control(p[tested])
    return q


def verdicts(
    low: Array, high: Array, own_low: Array, q: Array, level: float, carried: NDArray[np.bool_]
) -> NDArray[np.str_]:
    """The verdict of every cell [i, j] from Delta's interval, its own low end [i], and the adjusted p-value.

    Rows of tasks that a few units carry [i] say so instead, unless they have no signal.
    """
    certain = q <= 1 - level
    verdict = np.full(low.shape, Verdict.UNCLEAR.value, dtype="<U9")
    verdict[certain & (high < 0)] = Verdict.CONFLICT.value
    verdict[certain & (low > 0)] = Verdict.SYNERGY.value
    verdict[carried] = Verdict.CARRIED.value
    verdict[~(own_low > 0)] = Verdict.NO_SIGNAL.value
    np.fill_diagonal(verdict, Verdict.SELF.value)
    return verdict


def at_odds(
    value: Array, low: Array, high: Array, verdict: NDArray[np.str_], even: float | None = 0.0, helps: int = 1
) -> NDArray[np.str_]:
    """How the value of a cell contradicts the verdict of the cell, which may be about another number.

    Args:
        value: [cells].
        low: Lower end of its interval.
        high: Upper end.
        verdict: Of `Verdict` or `Change`.
        even: The value that neither helps nor hurts; None where there is none, and so no contradiction.
        helps: 1 where values above `even` mean help, -1 where they mean harm.

    Returns:
        "sign" where a conflict ("lower") lies on the side of help, or a synergy ("higher") on that of harm; "interval"
        where the side is right but the interval holds `even`; "" for every other cell.
    """
    found = np.full(np.shape(value), "", dtype="<U8")
    if even is None:
        return found
    better = np.isin(verdict, [Verdict.SYNERGY, Change.HIGHER])
    worse = np.isin(verdict, [Verdict.CONFLICT, Change.LOWER])
    found[(better | worse) & (low <= even) & (high >= even)] = "interval"
    side = helps * (value - even)
    found[(better & (side < 0)) | (worse & (side > 0))] = "sign"
    return found


def changes(low: Array, high: Array, q: Array, level: float) -> NDArray[np.str_]:
    """The verdict of every cell of a comparison from the difference's interval and its adjusted p-value."""
    certain = q <= 1 - level
    verdict = np.full(low.shape, Change.UNCLEAR.value, dtype="<U7")
    verdict[certain & (high < 0)] = Change.LOWER.value
    verdict[certain & (low > 0)] = Change.HIGHER.value
    return verdict
