"""Weighted means of a Gram matrix over pairs of units: the one sum under every metric and every resample.

The order of tasks and the rule for which pairs count are `layout.py`'s; what a sum is called (Delta, I, a cosine) is
`metrics.py`'s; how sure of it one may be is `uncertainty.py`'s.

Weights are the trick that makes estimate and resample one code path: a row of ones is the data as measured, a row of
multinomial counts is a bootstrap resample, a row of zeros and ones is a subset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from interference.statistics.layout import Array, Layout, Pairs

_CHUNK_NUMBERS = 1_000_000  # numbers in one [replicates, tasks, units] chunk: bounds memory, stays near the cache


@dataclass(frozen=True)
class Kernel:
    """What is averaged over pairs, [stepped unit u, affected unit v], units grouped by task."""

    values: Array  # [units, units]
    own: Array | None = None  # [units]: for pairs "same-example", v's own value, which stands on the diagonal
    _kept: dict[bytes, Array] = field(default_factory=dict, repr=False, compare=False)

    def astype(self, dtype: type[np.floating]) -> Kernel:
        """The kernel in another precision."""
        return Kernel(self.values.astype(dtype), None if self.own is None else self.own.astype(dtype))

    def between_groups(self, layout: Layout) -> Array:
        """[units, units]: the values, 0 where both units are of one group."""
        key = layout.labels.tobytes()
        if key not in self._kept:
            self._kept[key] = np.where(layout.labels[:, None] == layout.labels, 0, self.values)
        return self._kept[key]


def unit_means(kernel: Kernel, weights: Array, layout: Layout, pairs: Pairs) -> Array:
    """Mean over stepped units u of task j of kernel[u, v], for every affected unit v.

    `(sum_u w_u k[u, v] - w_p k[p, v]) / (sum_u w_u - w_p)` with p the partner of v that `pairs` drops: all w_p copies
    of it, so that a resample never pairs a unit with itself, drawn again. Where nothing else was drawn the mean is NaN.

    Args:
        kernel: Over grouped units.
        weights: [replicates, units], grouped; at least one unit of every task weighs more than 0, and units of one
            group weigh alike.
        layout: The tasks of the grouped units.
        pairs: The rule for partners; "leave-one-out": all units of v's group in j, without groups v itself where i = j;
            "uni-perceiver": the unit of v's index, for every j.

    Returns:
        [replicates, tasks j, units v].
    """
    out = np.empty((len(layout.tasks), *weights.shape), np.result_type(kernel.values, weights))
    if pairs is Pairs.LEAVE_ONE_OUT and layout.groups is not None:
        return _between_groups(kernel, weights, layout, out)
    for j, stepped in enumerate(layout.slices):
        drawn = weights[:, stepped]
        total = drawn.sum(axis=1, keepdims=True)
        mean = np.matmul(drawn / total, kernel.values[stepped], out=out[j])
        if pairs is Pairs.LEAVE_ONE_OUT:
            partner = np.arange(stepped.start, stepped.stop)
            mean[:, stepped] = _without(mean[:, stepped], weights[:, stepped], kernel.values[partner, partner], total)
        elif pairs is Pairs.UNI_PERCEIVER:
            partner = stepped.start + layout.rank
            mean[:] = _without(mean, weights[:, partner], kernel.values[partner, np.arange(len(partner))], total)
        elif pairs is Pairs.SAME_EXAMPLE and kernel.own is not None:
            mean[:, stepped] = kernel.own[stepped]
    return out.transpose(1, 0, 2)


def _between_groups(kernel: Kernel, weights: Array, layout: Layout, out: Array) -> Array:
    """`unit_means` of groups, into `out` [tasks j, replicates, units v]: all that share a group with v are left out."""
    values, cells = kernel.between_groups(layout), layout.cells
    labels = cells.label[cells.of_unit]
    for j, stepped in enumerate(layout.slices):
        total = weights[:, stepped].sum(axis=1, keepdims=True)
        left = np.repeat(total, cells.label.max() + 1, axis=1)  # [replicates, groups]: what the others of j weigh
        own = cells.of_task(j)
        left[:, cells.label[own]] -= weights[:, cells.first[own]] * cells.sizes[own]
        left[left == 0] = np.nan
        drawn = np.matmul(weights[:, stepped], values[stepped], out=out[j])
        drawn *= np.take(1 / left, labels, axis=1)
    return out.transpose(1, 0, 2)


def _without(mean: Array, copies: Array, value: Array, total: Array) -> Array:
    """A weighted mean [replicates, units] after `copies` of `value` leave it; NaN where nothing is left."""
    left = total - copies
    left[left == 0] = np.nan
    return (mean * total - copies * value) / left


def pair_means(kernel: Kernel, weights: Array, layout: Layout, pairs: Pairs) -> Array:
    """Weighted mean of the kernel over the pairs of tasks (i, j) that `pairs` lets count: [replicates, i, j]."""
    out = np.empty((len(weights), len(layout.tasks), len(layout.tasks)))
    for chunk in chunks(len(weights), out.shape[1] * weights.shape[1]):
        out[chunk] = mean_over_affected(unit_means(kernel, weights[chunk], layout, pairs), weights[chunk], layout)
    return out


def mean_over_affected(units: Array, weights: Array, layout: Layout) -> Array:
    """Weighted mean of [replicates, tasks j, units v] over v of each task i: [replicates, i, j]."""
    out = np.empty((len(weights), len(layout.tasks), len(layout.tasks)))
    for i, affected in enumerate(layout.slices):
        drawn = weights[:, affected]
        share = drawn / drawn.sum(axis=1, keepdims=True)
        out[:, i] = np.einsum("rjv,rv->rj", units[:, :, affected], share)
    return out


def chunks(replicates: int, numbers_each: int) -> Iterator[slice]:
    """Slices over the replicates whose work arrays hold about `_CHUNK_NUMBERS` numbers."""
    size = max(1, _CHUNK_NUMBERS // numbers_each)
    for start in range(0, replicates, size):
        yield slice(start, start + size)
