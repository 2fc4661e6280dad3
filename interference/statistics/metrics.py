"""Gram matrices to numbers: Delta, the interference I and their companions, as [tasks, tasks] matrices.

Rows are the affected task i (whose loss is read), columns the stepped task j (whose gradient is followed); tasks
come in the order in which they first appear. A Gram is K[u, v] = <g_u, g_v>, [units, units], or a stack (or sequence)
of them, [blocks, units, units], which `aggregate` turns into one matrix. Steps that are not along the gradient come as
`Preconditioned`: <g_u, P g_v> with the lengths |P g_u|, as `Run.theta(space="adam")` returns them. How certain a number
is: `uncertainty.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from interference.statistics.estimand import METRICS, REDUCE, Aggregate, Estimand, Norms, Reduce, estimate
from interference.statistics.health import Groups, RatioHealth, Signal, health_of, ratio_health, signal
from interference.statistics.layout import Array, Grams, Pairs, Preconditioned

__all__ = [
    "METRICS",
    "Aggregate",
    "Norms",
    "Pairs",
    "Preconditioned",
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

    The fall of i's loss under a step of j, relative to that under a step of its own. Below 0, j undoes i's progress.
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
        groups: A label of every unit, the same for units that are not independent, within a task or between two. Pairs
            of such units are left out, as a unit and itself are. So are copies of one example, recognised by their
            gradients: between two tasks always, within a task if there are labels. None if all units of a task are
            independent.

    Returns:
        [tasks, tasks]. A unit whose own Delta is exactly 0 has no ratio and does not count; a row without any is NaN.

    Raises:
        ConfigError: If a setting is not one of the allowed values.
        ScopeError: If a task has fewer than 2 units or groups, or unequally many units for "uni-perceiver", or
            `groups` does not have one label per unit.
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
    """Delta_j L_i: the first-order fall of i's loss when j takes a step. Positive helps.

    `Delta_j L_i = step * mean_{u, v} K[u, v] / sqrt(K[u, u])`, section 3.2 of Shen et al. 2024, with `step` its lambda.
    A unit of zero gradient takes a step of length zero.

    Args:
        gram: [units, units] or [blocks, units, units], of loss gradients (nats per token, squared).
        tasks: The task of every unit.
        pairs: Which pairs of units count, as in `interference`.
        aggregate: "sum" (blocks are one theta) or "mean" (mean of the blocks' values; all-zero blocks do not count).
        step: Length of the step along a unit's normalised gradient (lambda).
        groups: A label of every unit, the same for units that are not independent; see `interference`. None where all
            units of a task are independent.

    Returns:
        [tasks i, tasks j], nats per token; rows affected, columns stepped.

    Raises:
        ConfigError: If a setting is not one of the allowed values.
        ScopeError: If a task has fewer than 2 units or groups, or `groups` does not have one label per unit.
        MeasurementError: If the Gram has the wrong shape, is not finite, or is zero throughout.

    Example:
        >>> import numpy as np
        >>> g = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [-1.0, 1.0]])
        >>> delta(g @ g.T, ["a", "a", "b", "b"]).round(3).tolist()
        [[1.0, -0.707], [-1.0, 1.414]]
    """
    return estimate(Estimand("delta", pairs=pairs, aggregate=aggregate, step=step), gram, tasks, groups=groups)[0]


def cosine(
    gram: Grams,
    tasks: Sequence[str],
    norms: Norms | str = Norms.PLAIN,
    aggregate: Aggregate | str = Aggregate.SUM,
    groups: Groups = None,
) -> Array:
    """The cosine of the tasks' mean gradients.

    With `norms="plain"` this is the cosine of the means as measured. Noise lengthens those means but not their inner
    product. So the cosine lies nearer 0 than the truth, by sqrt(r_i r_j) where r_i is `Signal.reliability`: it may hide
    a conflict, but never invents one. It depends on the number of units.

    `norms="unbiased"` leaves self pairs out of the norms as well. Runs of different size can then be compared, but
    values may leave [-1, 1], and a task whose squared norm is not above 0 is NaN. Plain is the default because the
    other has the heavy tails of a ratio of noise.

    Args:
        gram: [units, units] or [blocks, units, units], of loss gradients (nats per token, squared).
        tasks: The task of every unit.
        norms: "plain" or "unbiased".
        aggregate: "sum" (blocks are one theta) or "mean" (mean of the blocks' values; all-zero blocks do not count).
        groups: A label of every unit, the same for units that are not independent; see `interference`. None where all
            units of a task are independent.

    Returns:
        [tasks i, tasks j], symmetric, 1 on the diagonal.

    Raises:
        ConfigError: If a setting is not one of the allowed values.
        ScopeError: If a task has fewer than 2 units or groups, or `groups` does not have one label per unit.
        MeasurementError: If the Gram has the wrong shape, is not finite, or is zero throughout.

    Example:
        >>> import numpy as np
        >>> g = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [-1.0, 1.0]])
        >>> cosine(g @ g.T, ["a", "a", "b", "b"]).round(3).tolist()
        [[1.0, -0.707], [-0.707, 1.0]]
    """
    return estimate(Estimand("cosine", norms=norms, aggregate=aggregate), gram, tasks, groups=groups)[0]


def pair_cosine(
    gram: Grams, tasks: Sequence[str], aggregate: Aggregate | str = Aggregate.SUM, groups: Groups = None
) -> Array:
    """The mean cosine of a unit of i and a unit of j, self pairs left out.

    The diagonal is how much a task's units agree among themselves. The cosine with a zero gradient counts as 0.

    Args:
        gram: [units, units] or [blocks, units, units], of loss gradients (nats per token, squared).
        tasks: The task of every unit.
        aggregate: "sum" (blocks are one theta) or "mean" (mean of the blocks' values; all-zero blocks do not count).
        groups: A label of every unit, the same for units that are not independent; see `interference`. None where all
            units of a task are independent.

    Returns:
        [tasks i, tasks j], symmetric, within [-1, 1].

    Raises:
        ConfigError: If a setting is not one of the allowed values.
        ScopeError: If a task has fewer than 2 units or groups, or `groups` does not have one label per unit.
        MeasurementError: If the Gram has the wrong shape, is not finite, or is zero throughout.

    Example:
        >>> import numpy as np
        >>> g = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [-1.0, 1.0]])
        >>> pair_cosine(g @ g.T, ["a", "a", "b", "b"]).round(3).tolist()
        [[1.0, -0.707], [-0.707, 1.0]]
    """
    return estimate(Estimand("pair_cosine", aggregate=aggregate), gram, tasks, groups=groups)[0]


def conflict_rate(
    gram: Grams, tasks: Sequence[str], aggregate: Aggregate | str = Aggregate.SUM, groups: Groups = None
) -> Array:
    """The share of unit pairs (u of j, v of i) whose gradients point apart: K[u, v] < 0. Noise alone gives 0.5.

    Args:
        gram: [units, units] or [blocks, units, units], of loss gradients (nats per token, squared).
        tasks: The task of every unit.
        aggregate: "sum" (blocks are one theta) or "mean" (mean of the blocks' values; all-zero blocks do not count).
        groups: A label of every unit, the same for units that are not independent; see `interference`. None where all
            units of a task are independent.

    Returns:
        [tasks i, tasks j], within [0, 1]; self pairs are left out.

    Raises:
        ConfigError: If a setting is not one of the allowed values.
        ScopeError: If a task has fewer than 2 units or groups, or `groups` does not have one label per unit.
        MeasurementError: If the Gram has the wrong shape, is not finite, or is zero throughout.

    Example:
        >>> import numpy as np
        >>> g = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [-1.0, 1.0]])
        >>> conflict_rate(g @ g.T, ["a", "a", "b", "b"]).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    return estimate(Estimand("conflict_rate", aggregate=aggregate), gram, tasks, groups=groups)[0]


