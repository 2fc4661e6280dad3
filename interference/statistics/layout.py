"""Units grouped by task, the rule for which pairs of them count, and Gram matrices in that order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from interference.errors import MeasurementError, ScopeError

Array = NDArray[np.floating]
Grams = NDArray[np.floating] | Sequence[NDArray[np.floating]]

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


def pool(gram: Grams, layout: Layout) -> Array:
    """The Gram of all blocks as one theta: their sum, [units, units], grouped, in double precision."""
    total = np.zeros((len(layout.order), len(layout.order)))
    for block in blocks_of(gram, layout):
        total += block
    return total
