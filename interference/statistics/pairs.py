"""Weighted means of a Gram matrix over pairs of units: the one sum under every metric and every resample.

Here live the order of tasks, the rule for which pairs count, and the sums themselves. What a sum is called (Delta, I,
a cosine) is `metrics.py`'s; how sure of it one may be is `uncertainty.py`'s.

Weights are the trick that makes estimate and resample one code path: a row of ones is the data as measured, a row of
multinomial counts is a bootstrap resample, a row of zeros and ones is a subset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from interference.errors import ConfigError, MeasurementError, ScopeError

Array = NDArray[np.floating]
Option = TypeVar("Option", bound=StrEnum)
Grams = NDArray[np.floating] | Sequence[NDArray[np.floating]]

_CHUNK_NUMBERS = 1_000_000  # numbers in one [replicates, tasks, units] chunk: bounds memory, stays near the cache


COPY = 1e-3
"""|g_u - g_v|^2, relative to the mean of |g_u|^2 and |g_v|^2, below which two units of different tasks are one example.

One example in two batches differs by 1e-7 in float32 and 1e-4 in bfloat16 (padding, order of sums). Different examples
rarely come nearer than 1e-2; should they, one pair of a mean is left out without need, which hardly moves it.
"""


class Pairs(StrEnum):
    """Which pairs (u, v) of stepped unit u and affected unit v count."""

    LEAVE_ONE_OUT = "leave-one-out"  # an example never steps on itself, not even on its copy in another task
    UNI_PERCEIVER = "uni-perceiver"  # the unit of the same index is dropped for every pair of tasks
    ALL = "all"  # self pairs count
    SAME_EXAMPLE = "same-example"  # v's own step is the denominator: Delta_i L_i(v) = sqrt(K[v, v])


def choose(options: type[Option], value: str, name: str) -> Option:
    """The member of `options` that `value` names.

    Raises:
        ConfigError: If there is none; the message lists the members.
    """
    try:
        return options(value)
    except ValueError:
        allowed = ", ".join(repr(option.value) for option in options)
        raise ConfigError(f"{name} is {value!r}, but must be one of {allowed}") from None


@dataclass(frozen=True)
class Layout:
    """Units grouped by task, tasks in the order in which they first appear."""

    tasks: tuple[str, ...]
    order: NDArray[np.intp]  # [units]: the permutation that groups units by task, order within a task kept
    counts: NDArray[np.intp]  # [tasks]

    @classmethod
    def of(cls, tasks: Sequence[str]) -> Layout:
        """The layout of units whose task names are `tasks`.

        Raises:
            ScopeError: If there is no unit, or a task has a single one: the mean over *other* units is then empty.
        """
        tasks = [str(task) for task in tasks]
        names = tuple(dict.fromkeys(tasks))
        if not names:
            raise ScopeError("there are no units: `tasks` is empty")
        place = {name: index for index, name in enumerate(names)}
        codes = np.array([place[task] for task in tasks])
        counts = np.bincount(codes, minlength=len(names))
        if counts.min() < 2:
            lonely = ", ".join(repr(names[index]) for index in np.flatnonzero(counts < 2))
            raise ScopeError(f"every task needs at least 2 units, but {lonely} has 1: probe more samples")
        return cls(names, np.argsort(codes, kind="stable"), counts)

    @cached_property
    def starts(self) -> NDArray[np.intp]:
        """[tasks]: where each task begins among the grouped units."""
        return np.cumsum(self.counts) - self.counts

    @cached_property
    def slices(self) -> list[slice]:
        """Each task's units among the grouped units."""
        return [slice(start, start + count) for start, count in zip(self.starts, self.counts, strict=True)]

    @cached_property
    def rank(self) -> NDArray[np.intp]:
        """[units]: index of each grouped unit within its task."""
        return np.concatenate([np.arange(count) for count in self.counts])

    def group(self, values: Array, axes: Sequence[int]) -> Array:
        """`values` with units along `axes` brought into the grouped order (as it is where it is grouped already)."""
        if np.array_equal(self.order, np.arange(len(self.order))):
            return values
        for axis in axes:
            values = np.take(values, self.order, axis=axis)
        return values

    def check_pairs(self, pairs: Pairs) -> None:
        """Raise ScopeError where `pairs` needs equal counts and the tasks' counts differ."""
        if pairs is Pairs.UNI_PERCEIVER and len(set(self.counts.tolist())) > 1:
            counts = ", ".join(f"{task} {count}" for task, count in zip(self.tasks, self.counts, strict=True))
            raise ScopeError(
                f"pairs 'uni-perceiver' drops the unit of the same index in every task, so tasks need equally many "
                f"units, but have: {counts}; take equally many, or pairs 'leave-one-out'"
            )


def blocks_of(gram: Grams, layout: Layout) -> Iterator[Array]:
    """Each block's Gram [units, units], checked and grouped by task; a single Gram is one block.

    Raises:
        MeasurementError: If a block is not square in the units, or holds a number that is not finite.
    """
    units = len(layout.order)
    single = isinstance(gram, np.ndarray) and gram.ndim == 2
    for index, block in enumerate([gram] if single else gram):
        if np.shape(block) != (units, units):
            raise MeasurementError(
                f"Gram block {index} has shape {np.shape(block)}, but `tasks` names {units} units: "
                f"expected ({units}, {units})"
            )
        if not np.isfinite(block).all():
            raise MeasurementError(f"Gram block {index} holds numbers that are not finite: a gradient overflowed")
        yield layout.group(np.asarray(block), (0, 1))


