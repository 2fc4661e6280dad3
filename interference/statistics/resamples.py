"""Resamples: one scope with its draws, which any number of estimands share.

Not here: how units are drawn, how pair means are corrected, and what an interval is worth (`bootstrap`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from interference.statistics.bootstrap import (
    PairMeans,
    Studentised,
    check_level,
    drawn_units,
    resample_pair_means,
    studentised,
)
from interference.statistics.carriers import effective_units, is_carried, is_scarce, is_tailed, squared_norms
from interference.statistics.estimand import Aggregate, Average, Estimand
from interference.statistics.health import RatioHealth, health_of
from interference.statistics.layout import Array, Grams, Layout, Pairs, Preconditioned, pooled
from interference.statistics.pairs import Kernel

T = TypeVar("T")


class Resamples:
    """One scope with its resamples: any number of estimands of it share the draws, and the pair means they rest on.

    Attributes:
        layout: The tasks and groups of the units.
        weights: [replicates, units], units grouped by task.
        level: Level of the intervals.
    """

    def __init__(
        self,
        gram: Grams,
        tasks: Sequence[str],
        aggregate: Aggregate | str = Aggregate.SUM,
        *,
        replicates: int = 1000,
        level: float = 0.95,
        seed: int = 0,
        groups: Sequence[Hashable] | None = None,
    ) -> None:
        """Draw the units.

        Args:
            gram: [units, units] or [blocks, units, units].
            tasks: The task of every unit.
            aggregate: As in `metrics.interference`; one for all estimands.
            replicates: Resamples.
            level: Level of the intervals.
            seed: Seed of the resamples.
            groups: A label of every unit, the same for units that are not independent; None where all are.

        Raises:
            ConfigError: If there are fewer than 2 replicates, or the level is not between 0 and 1.
            ScopeError: If the labels are not as many as the units, or a task has a single group.
        """
        check_level(level)
        self.level, self.aggregate = level, Aggregate(aggregate)
        layout = Layout.of(tasks, groups)
        whole = pooled(gram, layout)
        total = np.asarray(whole.grams if isinstance(whole, Preconditioned) else whole)
        self._gram, self._total, self.layout = gram, total, layout.with_copies(total)
        if self.aggregate is Aggregate.SUM:  # grouped and summed once for all that follows
            self._gram = whole
            self.layout = self.layout.as_given
        self._drawing = (replicates, seed)
        self.weights = drawn_units(self.layout, replicates, seed)
        self._found: dict[Any, Any] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, by first appearance."""
        return self.layout.tasks

    @cached_property
    def fall(self) -> PairMeans:
        """Delta, self pairs left out: what every verdict is about."""
        return self.pair_means(self.delta)

    @property
    def delta(self) -> Estimand:
        """The estimand of `fall`."""
        return Estimand("delta", aggregate=self.aggregate)

    @cached_property
    def effective(self) -> Array:
        """[tasks]: the effective number of units, or groups where units have them."""
        return effective_units(squared_norms(self._total, self.layout), self.layout.cells)

    @property
    def carried(self) -> NDArray[np.bool_]:
        """[tasks]: whether a few units carry a task, so that Delta's intervals in its row would promise too much."""
        return is_carried(self.effective, self.layout.cells.counts)

    @property
    def scarce(self) -> NDArray[np.bool_]:
        """[tasks]: whether so few units lead a task that its own Delta has no interval."""
        return is_scarce(self.effective, self.layout.cells.counts)

    @property
    def tailed(self) -> NDArray[np.bool_]:
        """[tasks]: whether own Delta's interval is studentised; it is withheld where the task is scarce."""
        return is_tailed(self.effective, self.layout.cells.counts)

    def once(self, name: str, work: Callable[[Resamples], T]) -> T:
        """What is computed once of these resamples, whichever estimand asks.

        Args:
            name: What it is kept under.
            work: Computes it.

        Returns:
            What `work` returned.
        """
        if name not in self._found:
            self._found[name] = work(self)
        found: T = self._found[name]
        return found

    def studentised(self, estimand: Estimand, task: int) -> Studentised:
        """The own value of a task, with resamples of Student's t.

        Args:
            estimand: A linear one without self pairs.
            task: The task's place among `tasks`.

        Returns:
            The value, its error, and [replicates] of Student's t.
        """
        key = ("studentised", *estimand.kernel, task)
        if key not in self._found:
            self._found[key] = studentised(self.kernel(estimand), self.weights, self.layout, task)
        found: Studentised = self._found[key]
        return found

    def kernel(self, estimand: Estimand) -> Kernel:
        """The one kernel of a sum of blocks, or of a linear estimand.

        Args:
            estimand: The metric with its options.

        Returns:
            What is averaged over pairs of units, [units, units].
        """
        key = ("kernel", *estimand.kernel, estimand.pair_rule is Pairs.LEAVE_ONE_OUT)
        if key not in self._found:
            (self._found[key],) = estimand.kernels(self._gram, self.layout)
        kernel: Kernel = self._found[key]
        return kernel

    def pair_means(self, estimand: Estimand) -> PairMeans:
        """The corrected pair means of an estimand of one kernel.

        Args:
            estimand: The metric with its options.

        Returns:
            Values and errors [i, j], and draws [replicates, i, j].
        """
        key = ("means", *estimand.kernel, estimand.pair_rule)
        if key not in self._found:
            made = resample_pair_means(self.kernel(estimand), self.weights, self.layout, estimand.pair_rule, self.level)
            self._found[key] = made
        means: PairMeans = self._found[key]
        return means

    def value(self, estimand: Estimand) -> Array:
        """An estimand's value, without its resamples.

        Args:
            estimand: The metric with its options.

        Returns:
            [tasks i, tasks j].
        """
        ones, found = np.ones((1, self.weights.shape[1])), Average()
        for kernel in self._kernels(estimand):
            found.add(estimand.of_kernel(kernel, ones, self.layout))
        return found.mean()[0]

    def alike(self, other: Resamples) -> Resamples:
        """The same, with units in one group that share one in the other's layout.

        Args:
            other: Resamples of the same units.

        Returns:
            New resamples; these where the groups are the same already.
        """
        layout = self.layout.merged(other.layout)
        if np.array_equal(layout.labels, self.layout.labels):
            return self
        found = copy(self)
        for name in ("fall", "effective", "_single"):
            found.__dict__.pop(name, None)
        found.layout, found._found = layout, {}
        found.weights = drawn_units(layout, *self._drawing)
        return found

    def of(self, estimand: Estimand) -> tuple[Array, Array]:
        """An estimand's value and its corrected resamples.

        Ratios taken unit by unit are no function of pair means: their resamples are scaled, about their own median, as
        those of Delta are. They are not centred on the value, which one unit near a zero denominator may have thrown
        far.

        Args:
            estimand: The metric with its options.

        Returns:
            [tasks i, tasks j], and [replicates, i, j].
        """
        if estimand.by_unit:
            value, drawn = self._ratios(estimand)
            middle = _medians(drawn)
            scale = self.pair_means(replace(estimand, metric="delta", step=1.0)).scale
            return value, middle + scale * (drawn - middle)
        if estimand.aggregate is Aggregate.SUM or estimand.linear:
            means = self.pair_means(estimand)
            return estimand.finish(means.value[None])[0], estimand.finish(means.draws)
        values, draws = Average(), Average()
        for kernel in self._kernels(estimand):
            means = resample_pair_means(kernel, self._single, self.layout, estimand.pair_rule, self.level)
            values.add(estimand.finish(means.value[None]))
            draws.add(estimand.finish(means.draws))
        return values.mean()[0], draws.mean()

    def health(self, estimand: Estimand) -> RatioHealth:
        """The health of the ratios of interference with an estimand's pairs, whatever its metric.

        Args:
            estimand: The metric with its options, of which the pairs count.

        Returns:
            Shares, each [tasks i, tasks j].
        """
        ratios = Estimand("interference", pairs=estimand.pairs, aggregate=estimand.aggregate)
        key = ("health", ratios.pair_rule)
        if key not in self._found:
            self._found[key] = health_of(self._kernels(ratios), self.layout, ratios.pair_rule)
        health: RatioHealth = self._found[key]
        return health

    def _ratios(self, estimand: Estimand) -> tuple[Array, Array]:
        """The value and the plain resamples of an estimand by unit."""
        draws = Average()
        weights = self.weights if estimand.aggregate is Aggregate.SUM else self._single
        for kernel in self._kernels(estimand):
            draws.add(estimand.of_kernel(kernel.astype(weights.dtype.type), weights, self.layout))
        return self.value(estimand), draws.mean()

    def _kernels(self, estimand: Estimand) -> Iterable[Kernel]:
        if estimand.aggregate is Aggregate.SUM:
            return [self.kernel(estimand)]
        return estimand.kernels(self._gram, self.layout)

    @cached_property
    def _single(self) -> NDArray[np.float32]:
        """The weights for many kernels: the resamples' own scatter is 1e4 times the rounding."""
        return self.weights.astype(np.float32)


def _medians(draws: Array) -> Array:
    """Median over the replicates that have a value; NaN where none has."""
    unknown = np.isnan(draws).all(axis=0)
    medians: Array = np.where(unknown, np.nan, np.nanmedian(np.where(unknown, 0, draws), axis=0))
    return medians
