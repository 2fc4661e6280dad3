"""Health: how far the ratios under I, and a task's mean gradient, may be trusted. Public as names of `metrics`."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interference.statistics.carriers import effective_units, squared_norms
from interference.statistics.estimand import Aggregate, Average, Estimand
from interference.statistics.layout import Array, Grams, Layout, Pairs, layout_of
from interference.statistics.pairs import Kernel, pair_means, unit_means

Groups = Sequence[Hashable] | None


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
    """How far the ratios under every cell of I may be trusted.

    Args:
        gram: [units, units] or [blocks, units, units], of loss gradients (nats per token, squared).
        tasks: The task of every unit.
        pairs: Which pairs of units count, as in `metrics.interference`.
        aggregate: "sum" (blocks are one theta) or "mean" (the mean of the blocks' health).
        groups: A label of every unit, the same for units that are not independent; None where all units
            of a task are independent; see `metrics.interference`.

    Returns:
        Shares, each [tasks i, tasks j].

    Raises:
        ConfigError: If a setting is not one of the allowed values.
        ScopeError: If a task has fewer than 2 units or groups, or `groups` does not have one label per unit.
        MeasurementError: If the Gram has the wrong shape, is not finite, or is zero throughout.

    Example:
        >>> import numpy as np
        >>> g = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [-1.0, 1.0]])
        >>> ratio_health(g @ g.T, ["a", "a", "b", "b"]).leverage.tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    estimand, layout = Estimand("interference", pairs=pairs, aggregate=aggregate), layout_of(gram, tasks, groups)
    return health_of(estimand.kernels(gram, layout), layout, estimand.pair_rule)


def health_of(kernels: Iterable[Kernel], layout: Layout, pairs: Pairs) -> RatioHealth:
    """The mean health of the ratios of some kernels.

    Args:
        kernels: One for each block, or one for their sum.
        layout: How their units are ordered and grouped.
        pairs: Which pairs of units count.

    Returns:
        Shares, each [tasks i, tasks j].
    """
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
    """What every task's gradients say beside their noise, over the sum of the blocks.

    Args:
        gram: [units, units] or [blocks, units, units], of loss gradients (nats per token, squared).
        tasks: The task of every unit.
        groups: A label of every unit, the same for units that are not independent; None where all units
            of a task are independent; see `metrics.interference`.

    Returns:
        Arrays [tasks], in the order in which tasks first appear.

    Raises:
        ScopeError: If a task has fewer than 2 units or groups, or `groups` does not have one label per unit.
        MeasurementError: If the Gram has the wrong shape, is not finite, or is zero throughout.

    Example:
        >>> import numpy as np
        >>> g = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [-1.0, 1.0]])
        >>> signal(g @ g.T, ["a", "a", "b", "b"]).squared_norm.tolist()
        [1.0, 2.0]
    """
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
