"""Ranking: how well a prediction ranks pairs of tasks by what training did to them, and how well it could.

The truth is a matrix T[s, i, j] for every seed s: what training with task j did to task i. A prediction is one matrix.
Its score is the mean over seeds of a rank correlation with T[s]: Spearman's or Kendall's (tau-b), within the rows of
affected tasks (their mean) or over all pairs.

The agreement of seeds is what the truth of one seed scores against that of another, as a mean over pairs of seeds. Both
have noise of their own, and a prediction is scored against one of them, so that one that knows all but the noise scores
about the root of the agreement (the correction for attenuation): the ceiling.

Intervals are percentiles of a bootstrap over seeds and tasks: a task that is drawn twice counts twice, as a row and as
a column. The same draws serve every prediction and the ceiling, so that their ratios have intervals, too. A resample of
two seeds has one pair or none: agreement and ceiling have intervals from three seeds on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from types import MappingProxyType

import numpy as np

from interference.errors import ScopeError
from interference.statistics.agreement import LEAST
from interference.statistics.bootstrap import check_level
from interference.statistics.layout import Array

MEASURES = ("spearman", "kendall")
WHERE = ("within", "overall")
SCORES = tuple(f"{measure}_{where}" for measure in MEASURES for where in WHERE)
"""The names of the scores: a rank correlation within rows, or over all pairs."""
SCORE = "spearman_within"
"""The score that is meant wherever none is named."""
INTERVALS = 6
"""Tasks of which a score within rows has an interval, at least: of fewer, too few resamples have ranks."""
_SEEDS = 3
"""Seeds whose agreement has an interval, at least."""
_KNOWN = 0.5
"""The share of resamples that must have a score, so that their quantiles are an interval."""
_CHUNK = 2**24
"""Numbers that one step of the bootstrap holds."""


@dataclass(frozen=True)
class Score:
    """A score with its resamples.

    Attributes:
        value: from -1 to 1, or a share of a ceiling; NaN where fewer than `LEAST` pairs can be ranked.
        draws: [replicates]; NaN where a resample has no pairs that can be ranked.
    """

    value: float
    draws: Array

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The percentile interval; NaN where the value is, or too many resamples have none because tasks are few.

        Args:
            level: Share of resamples that it holds.

        Returns:
            Its lower and upper end.

        Raises:
            ConfigError: If the level is no share.
        """
        check_level(level)
        known = self.draws[np.isfinite(self.draws)]
        if not np.isfinite(self.value) or len(known) < _KNOWN * len(self.draws):
            return float("nan"), float("nan")
        low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def of(self, ceiling: Score) -> Score:
        """This score as a share of a ceiling; NaN unless the ceiling's interval is above 0.

        Args:
            ceiling: Of the same truth, with the same resamples.

        Returns:
            The share, and its resamples.
        """
        whole = ceiling.draws > 0
        if not ceiling.interval()[0] > 0:
            return Score(float("nan"), np.full(whole.shape, np.nan))
        shares = np.divide(self.draws, ceiling.draws, out=np.full(whole.shape, np.nan), where=whole)
        return Score(self.value / ceiling.value, shares)

    def root(self) -> Score:
        """The square root, 0 where the score is below 0."""
        return Score(float(np.sqrt(np.maximum(self.value, 0))), np.sqrt(np.maximum(self.draws, 0)))