def magnitude_similarity(
    gram: Grams,
    tasks: Sequence[str],
    norms: Norms | str = Norms.PLAIN,
    aggregate: Aggregate | str = Aggregate.SUM,
    groups: Groups = None,
) -> Array:
    """Gradient magnitude similarity 2|a||b| / (|a|^2 + |b|^2) of the mean gradients (Yu et al. 2020): 1 if equal.

    Noise lengthens plain norms, so that two weak tasks look alike.

    Args:
        gram: [units, units] or [blocks, units, units], of loss gradients (nats per token, squared).
        tasks: The task of every unit.
        norms: "plain" (of the mean gradients as measured) or "unbiased" (self pairs left out); see `cosine`.
        aggregate: "sum" (blocks are one theta) or "mean" (mean of the blocks' values; all-zero blocks do not count).
        groups: A label of every unit, the same for units that are not independent; see `interference`. None where all
            units of a task are independent.

    Returns:
        [tasks i, tasks j], symmetric, 1 on the diagonal.

    Raises:
        ConfigError: If a setting is not one of the allowed values.
        ScopeError: If a task has fewer than 2 units or groups, or `groups` does not have one label per unit.
        MeasurementError: If the Gram has the wrong shape, is not finite, or is zero throughout.

    Example:
        >>> import numpy as np
        >>> g = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [-1.0, 1.0]])
        >>> magnitude_similarity(g @ g.T, ["a", "a", "b", "b"]).round(3).tolist()
        [[1.0, 0.943], [0.943, 1.0]]
    """
    return estimate(Estimand("magnitude_similarity", norms=norms, aggregate=aggregate), gram, tasks, groups=groups)[0]


def curvature(
    gram: Grams,
    tasks: Sequence[str],
    norms: Norms | str = Norms.PLAIN,
    aggregate: Aggregate | str = Aggregate.SUM,
    groups: Groups = None,
) -> Array:
    """PCGrad's curvature bounding measure of the mean gradients: large where two gradients differ and cancel.

    `xi(a, b) = (1 - cos(a, b)^2) |a - b|^2 / |a + b|^2` (Yu et al. 2020).

    Args:
        gram: [units, units] or [blocks, units, units], of loss gradients (nats per token, squared).
        tasks: The task of every unit.
        norms: "plain" (of the mean gradients as measured) or "unbiased" (self pairs left out); see `cosine`.
        aggregate: "sum" (blocks are one theta) or "mean" (mean of the blocks' values; all-zero blocks do not count).
        groups: A label of every unit, the same for units that are not independent; see `interference`. None where all
            units of a task are independent.

    Returns:
        [tasks i, tasks j], symmetric, 0 on the diagonal; NaN where |a + b| is 0.

    Raises:
        ConfigError: If a setting is not one of the allowed values.
        ScopeError: If a task has fewer than 2 units or groups, or `groups` does not have one label per unit.
        MeasurementError: If the Gram has the wrong shape, is not finite, or is zero throughout.

    Example:
        >>> import numpy as np
        >>> g = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [-1.0, 1.0]])
        >>> curvature(g @ g.T, ["a", "a", "b", "b"]).round(3).tolist()
        [[0.0, 2.5], [2.5, 0.0]]
    """
    return estimate(Estimand("curvature", norms=norms, aggregate=aggregate), gram, tasks, groups=groups)[0]
