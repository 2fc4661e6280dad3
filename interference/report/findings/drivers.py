"""Which examples make the clearest cells: each unit's exact share of Delta, from the Gram."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from interference.report.summary import RunSummary, rows
from interference.run import Run
from interference.statistics.estimand import Estimand
from interference.statistics.layout import Array, Layout, Pairs, layout_of
from interference.statistics.pairs import unit_means
from interference.statistics.significance import Verdict

CELLS = 6
"""Cells that are explained, at most."""
UNITS = 3
"""Units of each side that are shown for a cell."""


class Contributions:
    """What every unit adds to Delta_j L_i over all blocks.

    Delta_j L_i is a mean over pairs (u of j, v of i) of K[u, v] / sqrt(K[u, u]), so it is a sum over the units v of i,
    and as well a sum over the units u of j. A unit's share is its term relative to Delta_j L_i: the shares of one side
    sum to 1, and a negative one works against the cell.
    """

    def __init__(self, run: Run) -> None:
        tasks = list(run.probes["task"])
        gram = run.gram()
        self._layout = layout_of(gram, tasks, run.groups or range(len(tasks)))
        (self._kernel,) = Estimand("delta").kernels(gram, self._layout)
        self._falls = unit_means(self._kernel, np.ones((1, len(tasks))), self._layout, Pairs.LEAVE_ONE_OUT)[0]

    def affected(self, i: str, j: str) -> pd.Series:
        """The shares of the units of the affected task i, by row of `Run.probes`."""
        place = self._place(i)
        return self._shares(self._falls[self._layout.tasks.index(j), place], place)

    def stepped(self, i: str, j: str) -> pd.Series:
        """The shares of the units of the stepped task j, another than i, by row of `Run.probes`."""
        counted = _counted(self._layout, self._layout.tasks.index(j))[:, self._place(i)]
        falls = self._kernel.values[self._place(j), self._place(i)]
        terms = (falls * counted / counted.sum(axis=0)).sum(axis=1)
        return self._shares(terms, self._place(j))

    def _place(self, task: str) -> slice:
        return self._layout.slices[self._layout.tasks.index(task)]

    def _shares(self, terms: Array, place: slice) -> pd.Series:
        return pd.Series(terms / terms.sum(), index=self._layout.order[place])


@dataclass(frozen=True)
class Driver:
    """A clear cell and the units that make it.

    Attributes:
        affected: task i.
        stepped: task j.
        value: I, ratio of means.
        units: (side, row of `Run.probes`, share), the largest shares of each side.
    """

    affected: str
    stepped: str
    value: float
    units: list[tuple[str, int, float]]


def drivers(run: RunSummary) -> list[Driver]:
    """The clearest cells of a run and the units with the largest shares of them."""
    cells = clearest(run.pairs)
    if cells.empty:
        return []
    parts = Contributions(run.run)
    found = []
    for row in rows(cells):
        i, j = str(row.affected), str(row.stepped)
        sides = {"affected": parts.affected(i, j), "stepped": parts.stepped(i, j)}
        units = [
            (side, int(unit), float(shares[unit]))
            for side, shares in sides.items()
            for unit in shares.nlargest(UNITS).index
        ]
        found.append(Driver(i, j, float(row.value), units))
    return found


def clearest(pairs: pd.DataFrame, count: int = CELLS) -> pd.DataFrame:
    """Up to `count` clear cells: the strongest conflict, the strongest synergy, then by how sure they are."""
    clear = pairs[pairs["verdict"].isin([Verdict.CONFLICT.value, Verdict.SYNERGY.value])]
    by_value, by_q = (clear.sort_values(name, kind="stable").index for name in ("value", "q"))
    order = list(dict.fromkeys([*by_value[:1], *by_value[-1:], *by_q]))
    return clear.loc[order[:count]]


def _counted(layout: Layout, task: int) -> NDArray[np.bool_]:
    """Which pairs of a task's stepped units and all affected units count: not those of one group."""
    stepped = layout.slices[task]
    if layout.groups is None:
        return np.ones((layout.counts[task], len(layout.order)), dtype=bool)
    counted: NDArray[np.bool_] = layout.groups[stepped, None] != layout.groups
    return counted
