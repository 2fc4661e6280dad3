"""Power: how many groups of each task a verdict needs, by the variance of a pilot. Formulas, no resampling.

The analysis of variance of `significance.py` splits the variance of Delta into terms that fall as 1 / groups of either
task and as the product of both. So the pilot tells the variance at any number of groups, with as many units a group as
it has, and Student's noncentral t the power there.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from interference.errors import ConfigError, ScopeError
from interference.statistics.bootstrap import check_level
from interference.statistics.estimand import Estimand
from interference.statistics.layout import Array, Grams, Layout, Pairs, pool
from interference.statistics.pairs import pair_means
from interference.statistics.significance import LEAST, added, variance_terms

MOST = 1_000_000
"""More groups than this are not counted: their number is infinite."""
EFFECT = -0.1
"""Interference that a plan wishes to find unless it is told another."""
_NORMAL = 2000
"""Degrees of freedom from which Student's t is taken as normal."""


@dataclass(frozen=True)
class Needs:
    """What verdicts need; arrays are [tasks i, tasks j], NaN on the diagonal.

    Attributes:
        tasks: Names, in the order of rows and columns.
        grouped: Whether some units of the pilot share a group; the needs are else of units.
        delta: The Delta_j L_i that is to be told from 0.
        groups: Of each task, so that the cell has its verdict with the power; infinite above `MOST`, NaN where the
            pilot has no signal for i (its own Delta is not above 0 beyond noise).
        unlimited: The same, if each group had any number of units; NaN where no group of the pilot has two.
        size: [tasks] mean units of a group in the pilot.
        intraclass: [tasks] correlation of the gradients of two units of one group; NaN where none has two.
    """

    tasks: tuple[str, ...]
    grouped: bool
    delta: Array
    groups: Array
    unlimited: Array
    size: Array
    intraclass: Array


