"""Groups: units that are not independent, because they share a picture, a document, a prompt. No model, no disk.

A group may have units in several tasks; its part in one task is a cell. Cells are what is drawn and what an analysis
of variance is of. Who belongs to a group is told by labels; that copies of one example share a group is found from a
Gram (`layout.copies_of`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Array = NDArray[np.floating]
Codes = NDArray[np.intp]


@dataclass(frozen=True)
class Cells:
    """The groups of every task, ordered by task.

    Attributes:
        of_unit: [units], the cell of each unit, units ordered by task.
        label: [cells], the group that each cell belongs to.
        counts: [tasks], cells of each task.
    """

    of_unit: Codes
    label: Codes
    counts: Codes

    @classmethod
    def of(cls, counts: Sequence[int] | Codes, groups: Codes) -> Cells:
        """The cells of units ordered by task.

        Args:
            counts: [tasks], units of each task.
            groups: [units], from 0.
        """
        task = np.repeat(np.arange(len(counts)), counts)
        found, of_unit = np.unique(np.stack([task, groups]), axis=1, return_inverse=True)
        return cls(of_unit.ravel(), found[1], np.bincount(found[0], minlength=len(counts)))

    @cached_property
    def starts(self) -> Codes:
        """[tasks]: where the cells of each task begin."""
        return np.cumsum(self.counts) - self.counts

    @cached_property
    def sizes(self) -> Codes:
        """[cells]: units of each."""
        return np.bincount(self.of_unit)

    @cached_property
    def first(self) -> Codes:
        """[cells]: the first unit of each."""
        return np.unique(self.of_unit, return_index=True)[1]

    @cached_property
    def averaging(self) -> sparse.csr_array:
        """[cells, units]: its product with values of units is their mean over every cell."""
        units = np.arange(len(self.of_unit))
        return sparse.csr_array((1 / self.sizes[self.of_unit], (self.of_unit, units)))

    def averaged(self, values: Array) -> Array:
        """Values of units, along every axis, as means over cells."""
        for _ in range(values.ndim):
            values = np.moveaxis(self.averaging @ values, 0, -1)
        return values

    def of_task(self, task: int) -> slice:
        """The cells of a task."""
        return slice(self.starts[task], self.starts[task] + self.counts[task])

    @cached_property
    def related(self) -> dict[tuple[int, int], Codes]:
        """Pairs (i, j) of tasks that share a group, each task with itself among them, and where their cells stand.

        The places, [cells of j, then of i], are among the groups that either has, from 0: equal for one group's cells.
        """
        held = np.zeros((len(self.counts), self.label.max() + 1))
        held[np.repeat(np.arange(len(self.counts)), self.counts), self.label] = 1
        pairs = np.argwhere(held @ held.T).tolist()
        labels = [self.label[self.of_task(task)] for task in range(len(self.counts))]
        return {(i, j): np.unique(np.concatenate([labels[j], labels[i]]), return_inverse=True)[1] for i, j in pairs}

    def families(self) -> list[Codes]:
        """Tasks that share groups, directly or through others: [tasks of a family], by first task."""
        task = np.repeat(np.arange(len(self.counts)), self.counts)
        family = joined(len(self.counts) + self.label.max() + 1, task, self.label + len(self.counts))
        own = family[: len(self.counts)]
        return [np.flatnonzero(own == one) for one in dict.fromkeys(own.tolist())]


def codes_of(labels: Iterable[Hashable]) -> Codes:
    """Labels as numbers from 0, by first appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels], dtype=np.intp)


def joined(count: int, first: Codes, second: Codes) -> Codes:
    """[count]: a number from 0 for each node, by first appearance, the same for nodes that edges connect."""
    edges = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    return codes_of(sparse.csgraph.connected_components(edges, directed=False)[1].tolist())
