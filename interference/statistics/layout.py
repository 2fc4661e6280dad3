"""Units grouped by task, the rule for which pairs of them count, and Gram matrices in that order."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from interference.errors import MeasurementError, ScopeError
from interference.statistics.groups import Cells, codes_of, joined

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Preconditioned:
    """Inner products of gradients and steps that are not along them, K[u, v] = <g_u, P g_v> with P symmetric.

    Attributes:
        grams: [units, units], or a stack or sequence of them, one per block.
        squares: |P g_u|^2, the squared length of each unit's step: [units], or [blocks, units].
    """

    grams: Array | Sequence[Array]
    squares: Array


Grams = NDArray[np.floating] | Sequence[NDArray[np.floating]] | Preconditioned

COPY = 1e-3
"""|g_u - g_v|^2, relative to the mean of |g_u|^2 and |g_v|^2, below which two units are one example.

One example in two batches differs by 1e-7 in float32 and 1e-4 in bfloat16 (padding, order of sums). Different examples
rarely come nearer than 1e-2; should they, one pair of a mean is left out without need, and the interval is wider.
"""


class Pairs(StrEnum):
    """Which pairs (u, v) of stepped unit u and affected unit v count."""

    LEAVE_ONE_OUT = "leave-one-out"  # an example never steps on its own group, nor on its copy in another task
    UNI_PERCEIVER = "uni-perceiver"  # the unit of the same index is dropped for every pair of tasks
    ALL = "all"  # self pairs count
    SAME_EXAMPLE = "same-example"  # v's own step is the denominator: Delta_i L_i(v) = sqrt(K[v, v])


@dataclass(frozen=True)
class Layout:
    """Units grouped by task, tasks in the order in which they first appear."""

    tasks: tuple[str, ...]
    order: NDArray[np.intp]  # [units]: the permutation that groups units by task, order within a task kept
    counts: NDArray[np.intp]  # [tasks]
    groups: NDArray[np.intp] | None = None  # [units], in that order: equal for units that share a group; None: none do

    @classmethod
    def of(cls, tasks: Sequence[str], groups: Sequence[Hashable] | None = None) -> Layout:
        """The layout of units whose task names are `tasks`.

        Args:
            tasks: The task of every unit.
            groups: A label of every unit, the same, within a task or between two, for units that are not independent;
                None where all are.

        Raises:
            ScopeError: If there is no unit, a task has a single unit or group (the mean over *others* is then empty),
                or there are more or fewer labels than units.
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
        found = cls(names, np.argsort(codes, kind="stable"), counts)
        if groups is None:
            return found
        if len(groups) != len(tasks):
            raise ScopeError(f"groups has {len(groups)} labels, but there are {len(tasks)} units: give one per unit")
        return found.grouped(codes_of(groups)[found.order])

    def grouped(self, groups: NDArray[np.intp]) -> Layout:
        """The same units with groups [units], in this layout's order, numbered by first appearance there.

        So equal groups have equal numbers, and with them the same resamples, however they were labelled.

        Raises:
            ScopeError: If all units of a task are in one group.
        """
        if len(np.unique(groups)) == len(groups):
            return replace(self, groups=None)
        found = replace(self, groups=codes_of(groups.tolist()))
        for task, units, count in zip(self.tasks, self.counts, found.cells.counts, strict=True):
            if count < 2:
                raise ScopeError(
                    f"the {units} units of task {task!r} are 1 group, but at least 2 are needed: give it examples that "
                    "share nothing with these, or leave out its groups if its examples are independent"
                )
        return found

    def with_copies(self, total: Array, within: bool = True) -> Layout:
        """The same units, those with equal gradients in one group; itself where there are none.

        Where that would leave a task a single group, as one whose units are all the same, the examples that it holds
        repeatedly stay apart: the k-th copy in one task shares a group with the k-th in another. Where a single group
        is left even so, that task shares none by copies.

        Args:
            total: [units, units], the Gram of all blocks, grouped.
            within: Join the copies within a task, too.
        """
        equal = equal_pairs(total)
        if not len(equal):
            return self
        example = joined(len(total), equal[:, 0], equal[:, 1])
        task = np.repeat(np.arange(len(self.counts)), self.counts)
        held = np.zeros((len(self.counts), example.max() + 1), dtype=np.intp)
        np.add.at(held, (task, example), 1)
        apart, alone = np.full(held.shape[1], not within), np.zeros(len(self.counts), dtype=bool)
        while True:
            pairs = equal[~apart[example[equal[:, 0]]]]
            if apart.any():
                numbered = _partners(total, self)
                pairs = np.concatenate([pairs, numbered[apart[example[numbered[:, 0]]]]])
            labels = self._joined(pairs[~alone[task[pairs]].any(axis=1)])
            single = Cells.of(self.counts, labels).counts < 2
            if not single.any():
                return self.grouped(labels)
            repeated = (held[single] > 1).any(axis=0)
            alone |= single & apart[repeated].all()
            apart |= repeated

    def merged(self, other: Layout) -> Layout:
        """The same units, those that share a group here or in another layout of them in one.

        Raises:
            ScopeError: If all units of a task would be in one group.
        """
        _, first, place = np.unique(other.labels, return_index=True, return_inverse=True)
        labels = self._joined(np.stack([np.arange(len(self.order)), first[place]], axis=1))
        for name, count in zip(self.tasks, Cells.of(self.counts, labels).counts, strict=True):
            if count < 2:
                raise ScopeError(
                    f"the groups of both runs, taken together, leave task {name!r} a single one, so that no two of its "
                    "units are independent in both; compute both with the same `group`"
                )
        return self.grouped(labels)

    def _joined(self, pairs: NDArray[np.intp]) -> NDArray[np.intp]:
        """[units]: the group of each where the two units of every pair share theirs."""
        own = self.labels
        return joined(own.max() + 1, own[pairs[:, 0]], own[pairs[:, 1]])[own]

    @property
    def as_given(self) -> Layout:
        """The same units, where they come grouped by task already."""
        return replace(self, order=np.arange(len(self.order)))

    @cached_property
    def labels(self) -> NDArray[np.intp]:
        """[units]: the group of each; where there are none, every unit is one."""
        return np.arange(len(self.order)) if self.groups is None else self.groups

    @cached_property
    def cells(self) -> Cells:
        """The groups of every task."""
        return Cells.of(self.counts, self.labels)

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
    gram = gram.grams if isinstance(gram, Preconditioned) else gram
    single = isinstance(gram, np.ndarray) and gram.ndim == 2
    for index, block in enumerate([gram] if single else gram):
        if np.shape(block) != (units, units):
            raise MeasurementError(
                f"Gram block {index} has shape {np.shape(block)}, but `tasks` names {units} units: "
                f"expected ({units}, {units})"
            )
        if not np.isfinite(block).all():
            raise MeasurementError(f"Gram block {index} has numbers that are not finite: a gradient overflowed")
        yield layout.group(np.asarray(block), (0, 1))


