"""Gram matrices to numbers: Delta, the interference I and their companions, as [tasks, tasks] matrices.

Rows are the affected task i (whose loss is read), columns the stepped task j (whose gradient is followed); tasks
come in the order in which they first appear. A Gram is K[u, v] = <g_u, g_v>, [units, units], or a stack (or sequence)
of them, [blocks, units, units], which `aggregate` turns into one matrix. How sure one may be of a number is
`uncertainty.py`'s.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interference.statistics.carriers import effective_units, squared_norms
from interference.statistics.estimand import METRICS, REDUCE, Aggregate, Average, Estimand, Norms, Reduce, estimate
from interference.statistics.layout import Array, Grams, Layout, Pairs, layout_of
from interference.statistics.pairs import Kernel, pair_means, unit_means

Groups = Sequence[Hashable] | None

__all__ = [
    "METRICS",
    "Aggregate",
    "Norms",
    "Pairs",
    "RatioHealth",
    "Reduce",
    "Signal",
    "conflict_rate",
    "cosine",
    "curvature",
    "delta",
    "health_of",
    "interference",
    "magnitude_similarity",
    "pair_cosine",
    "ratio_health",
    "signal",
]


def interference(
    gram: Grams,
    tasks: Sequence[str],
    pairs: Pairs | str = Pairs.LEAVE_ONE_OUT,
    reduce: Reduce | str = REDUCE,
    aggregate: Aggregate | str = Aggregate.SUM,
    groups: Groups = None,
) -> Array:
    """The task interference I, [tasks i, tasks j], with exactly 1 on the diagonal.

    How much of the fall of i's loss that its own step brings is brought by a step of j. Below 0, j undoes i's progress.
    `I_ij = mean_v Delta_j L_i(v) / mean_v Delta_i L_i(v)` over units v of task i. Eq. 3 of Shen et al. 2024 (after Zhu
    et al. 2022), the mean over v of the ratios, is `reduce="mean-of-ratios"`. The length lambda of the step cancels.

    Args:
        gram: [units, units] or [blocks, units, units], of loss gradients (nats per token, squared).
        tasks: The task of every unit.
        pairs: "leave-one-out" (a unit never steps on itself), "uni-perceiver" (the unit of the same index is dropped
            for every pair of tasks, as in the original notebook; needs equally many units), "all" (self pairs count),
            "same-example" (the denominator is the unit's own step, sqrt(K[v, v]): the mean pair cosine by Eq. 3).
        reduce: "ratio-of-means", "mean-of-ratios" (Eq. 3) or "median-of-ratios" over v.
        aggregate: "sum" (blocks are one theta) or "mean" (mean of the blocks' I; all-zero blocks do not count).
        groups: A label of every unit, the same for units that are not independent, within a task or between two: pairs
            of them are left out as a unit and itself are. So are copies of one example, told by their gradients: in
            two tasks always, within a task if there are labels. None where all units of a task are independent.

    Returns:
        [tasks, tasks]. A unit whose own Delta is exactly 0 has no ratio and does not count; a row without any is NaN.

    Raises:
        ConfigError: If a setting is not one of the allowed values.
        ScopeError: If a task has fewer than 2 units or groups, or unequally many units for "uni-perceiver", or the
            labels of `groups` are not as many as the units.
        MeasurementError: If the Gram has the wrong shape, is not finite, or is zero throughout.

    Example:
        >>> import numpy as np
        >>> g = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [-1.0, 1.0]])
        >>> interference(g @ g.T, ["a", "a", "b", "b"]).round(3).tolist()
        [[1.0, -0.707], [-0.707, 1.0]]
    """
    return estimate(
        Estimand("interference", pairs=pairs, reduce=reduce, aggregate=aggregate), gram, tasks, groups=groups
    )[0]


def delta(
    gram: Grams,
    tasks: Sequence[str],
    pairs: Pairs | str = Pairs.LEAVE_ONE_OUT,
    aggregate: Aggregate | str = Aggregate.SUM,
    step: float = 1.0,
    groups: Groups = None,
) -> Array:
    """Delta_j L_i, [tasks i, tasks j]: the first-order fall of i's loss (nats per token) when j takes a step.

    `Delta_j L_i = step * mean_{u, v} K[u, v] / sqrt(K[u, u])`, section 3.2 of Shen et al. 2024, with `step` its lambda:
    the length of the step along a unit's normalised gradient. Positive helps. A unit of zero gradient takes a step of
    length zero.
    """
    return estimate(Estimand("delta", pairs=pairs, aggregate=aggregate, step=step), gram, tasks, groups=groups)[0]


def cosine(
    gram: Grams,
    tasks: Sequence[str],
    norms: Norms | str = Norms.PLAIN,
    aggregate: Aggregate | str = Aggregate.SUM,
    groups: Groups = None,
) -> Array:
    """Cosine of the tasks' mean gradients, [tasks i, tasks j], symmetric, 1 on the diagonal.

    With `norms="plain"` this is the cosine of the means as measured. Noise lengthens those means but not their inner
    product, so it lies nearer 0 than the truth, by sqrt(r_i r_j) where r_i is `Signal.reliability`: it may hide a
    conflict, never invent one, and it depends on the number of units. `norms="unbiased"` leaves self pairs out of the
    norms as well: comparable between runs of different size, but no longer within [-1, 1], and NaN for a task whose
    squared norm is not above 0. Plain is the default because the other has the heavy tails of a ratio of noise.
    """
    return estimate(Estimand("cosine", norms=norms, aggregate=aggregate), gram, tasks, groups=groups)[0]


def pair_cosine(
    gram: Grams, tasks: Sequence[str], aggregate: Aggregate | str = Aggregate.SUM, groups: Groups = None
) -> Array:
    """Mean cosine of a unit of i and a unit of j, [tasks, tasks], self pairs left out.

    The diagonal is how much a task's units agree among themselves. The cosine with a zero gradient counts as 0.
    """
    return estimate(Estimand("pair_cosine", aggregate=aggregate), gram, tasks, groups=groups)[0]


def conflict_rate(
    gram: Grams, tasks: Sequence[str], aggregate: Aggregate | str = Aggregate.SUM, groups: Groups = None
) -> Array:
    """Share of unit pairs (u of j, v of i) with K[u, v] < 0, [tasks, tasks], self pairs left out; noise gives 0.5."""
    return estimate(Estimand("conflict_rate", aggregate=aggregate), gram, tasks, groups=groups)[0]


def magnitude_similarity(
    gram: Grams,
    tasks: Sequence[str],
    norms: Norms | str = Norms.PLAIN,
    aggregate: Aggregate | str = Aggregate.SUM,
    groups: Groups = None,
) -> Array:
    """Gradient magnitude similarity 2|a||b| / (|a|^2 + |b|^2) of the mean gradients (Yu et al. 2020): 1 if equal.

    `norms` as in `cosine`: plain norms are lengthened by noise, so two weak tasks look alike.
    """
    return estimate(Estimand("magnitude_similarity", norms=norms, aggregate=aggregate), gram, tasks, groups=groups)[0]


def curvature(
    gram: Grams,
    tasks: Sequence[str],
    norms: Norms | str = Norms.PLAIN,
    aggregate: Aggregate | str = Aggregate.SUM,
    groups: Groups = None,
) -> Array:
    """PCGrad's curvature bounding measure of the mean gradients, [tasks, tasks], 0 on the diagonal.

    `xi(a, b) = (1 - cos(a, b)^2) |a - b|^2 / |a + b|^2` (Yu et al. 2020). Large where the two gradients differ and
    cancel; NaN where |a + b| is 0. `norms` as in `cosine`.
    """
    return estimate(Estimand("curvature", norms=norms, aggregate=aggregate), gram, tasks, groups=groups)[0]


@dataclass(frozen=True)
class RatioHealth:
    """How far the ratios under I may be trusted, each [tasks i, tasks j].

    Attributes:
        nonpositive: Share of units v of task i with Delta_i L_i(v) <= 0, whose ratio points the wrong way.
        leverage: max_v |ratio| / sum_v |ratio|: 1 / units where all agree, near 1 where one unit is the whole cell.

    Where units have groups, both are of groups, with the mean Delta of the units of each.
    """

    nonpositive: Array
    leverage: Array


def ratio_health(
    gram: Grams,
    tasks: Sequence[str],
    pairs: Pairs | str = Pairs.LEAVE_ONE_OUT,
    aggregate: Aggregate | str = Aggregate.SUM,
    groups: Groups = None,
) -> RatioHealth:
    """Health of every cell's ratios; with `aggregate="mean"` the mean of the blocks' health."""
    estimand, layout = Estimand("interference", pairs=pairs, aggregate=aggregate), layout_of(gram, tasks, groups)
    return health_of(estimand.kernels(gram, layout), layout, estimand.pair_rule)


def health_of(kernels: Iterable[Kernel], layout: Layout, pairs: Pairs) -> RatioHealth:
    """The mean health of the ratios of some kernels, under a rule of pairs."""
    ones = np.ones((1, len(layout.order)))
    cells, every = layout.cells, range(len(layout.tasks))
    nonpositive, leverage = Average(), Average()
    for kernel in kernels:
        units = unit_means(kernel, ones, layout, pairs)[0]  # [tasks j, units v]
        if layout.groups is not None:
            units = (cells.averaging @ units.T).T
        rows = ((units[:, v], units[i, v], cells.sizes[v]) for i, v in enumerate(map(cells.of_task, every)))
        shares, worst = zip(*(_row_health(*row) for row in rows), strict=True)
        nonpositive.add(np.repeat(np.array(shares)[:, None], len(layout.tasks), axis=1))
        leverage.add(np.stack(worst))
    return RatioHealth(nonpositive.mean(), leverage.mean())


def _row_health(numerators: Array, own: Array, units: NDArray[np.intp]) -> tuple[float, Array]:
    """Of the cells of an affected task: the share without a positive denominator, and the leverage [tasks j]."""
    size = np.abs(np.divide(numerators, own, out=np.zeros_like(numerators), where=own != 0)) * units
    total = size.sum(axis=1)
    return float((own <= 0).mean()), np.divide(
        size.max(axis=1), total, out=np.full_like(total, np.nan), where=total > 0
    )


@dataclass(frozen=True)
class Signal:
    """What a task's gradients say beside their noise; every array is [tasks].

    Attributes:
        tasks: Their names.
        squared_norm: Unbiased |mean g_i|^2, the mean of K over pairs u != v of different groups; may be below 0 where
            there is no signal.
        unit_noise: Expected squared distance of one unit's gradient from the mean: mean K[u, u] - squared_norm.
        snr: squared_norm / (unit_noise / units): signal to noise of the measured mean gradient, in power. Where units
            have groups, squared_norm / (|measured mean|^2 - squared_norm), which is the same where each has one.
        reliability: squared_norm / |measured mean|^2, at most 1: what `cosine` is attenuated by.
        balance: sum_j <mean g_i, mean g_j> / |mean g_i|^2. Near 0 the summed loss is stationary for task i, and its
            off-diagonal interference must then average below 0 whatever the tasks are; NaN where squared_norm <= 0.
        effective: Effective number of units, or of groups where units have them (`carriers.effective_units`).
    """

    tasks: tuple[str, ...]
    squared_norm: Array
    unit_noise: Array
    snr: Array
    reliability: Array
    balance: Array
    effective: Array


def signal(gram: Grams, tasks: Sequence[str], groups: Groups = None) -> Signal:
    """The signal of every task, over the sum of the blocks."""
    layout = layout_of(gram, tasks, groups)
    (kernel,) = Estimand("cosine").kernels(gram, layout)
    ones = np.ones((1, len(tasks)))
    inner = pair_means(kernel, ones, layout, Pairs.LEAVE_ONE_OUT)[0]
    plain = np.diagonal(pair_means(kernel, ones, layout, Pairs.ALL)[0])
    squared_norm = np.diagonal(inner).copy()
    unit_noise = np.add.reduceat(np.diagonal(kernel.values), layout.starts) / layout.counts - squared_norm
    with np.errstate(divide="ignore", invalid="ignore"):  # a task without noise has infinite snr, without gradient NaN
        snr = squared_norm / (unit_noise / layout.counts if layout.groups is None else plain - squared_norm)
        reliability = squared_norm / plain
        balance = np.where(squared_norm > 0, inner.sum(axis=1) / squared_norm, np.nan)
    effective = effective_units(squared_norms(kernel.values, layout), layout.cells)
    return Signal(layout.tasks, squared_norm, unit_noise, snr, reliability, balance, effective)