@dataclass(frozen=True)
class Kernel:
    """What is averaged over pairs, [stepped unit u, affected unit v], units grouped by task."""

    values: Array  # [units, units]
    own: Array | None = None  # [units]: for pairs "same-example", v's own value, which stands on the diagonal
    copies: NDArray[np.intp] | None = None  # [tasks, units], from `copies_of`: for pairs "leave-one-out"

    def astype(self, dtype: type[np.floating]) -> Kernel:
        """The kernel in another precision."""
        return Kernel(self.values.astype(dtype), None if self.own is None else self.own.astype(dtype), self.copies)

    def copies_in(self, task: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The units of other tasks that have a copy in a task, and those copies."""
        if self.copies is None:
            return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp)
        units = np.flatnonzero(self.copies[task] >= 0)
        return units, self.copies[task, units]


def copies_of(total: Array, layout: Layout) -> NDArray[np.intp]:
    """[tasks j, units v]: the unit of another task j that is the same example as v, or -1.

    Two units of different tasks are one example if their gradients are the same but for rounding (`COPY`): an example
    that two tasks share, a task under two names. Where a task holds an example several times, its k-th copy belongs to
    the k-th copy in the other task, so that each unit has one partner there, as it has itself in its own task.

    Args:
        total: [units, units], the Gram of all blocks, grouped.
        layout: The tasks of the grouped units.
    """
    found = np.full((len(layout.tasks), len(total)), -1, dtype=np.intp)
    norms = np.diagonal(total)
    middle = np.add.outer(norms, norms) / 2
    same = (middle - total <= COPY / 2 * middle) & (norms > 0)
    for task in layout.slices:
        same[task, task] = False
    of_unit = np.repeat(np.arange(len(layout.tasks)), layout.counts)
    for v in np.flatnonzero(same.any(axis=0)):
        group = np.flatnonzero(middle[v] - total[v] <= COPY / 2 * middle[v])
        place = int(np.searchsorted(group[of_unit[group] == of_unit[v]], v))
        for j in set(of_unit[group]) - {of_unit[v]}:
            theirs = group[of_unit[group] == j]
            found[j, v] = theirs[place] if place < len(theirs) else -1
    return found


def unit_means(kernel: Kernel, weights: Array, layout: Layout, pairs: Pairs) -> Array:
    """Mean over stepped units u of task j of kernel[u, v], for every affected unit v.

    `(sum_u w_u k[u, v] - w_p k[p, v]) / (sum_u w_u - w_p)` with p the partner of v that `pairs` drops: all w_p copies
    of it, so that a resample never pairs a unit with itself, drawn again. Where nothing else was drawn the mean is NaN.

    Args:
        kernel: Over grouped units.
        weights: [replicates, units], grouped; at least one unit of every task weighs more than 0.
        layout: The tasks of the grouped units.
        pairs: The rule for partners; "leave-one-out": v itself where i = j, else its copy in j (`copies_of`), if j has
            one; "uni-perceiver": the unit of v's index, for every j.

    Returns:
        [replicates, tasks j, units v].
    """
    out = np.empty((len(layout.tasks), *weights.shape), np.result_type(kernel.values, weights))
    for j, stepped in enumerate(layout.slices):
        drawn = weights[:, stepped]
        total = drawn.sum(axis=1, keepdims=True)
        mean = np.matmul(drawn / total, kernel.values[stepped], out=out[j])
        if pairs is Pairs.LEAVE_ONE_OUT:
            partner = np.arange(stepped.start, stepped.stop)
            mean[:, stepped] = _without(mean[:, stepped], weights[:, stepped], kernel.values[partner, partner], total)
            affected, copy = kernel.copies_in(j)
            if len(copy):
                mean[:, affected] = _without(mean[:, affected], weights[:, copy], kernel.values[copy, affected], total)
        elif pairs is Pairs.UNI_PERCEIVER:
            partner = stepped.start + layout.rank
            mean[:] = _without(mean, weights[:, partner], kernel.values[partner, np.arange(len(partner))], total)
        elif pairs is Pairs.SAME_EXAMPLE and kernel.own is not None:
            mean[:, stepped] = kernel.own[stepped]
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


def pool(gram: Grams, layout: Layout) -> Array:
    """The Gram of all blocks as one theta: their sum, [units, units], grouped, in double precision."""
    total = np.zeros((len(layout.order), len(layout.order)))
    for block in blocks_of(gram, layout):
        total += block
    return total


def chunks(replicates: int, numbers_each: int) -> Iterator[slice]:
    """Slices over the replicates whose work arrays hold about `_CHUNK_NUMBERS` numbers."""
    size = max(1, _CHUNK_NUMBERS // numbers_each)
    for start in range(0, replicates, size):
        yield slice(start, start + size)
