"""Falls: how far every task's loss fell along branches of single tasks, with intervals over seeds and examples.

A fall is x[s, j, v], by how much the loss of example v is lower after the branch along task j with seed s. Its mean
over the seeds and the examples of task i is Delta_ij; I_ij = Delta_ij / Delta_ii is the interference at that horizon.

A mean over seeds and examples varies because of both and of how they fit. With S seeds, n groups of examples and h the
contribution of a group,

    Var = var(groups) / n + var(seeds) / S + var(rest) / (n S),

as in a two-way analysis of variance. Resamples draw seeds, for every branch by themselves, and groups, the same for all
branches; they are centred and scaled to that standard error, times t / z at its degrees of freedom (see `bootstrap`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from interference.errors import ScopeError
from interference.statistics.bootstrap import check_level, drawn_units
from interference.statistics.intervals import around, interval
from interference.statistics.layout import Array, Layout
from interference.statistics.significance import added, benjamini_hochberg, p_value, verdicts

METRICS = ("interference", "delta")
"""What can be asked of falls."""


@dataclass(frozen=True)
class Falls:
    """Mean falls and what is known about their error; arrays are [tasks i, tasks j].

    Attributes:
        tasks: names.
        value: Delta_ij, nats per token.
        variance: of the value under a new draw of seeds and examples.
        degrees: Student's degrees of freedom of that variance.
        draws: [replicates, i, j], resamples.
        level: of the intervals.
    """

    tasks: tuple[str, ...]
    value: Array
    variance: Array
    degrees: Array
    draws: Array
    level: float

    def cells(self, metric: str, gated: bool = True) -> dict[str, NDArray[np.generic]]:
        """The columns value, low, high, p, q and verdict of a metric, each [i, j].

        p, q and verdict are of Delta_ij whatever the metric, as in a table of the first-order score. `gated`: there are
        none in the row of a task whose own fall is not above 0, as interference is relative to that.

        Raises:
            ScopeError: if there is no such metric.
        """
        if metric not in METRICS:
            raise ScopeError(f"a lookahead has no metric {metric!r}; it has {', '.join(METRICS)}")
        low, high = interval(self.draws, self.level)
        own_low = np.diagonal(low) if gated else np.full(len(self.tasks), np.inf)
        p = p_value(self.value, self.variance, self.degrees)
        off = ~np.eye(len(self.tasks), dtype=bool)
        q = benjamini_hochberg(np.where((own_low > 0)[:, None] & off, p, np.nan))
        verdict = verdicts(low, high, own_low, q, self.level, np.zeros(len(self.tasks), dtype=bool))
        value = self.value
        if metric == "interference":
            value = ratios(self.value)
            low, high = around(value, interval(ratios(self.draws), self.level))
        return {"value": value, "low": low, "high": high, "p": p, "q": q, "verdict": verdict}


def falls(
    found: Array,
    tasks: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Falls:
    """The mean falls of every task along every branch.

    Args:
        found: [seeds, tasks j, examples], tasks in the order in which they first appear in `tasks`.
        tasks: the task of every example.
        groups: a label of every example, the same for those that are not independent; None where all are.
        replicates: resamples.
        level: of the intervals.
        seed: of the resamples.

    Raises:
        ScopeError: if a task has fewer than two examples or groups, there are fewer than two seeds, or the falls are
            not one per seed, task and example.
        ConfigError: if the level or the number of resamples cannot be used.
    """
    check_level(level)
    layout = Layout.of(tasks, groups)
    seeds, shape = len(found), (len(layout.tasks), len(tasks))
    if found.shape[1:] != shape or seeds < 2:
        raise ScopeError(f"the falls are {found.shape}, but must be at least 2 seeds x {shape[0]} x {shape[1]}")
    ordered = layout.group(found, (2,))
    value = _by_task(ordered.mean(axis=0), layout).T / layout.counts[:, None]
    variance, degrees = _variance(ordered, value, layout)
    weights = drawn_units(layout, replicates, seed)
    draws = _draws(ordered, layout, weights, np.random.default_rng([seed, seeds]))
    scale = np.sqrt(variance) * _factor(degrees, level) / np.where((spread := draws.std(axis=0)) > 0, spread, np.inf)
    return Falls(layout.tasks, value, variance, degrees, (draws - draws.mean(axis=0)) * scale + value, level)


def ratios(means: Array) -> Array:
    """Delta_ij / Delta_ii of means [..., i, j]; NaN where Delta_ii is 0."""
    own = np.diagonal(means, axis1=-2, axis2=-1)[..., None]
    return np.divide(means, own, out=np.full(means.shape, np.nan), where=np.broadcast_to(own != 0, means.shape))


def _by_task(values: Array, layout: Layout) -> Array:
    """Sums over the examples of every task, along the last axis."""
    found: Array = np.add.reduceat(values, layout.starts, axis=-1)
    return found


def _draws(found: Array, layout: Layout, weights: Array, rng: np.random.Generator) -> Array:
    """Plain resamples [replicates, i, j]: seeds are drawn for each branch by themselves, groups for all together."""
    seeds, replicates = len(found), len(weights)
    count = _by_task(weights, layout)  # [replicates, i]
    drawn = np.empty((replicates, len(layout.tasks), len(layout.tasks)))
    for j in range(len(layout.tasks)):
        times = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=replicates) / seeds
        drawn[:, :, j] = _by_task(weights * (times @ found[:, j]), layout) / count
    return drawn


def _variance(found: Array, value: Array, layout: Layout) -> tuple[Array, Array]:
    """Variance of the mean falls and its degrees of freedom, both [i, j], by a two-way analysis of variance."""
    tasks, cells = len(layout.tasks), layout.cells
    parts, freedom = np.zeros((3, tasks, tasks)), np.ones((3, tasks, tasks))
    for i in range(tasks):
        own, groups = layout.slices[i], cells.counts[i]
        member = cells.of_unit[own] - cells.starts[i]
        centred = found[:, :, own] - value[i][None, :, None]
        h = centred @ np.eye(groups)[member] * groups / layout.counts[i]  # its mean over groups is that over examples
        parts[:, i], freedom[:, i] = _two_way(h)
    return added(parts, freedom)


def _two_way(h: Array) -> tuple[Array, Array]:
    """The terms of the variance of the mean of h [seeds, j, groups] and their degrees of freedom: [3, j]."""
    seeds, _, groups = h.shape
    mean, by_group, by_seed = h.mean(axis=(0, 2)), h.mean(axis=0), h.mean(axis=2)
    rest = h - by_group[None] - by_seed[:, :, None] + mean[None, :, None]
    epsilon = (rest**2).sum(axis=(0, 2)) / ((seeds - 1) * (groups - 1))
    of_groups = ((by_group - mean[:, None]) ** 2).sum(axis=1) / (groups - 1) - epsilon / seeds
    of_seeds = ((by_seed - mean) ** 2).sum(axis=0) / (seeds - 1) - epsilon / groups
    parts = [np.maximum(of_groups, 0) / groups, np.maximum(of_seeds, 0) / seeds, epsilon / (groups * seeds)]
    freedom = [groups - 1, seeds - 1, (seeds - 1) * (groups - 1)]
    return np.stack(parts), np.broadcast_to(np.array(freedom, dtype=float)[:, None], (3, len(mean)))


def _factor(degrees: Array, level: float) -> Array:
    """Student's quantile relative to the normal's."""
    tail = (1 + level) / 2
    found: Array = stats.t.ppf(tail, degrees) / stats.norm.ppf(tail)
    return found