def squares_of(gram: Grams, layout: Layout) -> Iterator[Array | None]:
    """Each block's squared lengths of the units' steps [units], grouped by task; None where the diagonal has them.

    Raises:
        MeasurementError: If there is not one per unit, or one is not finite or below 0.
    """
    if not isinstance(gram, Preconditioned):
        yield from repeat(None)
        return
    for squares in np.atleast_2d(gram.squares):
        if squares.shape != (len(layout.order),) or not np.isfinite(squares).all() or (squares < 0).any():
            raise MeasurementError(
                f"squares has shape {squares.shape}, but must be {len(layout.order)} finite squared lengths, one per "
                "unit"
            )
        yield layout.group(squares, (0,))


def held_repeatedly(total: Array) -> list[list[int]]:
    """The units of every example that comes more than once, in order, by `equal_pairs` of a Gram."""
    pairs = equal_pairs(total)
    found = joined(len(total), pairs[:, 0], pairs[:, 1])
    return [np.flatnonzero(found == one).tolist() for one in np.unique(found[pairs[:, 0]])]


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


def _partners(total: Array, layout: Layout) -> NDArray[np.intp]:
    """[pairs, 2]: the k-th copy of an example in one task and the k-th in another."""
    partners = copies_of(total, layout)
    return np.stack([np.nonzero(partners >= 0)[1], partners[partners >= 0]], axis=1)


def kept_apart(gram: Grams, tasks: Sequence[str], groups: Sequence[Hashable]) -> list[int]:
    """The units that share no group with a copy of theirs, since that would leave a task a single group.

    Args:
        gram: [units, units], or a stack or sequence of them, one per block.
        tasks: The task of every unit.
        groups: A label of every unit, the same for units that are not independent.

    Returns:
        Their places among `tasks`, in order.
    """
    layout = Layout.of(tasks, groups)
    total = pool(gram, layout)
    pairs, labels = equal_pairs(total), layout.with_copies(total).labels
    split = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
    return sorted(layout.order[np.unique(split)].tolist())


def layout_of(gram: Grams, tasks: Sequence[str], groups: Sequence[Hashable] | None) -> Layout:
    """The layout of the units of a Gram, copies of one example in one group; within a task only if there are labels."""
    layout = Layout.of(tasks, groups)
    return layout.with_copies(pool(gram, layout), within=groups is not None)


def equal_pairs(total: Array) -> NDArray[np.intp]:
    """[pairs, 2]: the units u < v whose gradients are the same but for rounding (`COPY`): copies of one example.

    Args:
        total: [units, units], the Gram of all blocks.
    """
    norms = np.diagonal(total)
    middle = np.add.outer(norms, norms) / 2
    found: NDArray[np.intp] = np.argwhere(np.triu((middle - total <= COPY / 2 * middle) & (norms > 0), k=1))
    return found


def pooled(gram: Grams, layout: Layout) -> Array | Preconditioned:
    """All blocks as one theta: their `pool`, with the squared lengths of the steps where they are not the diagonal."""
    total = pool(gram, layout)
    if not isinstance(gram, Preconditioned):
        return total
    squares = [np.asarray(own, dtype=np.float64) for own in squares_of(gram, layout) if own is not None]
    return Preconditioned(total, np.sum(squares, axis=0))


def pool(gram: Grams, layout: Layout) -> Array:
    """The Gram of all blocks as one theta: their sum, [units, units], grouped, in double precision."""
    total = np.zeros((len(layout.order), len(layout.order)))
    for block in blocks_of(gram, layout):
        total += block
    return total
