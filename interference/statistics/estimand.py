"""An estimand: a metric with everything that fixes its value, and its value under any resampling weights.

The registry of metrics lives here, and the one function, `estimate`, that both the numbers of `metrics.py` and the
intervals of `uncertainty.py` come from.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from interference.errors import ConfigError, MeasurementError
from interference.statistics.layout import Array, Grams, Layout, Pairs, blocks_of, layout_of, pooled, squares_of
from interference.statistics.pairs import Kernel, chunks, pair_means, unit_means
from mixlora.common.enums import member


class Reduce(StrEnum):
    """How the ratios of the units v of the affected task become one number."""

    RATIO_OF_MEANS = "ratio-of-means"  # estimates the ratio of expectations; the only one with an honest interval
    MEAN_OF_RATIOS = "mean-of-ratios"  # the paper's Eq. 3
    MEDIAN_OF_RATIOS = "median-of-ratios"


REDUCE = Reduce.RATIO_OF_MEANS
"""The reduction that is meant wherever none is named."""


class Aggregate(StrEnum):
    """How several blocks become one matrix."""

    SUM = "sum"  # one theta: the Grams are summed, then the metric is taken
    MEAN = "mean"  # the metric of each block, averaged over the blocks


class Norms(StrEnum):
    """What |mean g| means in `cosine`, `magnitude_similarity` and `curvature`."""

    PLAIN = "plain"  # of the mean gradients as measured
    UNBIASED = "unbiased"  # self pairs left out, so that noise does not lengthen the mean


def _raw(gram: Array, _: Array | None) -> Kernel:
    return Kernel(gram)


def _stepped(gram: Array, squares: Array | None) -> Kernel:
    norms = _norms(gram)
    if squares is None:
        return Kernel(gram * _inverse(norms)[:, None], own=norms)
    inverse = _inverse(np.sqrt(squares))
    return Kernel(gram * inverse[:, None], own=norms**2 * inverse)


def _cosines(gram: Array, _: Array | None) -> Kernel:
    inverse = _inverse(_norms(gram))
    return Kernel(gram * inverse[:, None] * inverse[None, :])


def _negative(gram: Array, _: Array | None) -> Kernel:
    return Kernel((gram < 0).astype(gram.dtype))


def _norms(gram: Array) -> Array:
    return np.sqrt(np.maximum(np.diagonal(gram), 0))


def _inverse(norms: Array) -> Array:
    """1 / norms, and 0 for a zero gradient: its step has no length and moves nothing."""
    return np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """The quotient, NaN wherever the denominator is not positive or not a number."""
    positive = np.broadcast_to(denominator > 0, np.broadcast_shapes(np.shape(numerator), np.shape(denominator)))
    return np.divide(numerator, denominator, out=np.full(positive.shape, np.nan), where=positive)


def _ratio_of_means(means: Array) -> Array:
    own = np.diagonal(means, axis1=1, axis2=2)[:, :, None]
    return np.divide(means, own, out=np.full(means.shape, np.nan), where=np.broadcast_to(own != 0, means.shape))


def _squares(means: Array) -> tuple[Array, Array]:
    """|mean g_i|^2 and |mean g_j|^2 of [replicates, i, j] inner products, NaN where the estimate is not positive."""
    own = np.diagonal(means, axis1=1, axis2=2)
    own = np.where(own > 0, own, np.nan)
    return own[:, :, None], own[:, None, :]


def _cosine(means: Array) -> Array:
    a, b = _squares(means)
    return means / np.sqrt(a * b)


def _magnitude_similarity(means: Array) -> Array:
    a, b = _squares(means)
    return 2 * np.sqrt(a * b) / (a + b)


def _curvature(means: Array) -> Array:
    a, b = _squares(means)
    return _ratio((1 - means**2 / (a * b)) * (a + b - 2 * means), a + b + 2 * means)


@dataclass(frozen=True)
class Metric:
    """A number for every pair of tasks: `finish` of the pair means of `kernel`.

    Attributes:
        meaning: One line for a reader.
        kernel: The Gram of a block, and the squared lengths of its units' steps (None: the diagonal), to what is
            averaged over pairs of units.
        finish: [replicates, i, j] pair means to the metric; None where the pair mean is the metric itself.
        even: The value at which a step of j neither helps nor hurts i; None where the metric has none.
        helps: 1 where values above `even` mean help, -1 where they mean harm.
    """

    meaning: str
    kernel: Callable[[Array, Array | None], Kernel]
    finish: Callable[[Array], Array] | None = None
    even: float | None = 0.0
    helps: int = 1


METRICS: dict[str, Metric] = {
    "interference": Metric("loss change of i stepping on j, relative to stepping on itself", _stepped, _ratio_of_means),
    "delta": Metric("first-order fall of i's loss when a unit-length gradient step of j is taken", _stepped),
    "cosine": Metric("cosine of the tasks' mean gradients", _raw, _cosine),
    "pair_cosine": Metric("mean cosine of a unit of i and a unit of j", _cosines),
    "conflict_rate": Metric("share of unit pairs whose gradients point apart", _negative, even=0.5, helps=-1),
    "magnitude_similarity": Metric(
        "2|a||b| / (|a|^2 + |b|^2) of the mean gradients", _raw, _magnitude_similarity, None
    ),
    "curvature": Metric("PCGrad's curvature bounding measure of the mean gradients", _raw, _curvature, None),
}


@dataclass(frozen=True)
class Estimand:
    """A metric and everything that fixes its value.

    Attributes:
        metric: A key of METRICS.
        pairs: Which pairs of units count; read by `interference` and `delta`, the others leave self pairs out.
        reduce: How unit ratios become one; read by `interference`.
        aggregate: How blocks become one matrix.
        norms: Read by `cosine`, `magnitude_similarity` and `curvature`.
        step: lambda, the length of the step; read by `delta`.

    Raises:
        ConfigError: If a value is not one of the allowed ones, which the message lists.
    """

    metric: str = "interference"
    pairs: Pairs | str = Pairs.LEAVE_ONE_OUT
    reduce: Reduce | str = REDUCE
    aggregate: Aggregate | str = Aggregate.SUM
    norms: Norms | str = Norms.PLAIN
    step: float = 1.0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(f"metric is {self.metric!r}, but must be one of {', '.join(map(repr, METRICS))}")
        for name, options in (("pairs", Pairs), ("reduce", Reduce), ("aggregate", Aggregate), ("norms", Norms)):
            object.__setattr__(self, name, member(options, getattr(self, name), name))

    @property
    def by_unit(self) -> bool:
        """Whether ratios are taken unit by unit, so that the metric is not a function of the pair means."""
        return self.metric == "interference" and self.reduce is not Reduce.RATIO_OF_MEANS

    @property
    def linear(self) -> bool:
        """Whether the metric is a pair mean itself."""
        return METRICS[self.metric].finish is None

    @property
    def pair_rule(self) -> Pairs:
        """Which pairs are averaged: the plain norm of a mean keeps the self pairs, other companions never do."""
        if self.metric in ("interference", "delta"):
            return Pairs(self.pairs)
        return Pairs.ALL if not self.linear and self.norms is Norms.PLAIN else Pairs.LEAVE_ONE_OUT

    @property
    def kernel(self) -> tuple[Callable[[Array, Array | None], Kernel], float]:
        """What is averaged over pairs, and its factor: estimands of equal `kernel` and `pair_rule` share pair means."""
        return METRICS[self.metric].kernel, self.step if self.metric == "delta" else 1.0

    def kernels(self, gram: Grams, layout: Layout) -> Iterator[Kernel]:
        """The kernels whose metrics are averaged: one for a sum of blocks or a linear metric, else one a block.

        Args:
            gram: [units, units], or a stack or sequence of them, one a block.
            layout: The tasks of the units.

        Raises:
            MeasurementError: If every Gram is zero throughout.
        """
        layout.check_pairs(self.pair_rule)
        if self.aggregate is Aggregate.SUM:
            gram, layout = pooled(gram, layout), layout.as_given
        blocks = zip(blocks_of(gram, layout), squares_of(gram, layout), strict=False)  # of a plain Gram None for ever
        kernels: Iterator[Kernel] = (self._kernel(*block) for block in blocks if block[0].any())
        if self.aggregate is Aggregate.MEAN and self.linear:
            kernels = iter(_average(kernels))
        empty = True
        for kernel in kernels:
            empty = False
            yield kernel
        if empty:
            raise MeasurementError("every Gram is zero throughout: no unit has a gradient in this scope")

    def _kernel(self, block: Array, squares: Array | None) -> Kernel:
        make, factor = self.kernel
        kernel = make(np.asarray(block, dtype=np.float64), squares)
        return Kernel(factor * kernel.values, None if kernel.own is None else factor * kernel.own)

    def finish(self, means: Array) -> Array:
        """[replicates, i, j] pair means to the metric."""
        finish = METRICS[self.metric].finish
        values = means if finish is None else finish(means)
        if self.metric == "cosine":  # exactly 1, not 1 - 1e-16, on the diagonal
            _fill_diagonal(values)
        return values

    def of_kernel(self, kernel: Kernel, weights: Array, layout: Layout) -> Array:
        """The metric of one kernel under resampling weights: [replicates, i, j]."""
        if not self.by_unit:
            return self.finish(pair_means(kernel, weights, layout, self.pair_rule))
        out = np.empty((len(weights), len(layout.tasks), len(layout.tasks)))
        for chunk in chunks(len(weights), out.shape[1] * weights.shape[1]):
            units = unit_means(kernel, weights[chunk], layout, self.pair_rule)
            out[chunk] = reduce_ratios(units, weights[chunk], layout, Reduce(self.reduce))
        return out


def _average(kernels: Iterator[Kernel]) -> list[Kernel]:
    """The mean of kernels: a linear metric of it is the mean of their metrics."""
    count, values, own = 0, np.zeros(()), np.zeros(())
    for kernel in kernels:
        count, values = count + 1, values + kernel.values
        own = own + (0 if kernel.own is None else kernel.own)
    return [Kernel(values / count, own / count if own.ndim else None)] if count else []


def _fill_diagonal(values: Array) -> None:
    """Put 1 on the diagonal of [replicates, i, j] wherever it is a number."""
    diagonal = np.arange(values.shape[1])
    own = values[:, diagonal, diagonal]
    values[:, diagonal, diagonal] = np.where(np.isnan(own), np.nan, 1.0)


def reduce_ratios(units: Array, weights: Array, layout: Layout, reduce: Reduce) -> Array:
    """Per-unit ratios Delta_j L_i(v) / Delta_i L_i(v), reduced over v: [replicates, i, j].

    A unit whose own Delta_i L_i(v) is exactly 0 (no gradient, or none along the others') has no ratio and does not
    count; a row in which no unit counts is NaN.

    Args:
        units: [replicates, tasks j, units v], from `unit_means`.
        weights: [replicates, units]; counts (whole numbers) for the median.
        layout: The tasks of the grouped units.
        reduce: "mean-of-ratios" or "median-of-ratios".
    """
    out = np.empty((len(units), len(layout.tasks), len(layout.tasks)))
    for i, affected in enumerate(layout.slices):
        drawn = weights[:, affected]
        if reduce is Reduce.MEDIAN_OF_RATIOS:
            out[:, i] = _median(units[:, :, affected], units[:, i, affected], drawn)
        else:
            out[:, i] = _mean(units[:, :, affected], units[:, i, affected], drawn)
    _fill_diagonal(out)
    return out


def _mean(numerators: Array, denominators: Array, weights: Array) -> Array:
    defined = denominators != 0  # true of NaN: a resample without a second unit has no value at all
    share = np.divide(weights, denominators, out=np.zeros_like(denominators), where=defined)
    count = np.where(defined, weights, 0).sum(axis=1)
    summed = np.einsum("rjv,rv->rj", numerators, share)
    return np.divide(summed, count[:, None], out=np.full(summed.shape, np.nan), where=count[:, None] > 0)


def _median(numerators: Array, denominators: Array, weights: Array) -> Array:
    """Exact median of the resampled multiset; an even number of ratios gives the mean of the middle two."""
    below = np.where(denominators == 0, np.nan, denominators)
    drawn = _listed(weights.astype(int))
    count = drawn.shape[1]
    ratios = np.concatenate([numerators / below[:, None], np.full((*numerators.shape[:2], 1), np.nan)], axis=2)
    ratios = np.take_along_axis(ratios, drawn[:, None], axis=2)
    ratios.sort(axis=2)  # NaN last
    defined = count - np.isnan(ratios[:, :1]).sum(axis=2, keepdims=True)
    middle = np.concatenate([np.maximum(defined - 1, 0) // 2, np.minimum(defined // 2, count - 1)], axis=2)
    median: Array = np.take_along_axis(ratios, np.broadcast_to(middle, (*ratios.shape[:2], 2)), axis=2).mean(axis=2)
    return median


def _listed(counts: NDArray[np.intp]) -> NDArray[np.intp]:
    """The units of each resample, as often as it drew them [replicates, most drawn]; at the end one past the last."""
    totals = counts.sum(axis=1)
    drawn = np.full((len(counts), totals.max()), counts.shape[1])
    drawn[np.arange(totals.max()) < totals[:, None]] = np.repeat(
        np.tile(np.arange(counts.shape[1]), len(counts)), counts.ravel()
    )
    return drawn


def estimate(
    estimand: Estimand,
    gram: Grams,
    tasks: Sequence[str],
    weights: Array | None = None,
    groups: Sequence[Hashable] | None = None,
) -> Array:
    """The estimand under resampling weights: [replicates, i, j].

    Args:
        estimand: The metric and its settings.
        gram: [units, units], or a stack or sequence of them, one a block.
        tasks: The task of every unit.
        weights: [replicates, units], in the order of `tasks`; the data as measured where None.
        groups: A label of every unit, the same for units that are not independent; None where all are.

    A block in which a cell has no value (NaN) does not count for that cell.
    """
    paired = estimand.pair_rule is Pairs.LEAVE_ONE_OUT
    layout = layout_of(gram, tasks, groups) if paired else Layout.of(tasks, groups)
    drawn = np.ones((1, len(tasks))) if weights is None else layout.group(np.asarray(weights, dtype=np.float64), (1,))
    average = Average()
    for kernel in estimand.kernels(gram, layout):
        average.add(estimand.of_kernel(kernel, drawn, layout))
    return average.mean()


class Average:
    """A running element-wise mean of arrays of one shape that skips NaN; NaN where every one of them is."""

    def __init__(self) -> None:
        self._total, self._count = np.zeros(()), np.zeros((), dtype=np.intp)

    def add(self, values: Array) -> None:
        """Take one array in."""
        defined = ~np.isnan(values)
        self._total = self._total + np.where(defined, values, 0)
        self._count = self._count + defined

    def mean(self) -> Array:
        """The mean of what was taken in."""
        return _ratio(self._total, self._count.astype(np.float64))
