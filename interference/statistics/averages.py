"""Averages: a mean over tasks of what trainings did to held-out examples, with an interval over what was drawn.

x[s, a, v] is a number of example v after training a with seed s. Its average is the mean over seeds, of the mean over
tasks, of the mean over a task's examples. It varies because of both seeds and groups of examples, as in `falls`: with h
the contribution of a group to the average, centred within each task,

    Var = var(groups) / n + var(seeds) / S + var(rest) / (n S),

whose degrees of freedom for groups are n less one for each family of tasks that share no group with others. Where the
reference is a mean over things that were drawn, as random splits, their scatter is a term of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from interference.errors import ScopeError
from interference.statistics.bootstrap import check_level
from interference.statistics.layout import Array, Layout
from interference.statistics.significance import added


@dataclass(frozen=True)
class Drawn:
    """Things of which some were drawn, and whose mean is a reference.

    Attributes:
        values: the average of each that was drawn.
        among: how many there are.
    """

    values: Array
    among: int

    @property
    def variance(self) -> float:
        """Of the mean of those drawn, without replacement; it holds some of the scatter of seeds and examples."""
        count = len(self.values)
        if count >= self.among:
            return 0.0
        return float(self.values.var(ddof=1) / count * (1 - count / self.among)) if count > 1 else np.nan


@dataclass(frozen=True)
class Average:
    """Averages with their error; arrays are [trainings].

    Attributes:
        value: the averages.
        low: lower ends of their intervals.
        high: upper ends.
    """

    value: Array
    low: Array
    high: Array


def average(
    found: Array,
    tasks: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    *,
    drawn: Drawn | None = None,
    level: float = 0.95,
) -> Average:
    """The average of every training over tasks.

    Args:
        found: [seeds, trainings, examples].
        tasks: the task of every example.
        groups: a label of every example, the same for those that are not independent; None where all are.
        drawn: things whose mean was subtracted from all trainings.
        level: of the intervals.

    Returns:
        Averages with intervals.

    Raises:
        ScopeError: if there are fewer than two seeds, or a task has fewer than two examples or groups.
        ConfigError: if the level cannot be used.
    """
    check_level(level)
    layout = Layout.of(tasks, groups)
    if len(found) < 2 or found.shape[2:] != (len(tasks),):
        raise ScopeError(f"the values are {found.shape}, but must be at least 2 seeds x trainings x {len(tasks)}")
    ordered = layout.group(found, (2,))
    means = np.add.reduceat(ordered, layout.starts, axis=2) / layout.counts  # [seeds, trainings, tasks]
    value = means.mean(axis=(0, 2))
    parts, freedom = _terms(ordered, means.mean(axis=0), layout)
    if drawn is not None and len(drawn.values) < drawn.among:
        scatter = np.full((1, len(value)), drawn.variance)
        parts = np.concatenate([parts, scatter])
        freedom = np.concatenate([freedom, np.full((1, len(value)), max(len(drawn.values) - 1, 1))])
    variance, degrees = added(parts, freedom)
    reach = stats.t.ppf((1 + level) / 2, degrees) * np.sqrt(variance)
    return Average(value, value - reach, value + reach)


def _terms(found: Array, means: Array, layout: Layout) -> tuple[Array, Array]:
    """The terms of the variance and their degrees of freedom, both [3, trainings]; `means` is [trainings, tasks]."""
    cells, (seeds, trainings, _) = layout.cells, found.shape
    labels, place = np.unique(cells.label[cells.of_unit], return_inverse=True)
    groups, free = len(labels), len(labels) - len(cells.families())
    task = np.repeat(np.arange(len(layout.tasks)), layout.counts)
    centred = (found - means[None, :, task]) / (layout.counts[task] * len(layout.tasks))
    h = groups * (centred @ np.eye(groups)[place])  # [seeds, trainings, groups]: its mean is the average's deviation
    by_group, by_seed = h.mean(axis=0), h.mean(axis=2)
    rest = h - by_group - by_seed[:, :, None]
    epsilon = (rest**2).sum(axis=(0, 2)) / ((seeds - 1) * free)
    of_groups = (by_group**2).sum(axis=1) / free - epsilon / seeds
    of_seeds = (by_seed**2).sum(axis=0) / (seeds - 1) - epsilon / groups
    parts = [np.maximum(of_groups, 0) / groups, np.maximum(of_seeds, 0) / seeds, epsilon / (groups * seeds)]
    freedom = np.array([free, seeds - 1, (seeds - 1) * free], dtype=float)
    return np.stack(parts), np.broadcast_to(freedom[:, None], (3, trainings)).copy()