class Ranking:
    """What a truth of several seeds says about predictions of it."""

    def __init__(self, truth: Array, *, replicates: int = 1000, seed: int = 0) -> None:
        """Prepare the resamples.

        Args:
            truth: [seeds, tasks i, tasks j], what j did to i; the diagonal does not count, nor does what is NaN.
            replicates: Resamples.
            seed: Of the resamples.

        Raises:
            ScopeError: If there are fewer than two seeds, or the matrices are not square.
        """
        seeds, tasks = truth.shape[0], truth.shape[-1]
        if truth.ndim != 3 or truth.shape[1] != tasks or seeds < 2:
            raise ScopeError(f"the truth is {truth.shape}, but must be at least 2 seeds x tasks x tasks")
        rng = np.random.default_rng([seed, seeds, tasks])
        self._truth = truth
        self._seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=replicates).astype(float)
        self._tasks = rng.multinomial(tasks, np.full(tasks, 1 / tasks), size=replicates).astype(float)

    @cached_property
    def agreement(self) -> Mapping[str, Score]:
        """{name of a score: how well the truth of one seed predicts that of another}."""
        pairs = list(combinations(range(len(self._truth)), 2))
        found = [self._pair(self._truth[a], self._truth[b]) for a, b in pairs]
        weights = np.array([self._seeds[:, a] * self._seeds[:, b] for a, b in pairs]).T
        scores = _averaged(found, weights)
        if len(self._truth) < _SEEDS:
            scores = {name: Score(own.value, np.full(len(own.draws), np.nan)) for name, own in scores.items()}
        return MappingProxyType(scores)

    @cached_property
    def ceiling(self) -> Mapping[str, Score]:
        """{name of a score: what a prediction could reach that knows all but the noise of a seed}."""
        return MappingProxyType({name: own.root() for name, own in self.agreement.items()})

    def of(self, predicted: Array) -> dict[str, Score]:
        """The scores of a prediction.

        Args:
            predicted: [tasks i, tasks j]; larger where j is said to help i more. NaN where it says nothing.

        Returns:
            {name of a score: the score}.

        Raises:
            ScopeError: If the prediction has another shape than the truth.
        """
        if predicted.shape != self._truth.shape[1:]:
            raise ScopeError(f"the prediction is {predicted.shape}, but the truth {self._truth.shape[1:]}")
        return _averaged([self._pair(predicted, own) for own in self._truth], self._seeds)

    def _pair(self, first: Array, second: Array) -> dict[str, tuple[float, Array]]:
        """The scores of one matrix against another, with one value for every draw of tasks."""
        counted = ~np.eye(len(first), dtype=bool) & np.isfinite(first) & np.isfinite(second)
        x, y = (np.where(counted, matrix, 0.0) for matrix in (first, second))
        whole = np.vstack([np.ones(len(first)), self._tasks])  # first the tasks as they are
        found = {}
        rows = [_correlations(x[i], y[i], whole * counted[i]) for i in range(len(first))]
        for name, each in zip(MEASURES, zip(*rows, strict=True), strict=True):
            values = _mean(np.stack(each, axis=1), whole)
            found[f"{name}_within"] = float(values[0]), values[1:]
        i, j = counted.nonzero()
        for name, values in zip(MEASURES, _correlations(x[i, j], y[i, j], whole[:, i] * whole[:, j]), strict=True):
            found[f"{name}_overall"] = float(values[0]), values[1:]
        return found


def _averaged(found: list[dict[str, tuple[float, Array]]], weights: Array) -> dict[str, Score]:
    """Means over seeds, or pairs of seeds: of the values, and of the draws with their weights [replicates, parts]."""
    scores = {}
    for name in SCORES:
        values, draws = zip(*(own[name] for own in found), strict=True)
        mean = _mean(np.array(values)[None], np.ones((1, len(values))))
        scores[name] = Score(float(mean[0]), _mean(np.stack(draws, axis=1), weights))
    return scores


def _mean(values: Array, weights: Array) -> Array:
    """The weighted mean along the last axis of what is a number; NaN where nothing is."""
    weights = np.where(np.isfinite(values), weights, 0.0)
    total = weights.sum(axis=-1)
    found: Array = np.divide(
        (weights * np.nan_to_num(values)).sum(axis=-1), total, out=np.full(len(total), np.nan), where=total > 0
    )
    return found


def _correlations(x: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """Spearman's and Kendall's correlation of items, each counted as often as its weight says.

    Args:
        x: [items].
        y: [items].
        weights: [draws, items].

    Returns:
        [draws] and [draws]; NaN where fewer than `LEAST` different items count, or all are tied.
    """
    above, beyond = (np.sign(values[:, None] - values[None, :]) for values in (x, y))
    found = [(_spearman(w @ above, w @ beyond, w), _kendall(above, beyond, w)) for w in _chunks(weights)]
    few = (weights > 0).sum(axis=1) < LEAST
    spearman, kendall = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return np.where(few, np.nan, spearman), np.where(few, np.nan, kendall)


def _chunks(weights: Array) -> Iterator[Array]:
    size = max(_CHUNK // max(weights.shape[1], 1) ** 2, 1)
    for start in range(0, len(weights), size):
        yield weights[start : start + size]


def _spearman(first: Array, second: Array, weights: Array) -> Array:
    """Pearson's correlation of ranks; twice a mean rank is the weight below minus that above, but for a constant."""
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    a, b = (ranks - (weights * ranks).sum(axis=1, keepdims=True) / total for ranks in (first, second))
    return _ratio(*((weights * one * other).sum(axis=1) for one, other in ((a, b), (a, a), (b, b))))


def _kendall(above: Array, beyond: Array, weights: Array) -> Array:
    """Kendall's tau-b: concordant minus discordant pairs, over the pairs that are not tied."""
    return _ratio(*(((weights @ (one * other)) * weights).sum(axis=1) for one, other in (
        (above, beyond), (above, above), (beyond, beyond),
    )))  # fmt: skip


def _ratio(shared: Array, first: Array, second: Array) -> Array:
    """The covariance over the root of both variances; NaN where one of them is 0."""
    scale = np.sqrt(first * second)
    found: Array = np.divide(shared, scale, out=np.full(shared.shape, np.nan), where=scale > 1e-9)
    return found
