"""Which tasks go together: a tree of the tasks by their interference, and a split if the verdicts support one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from interference.report.phrases import counted, several
from interference.run.remarks import shown_verdicts
from interference.statistics.significance import NOT_JUDGED, Verdict


@dataclass(frozen=True)
class Grouping:
    """A tree of tasks.

    Attributes:
        order: task names as its leaves stand side by side.
        merges: scipy's linkage matrix over the tasks in the run's order: left, right, distance, size.
        split: groups of tasks, each in the run's order; a single one where no split is supported.
        words: why.
    """

    order: list[str]
    merges: list[list[float]]
    split: list[list[str]]
    words: str


def group(table: pd.DataFrame) -> Grouping | None:
    """Average linkage over the cells of a table of `interference`; None for fewer than two tasks.

    The distance of two tasks is 1 minus the mean of I_ij and I_ji, clipped to [-1, 1]: 0 where each step serves the
    other task as well as its own, 1 where they do not matter to each other, 2 where each undoes the other. A row
    without signal says nothing: its direction is left out, and two such tasks are at distance 1.

    A split is supported if every two of its groups are opposed: at least half of the cells between them that have a
    signal are conflicts, and at most a quarter as many are synergies. Of the supported cuts of the tree the one with
    the most conflicts less synergies between groups is taken, of equals the one with the fewest groups.
    """
    tasks = list(dict.fromkeys(table["affected"]))
    if len(tasks) < 2:
        return None
    cells = table["value"], shown_verdicts(table)
    values, verdicts = (column.to_numpy().reshape(len(tasks), -1) for column in cells)
    merges = hierarchy.linkage(squareform(distances(values, verdicts), checks=False), "average", optimal_ordering=True)
    best = max(_cuts(merges, len(tasks)), key=lambda parts: _score(verdicts, parts))
    split = [[tasks[k] for k in part] for part in best]
    order = [tasks[k] for k in hierarchy.leaves_list(merges)]
    return Grouping(order, merges.tolist(), split, _words(verdicts, best, split))


def distances(values: NDArray[Any], verdicts: NDArray[Any]) -> NDArray[np.float64]:
    """[tasks, tasks], symmetric, 0 on the diagonal; see `group`."""
    known = np.isfinite(values) & ~np.isin(verdicts, NOT_JUDGED)
    total = np.where(known, values, 0) + np.where(known, values, 0).T
    mean = total / np.maximum(known.astype(int) + known.T, 1)
    found: NDArray[np.float64] = 1 - np.clip(mean, -1, 1)
    np.fill_diagonal(found, 0)
    return found


def _cuts(merges: NDArray[Any], count: int) -> Iterator[list[NDArray[np.intp]]]:
    """Every way to cut the tree: one group, two groups ... each group the places of its tasks, by first place."""
    for groups in range(1, count + 1):
        of_task = hierarchy.fcluster(merges, groups, "maxclust")
        yield [np.flatnonzero(of_task == name) for name in dict.fromkeys(of_task)]


def _score(verdicts: NDArray[Any], parts: Sequence[NDArray[np.intp]]) -> tuple[int, int]:
    """Conflicts less synergies between groups, then fewest groups; below a single group's if a pair is not opposed."""
    net = 0
    for a, b in combinations(parts, 2):
        conflicts, synergies, judged = _between(verdicts, a, b)
        if not conflicts or 2 * conflicts < judged or 4 * synergies > conflicts:
            return -1, -len(parts)
        net += conflicts - synergies
    return net, -len(parts)


def _between(verdicts: NDArray[Any], a: NDArray[np.intp], b: NDArray[np.intp]) -> tuple[int, int, int]:
    """Conflicts, synergies, and cells with a verdict between two groups, both directions."""
    cells = np.concatenate([verdicts[np.ix_(a, b)].ravel(), verdicts[np.ix_(b, a)].ravel()])
    counted_cells = [int((cells == kind.value).sum()) for kind in (Verdict.CONFLICT, Verdict.SYNERGY)]
    return counted_cells[0], counted_cells[1], int((~np.isin(cells, NOT_JUDGED)).sum())


def _words(verdicts: NDArray[Any], parts: Sequence[NDArray[np.intp]], split: Sequence[Sequence[str]]) -> str:
    conflicts = int((verdicts == Verdict.CONFLICT.value).sum())
    if not conflicts:
        return "No pair of tasks conflicts beyond noise, so these numbers give no reason to split them."
    if len(parts) == 1:
        return "No split of the tasks is supported: their conflicts do not fall between groups."
    found = [_between(verdicts, a, b) for a, b in combinations(parts, 2)]
    between, judged = sum(cell[0] for cell in found), sum(cell[2] for cell in found)
    groups = "; ".join(several(names) for names in split)
    return (
        f"Conflict lies between groups of tasks ({groups}): {between} of the {counted(judged, 'pair')} between them "
        f"conflict beyond noise, and {conflicts - between} within them."
    )