def needs(
    gram: Grams,
    tasks: Sequence[str],
    effect: float | None = EFFECT,
    *,
    power: float = 0.8,
    level: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> Needs:
    """How many groups of each task every cell needs for its verdict, `conflict` or `synergy`, with some power.

    A verdict takes that Delta_j L_i differs from 0 and that Delta_i L_i is above 0; the power is the product of the
    two. The first is tested at (1 - level) 2 / cells: what Benjamini and Hochberg's rule asks of a pair of tasks whose
    two cells, which rest on the same inner products, are the only ones that differ from 0.

    Args:
        gram: [units, units] or [blocks, units, units], of the pilot.
        tasks: The task of every unit.
        effect: The interference I_ij to be found, Delta_j L_i relative to the pilot's Delta_i L_i; None for every
            cell's own Delta in the pilot.
        power: Share of data sets that get the verdict.
        level: As in `uncertainty.table`.
        groups: A label of every unit, the same for units that are not independent; None where all are.

    Raises:
        ConfigError: If the effect is 0 or no number, or power or level is not a share.
        ScopeError: If a task has fewer than `LEAST` groups.
    """
    _check(effect, power, level)
    layout = Layout.of(tasks, groups)
    total = pool(gram, layout)
    layout = replace(layout.with_copies(total), order=np.arange(len(tasks)))
    counts = layout.cells.counts
    if counts.min() < LEAST:
        kind = "units" if layout.groups is None else "groups"
        raise ScopeError(
            f"a pilot needs {LEAST} {kind} of each task, but has {counts.min()} of {layout.tasks[counts.argmin()]!r}; "
            "measure more"
        )
    (kernel,) = Estimand("delta").kernels(total, layout)
    value = pair_means(kernel, np.ones((1, len(tasks))), layout, Pairs.LEAVE_ONE_OUT)[0]
    terms, freedom = variance_terms(kernel, layout, Pairs.LEAVE_ONE_OUT)
    own, (variance, degrees) = np.diagonal(value), added(terms, freedom)
    reach = np.sqrt(np.diagonal(variance)) * stats.t.ppf((1 + level) / 2, np.diagonal(degrees))
    wished = value if effect is None else np.broadcast_to(effect * own[:, None], value.shape)
    delta = np.where((own > reach)[:, None], wished, np.nan)
    np.fill_diagonal(delta, np.nan)
    law = _Law(delta, own, terms, counts, _related(layout), level)
    rho, size = _intraclass(total, layout), layout.counts / counts
    many = replace(law, terms=terms * _falls(rho, layout))
    return Needs(layout.tasks, layout.groups is not None, delta, law.least(power), many.least(power), size, rho)


def _check(effect: float | None, power: float, level: float) -> None:
    check_level(level)
    if not 0 < power < 1:
        raise ConfigError(f"power is {power}, but must lie between 0 and 1 (0.8 is usual)")
    if effect is not None and (not np.isfinite(effect) or effect == 0):
        raise ConfigError(
            f"effect is {effect:g}, which no number of groups can detect; give an interference such as -0.1"
        )


@dataclass(frozen=True)
class _Law:
    """What the power of a verdict depends on beside the number of groups.

    Attributes:
        delta: [i, j], to be told from 0.
        own: [i], to be found above 0.
        terms: [3, i, j], of the pilot's variance.
        counts: [tasks], the pilot's groups.
        related: [i, j], whether two tasks share groups; a task does with itself.
        level: level of the intervals.
    """

    delta: Array
    own: Array
    terms: Array
    counts: NDArray[np.intp]
    related: NDArray[np.bool_]
    level: float

    def least(self, power: float) -> Array:
        """[i, j]: the least number of groups with the power."""
        low, high = np.full(self.delta.shape, LEAST - 1.0), np.full(self.delta.shape, float(MOST))
        reached = self._power(high) >= power
        while (high - low > 1).any():
            middle = np.floor((low + high) / 2)
            enough = self._power(middle) >= power
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        found = np.where(reached, high, np.inf)
        return np.where(np.isnan(self.delta) | np.isnan(self.terms).any(axis=0), np.nan, found)

    def _power(self, groups: Array) -> Array:
        """[i, j]: of the verdict, with these numbers [i, j] of groups of both tasks."""
        tail, cells = (1 - self.level) / 2, self.delta.size - len(self.delta)
        cell = _beyond(self.delta, *self._variance(groups), tail * min(1, 2 / max(cells, 1)))
        own = _beyond(self.own[:, None], *self._own_variance(groups), tail)
        return np.nan_to_num(cell * own)

    def _variance(self, groups: Array) -> tuple[Array, Array]:
        """The variance [i, j] at numbers [i, j] of groups, and its degrees of freedom."""
        affected, stepped = np.broadcast_arrays(self.counts[:, None], self.counts[None])
        larger = np.maximum(affected, stepped)
        first, second = (np.where(self.related, larger, own) / groups for own in (affected, stepped))
        free = groups - 1
        product = np.where(self.related, _of_pairs(groups), free**2)
        return added(self.terms * np.stack([first, second, first * second]), np.stack([free, free, product]))

    def _own_variance(self, groups: Array) -> tuple[Array, Array]:
        """The variance of the own Delta of every i at numbers [i, j] of groups, and its degrees of freedom."""
        share, free = self.counts[:, None] / groups, groups - 1
        terms = np.diagonal(self.terms, axis1=1, axis2=2)[:, :, None]
        return added(terms * np.stack([share, share, share**2]), np.stack([free, free, _of_pairs(groups)]))


def _of_pairs(groups: Array) -> Array:
    """Degrees of freedom of what is left of the pairs within one set of groups."""
    found: Array = np.maximum(groups * (groups - 3) / 2, 1)
    return found


def _beyond(value: Array, variance: Array, degrees: Array, tail: float) -> Array:
    """The probability that Student's t of an estimate of `value` is beyond the quantile of a tail, on value's side."""
    shift = np.abs(value) / np.sqrt(np.where(variance > 0, variance, np.nan))
    bound = stats.t.isf(tail, degrees)
    shift = np.where(variance > 0, shift, np.inf)
    normal = stats.norm.sf(bound - np.minimum(shift, 1e6))
    exact = stats.nct.sf(bound, np.minimum(degrees, _NORMAL), np.minimum(shift, 30))
    found: Array = np.where((degrees > _NORMAL) | (shift > 30) | np.isnan(exact), normal, exact)
    return found


def _related(layout: Layout) -> NDArray[np.bool_]:
    """[i, j]: whether two tasks share groups."""
    found = np.eye(len(layout.tasks), dtype=bool)
    if layout.groups is not None:
        for i, j in layout.cells.related:
            found[i, j] = True
    return found


def _intraclass(total: Array, layout: Layout) -> Array:
    """[tasks]: (K within groups - K between them) / (K of units themselves - K between groups), from means of K."""
    found = np.full(len(layout.tasks), np.nan)
    for index, task in enumerate(layout.slices):
        own, labels = total[task, task], layout.labels[task]
        alike = labels[:, None] == labels
        within = alike & ~np.eye(len(labels), dtype=bool)
        between = own[~alike].mean()
        if within.any() and (noise := np.diagonal(own).mean() - between) > 0:
            found[index] = np.clip((own[within].mean() - between) / noise, 0, 1)
    return found


def _falls(rho: Array, layout: Layout) -> Array:
    """[3, i, j]: what is left of the terms of the variance if each group has any number of units.

    The noise of a group's mean over s units has the variance rho + (1 - rho) / s, of which rho is left; where no group
    has two units rho is not known.
    """
    cells = layout.cells
    left = np.full(len(layout.tasks), np.nan)
    for task, correlation in enumerate(rho):
        sizes = cells.sizes[cells.of_task(task)].astype(float)
        noise = (sizes**2 * (correlation + (1 - correlation) / sizes)).sum() / (sizes**2).sum()
        left[task] = correlation / noise
    affected, stepped = np.broadcast_arrays(left[:, None], left[None])
    shared = _related(layout)
    both = np.sqrt(affected * stepped)
    return np.stack([np.where(shared, both, affected), np.where(shared, both, stepped), affected * stepped])
