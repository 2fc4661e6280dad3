"""Grouping: a tree of the tasks by their interference, and a split if the verdicts and the resamples support one.

Not here: by which matrix (`evidence`), and what else a run advises (`advice`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from interference.run.phrases import counted, several
from interference.run.remarks import shown_verdicts
from interference.statistics.layout import Array
from interference.statistics.significance import NOT_JUDGED, Verdict

RESAMPLES = 200
"""Resamples of a matrix that are cut into groups: the mean of their agreement is then known to about 0.02."""
NOTHING = "No split is supported by this run"
"""What is said where there are no groups, with the reason behind it."""
STABLE = 0.8
"""The least mean adjusted Rand index of resamples' groups to those of the matrix: 1 is the same groups, 0 is chance."""


@dataclass(frozen=True)
class Grouping:
    """A tree of tasks.

    Attributes:
        order: task names as its leaves stand side by side.
        merges: scipy's linkage matrix over the tasks in the run's order: left, right, distance, size.
        split: groups of tasks, each in the run's order; a single one where no split is supported.
        stability: {number of groups: how well resamples find them again}, of the cuts whose groups are opposed.
        words: why.
    """

    order: list[str]
    merges: list[list[float]]
    split: list[list[str]]
    stability: dict[int, float]
    words: str


def group(table: pd.DataFrame, draws: Array) -> Grouping | None:
    """Average linkage over the cells of a table of `interference`; None for fewer than two tasks.

    The distance of two tasks is 1 minus the mean of I_ij and I_ji, clipped to [-1, 1]: 0 where each step serves the
    other task as well as its own, 1 where they do not matter to each other, 2 where each undoes the other. A row
    without signal says nothing: its direction is left out, and two such tasks are at distance 1.

    A cut of the tree is supported if its groups are opposed and stable. Every two of them are opposed: at least half of
    the cells between them that have a signal are conflicts, and at most a quarter as many are synergies. They are
    stable: the matrix is resampled and cut into as many groups by the same linkage, and the mean adjusted Rand index to
    the groups of the matrix itself is at least `STABLE`; of single tasks it is always 1. Of the supported cuts the one
    with the most conflicts less synergies between groups is taken, of equals the one with the fewest groups.

    Args:
        table: A row for each pair of tasks: affected, stepped, value, verdict.
        draws: Resamples of the values [replicates, tasks i, tasks j], in the order of the table.

    Returns:
        The tree, and the split that is supported.
    """
    tasks = list(dict.fromkeys(table["affected"]))
    if len(tasks) < 2:
        return None
    cells = table["value"], shown_verdicts(table)
    values, verdicts = (column.to_numpy().reshape(len(tasks), -1) for column in cells)
    merges = _tree(values, verdicts, optimal_ordering=True)
    whole, *cuts = _cuts(merges, len(tasks))
    opposed = [parts for parts in cuts if _score(verdicts, parts)[0] > 0]
    stability = _stability(opposed, draws[:RESAMPLES], verdicts)
    stable = [parts for parts in opposed if stability[len(parts)] >= STABLE]
    best = max([whole, *stable], key=lambda parts: _score(verdicts, parts))
    split = [[tasks[k] for k in part] for part in best]
    order = [tasks[k] for k in hierarchy.leaves_list(merges)]
    return Grouping(order, merges.tolist(), split, stability, _words(verdicts, best, split, stability))


def _tree(values: NDArray[Any], verdicts: NDArray[Any], **options: Any) -> NDArray[np.float64]:
    """Scipy's linkage of the tasks."""
    found: NDArray[np.float64] = hierarchy.linkage(
        squareform(distances(values, verdicts), checks=False), "average", **options
    )
    return found


def _stability(cuts: Sequence[Sequence[NDArray[np.intp]]], draws: Array, verdicts: NDArray[Any]) -> dict[int, float]:
    """{number of groups: the mean adjusted Rand index of the resamples' cuts into as many groups to the given one}."""
    from sklearn.metrics import adjusted_rand_score  # takes long to import, and `show` has no need of it

    trees = [_tree(values, verdicts) for values in draws] if cuts else []
    found = {}
    for parts in cuts:
        own = np.empty(len(verdicts), dtype=int)
        for name, part in enumerate(parts):
            own[part] = name
        others = Counter(tuple(hierarchy.fcluster(tree, len(parts), "maxclust")) for tree in trees)  # few are different
        scores = [adjusted_rand_score(own, other) for other in others]
        found[len(parts)] = float(np.average(scores, weights=list(others.values())))
    return found


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


def _words(
    verdicts: NDArray[Any],
    parts: Sequence[NDArray[np.intp]],
    split: Sequence[Sequence[str]],
    stability: Mapping[int, float],
) -> str:
    conflicts = int((verdicts == Verdict.CONFLICT.value).sum())
    if len(parts) == 1:
        return f"{NOTHING}: {_reason(conflicts, stability)}."
    found = [_between(verdicts, a, b) for a, b in combinations(parts, 2)]
    between, judged = sum(cell[0] for cell in found), sum(cell[2] for cell in found)
    groups = "; ".join(several(names) for names in split)
    return (
        f"Conflict lies between groups of tasks ({groups}): {between} of the {counted(judged, 'pair')} between them "
        f"conflict beyond noise, and {conflicts - between} within them. Resamples find the same groups with an "
        f"agreement of {stability[len(parts)]:.2f} (adjusted Rand index)."
    )


def _reason(conflicts: int, stability: Mapping[int, float]) -> str:
    """Why no split is supported."""
    if not conflicts:
        return "no pair of tasks conflicts beyond noise"
    if not stability:
        return "its conflicts do not fall between groups of tasks"
    told = several([f"{counted(count, 'group')} {value:.2f}" for count, value in stability.items()])
    return (
        "groups of its tasks are opposed, but resamples do not find the same groups (agreement for "
        f"{told}; {STABLE} is the least)"
    )
