"""Dropping: examples whose gradient surely works against their own task and against the other tasks.

For example u of task i, the products <g_u, g_v> are averaged over the others v of i, and over those of every other
task, one number for each group. By Student's t of these, u works against a mean if its product with it is below 0
beyond what the draw of v allows. Both must be so: p is the larger of the two. Benjamini-Hochberg holds the false
discovery rate over all examples at 5%.

Such an example need not be wrong: where examples differ much, many ordinary ones point away from a small mean. So they
are to be looked at, the clearest first, and never more than a twentieth of a task.

Not here: which units carry a task (`statistics.carriers`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from interference.run import Run
from interference.statistics.layout import Array, Layout
from interference.statistics.significance import added, benjamini_hochberg

RATE = 0.05
"""The false discovery rate."""
SHARE = 0.05
"""Of a task's examples, the most that are named."""


def against(run: Run) -> pd.DataFrame:
    """The examples of a run that work against their own task and the others.

    Args:
        run: Of single examples; batches of several have none.

    Returns:
        One row an example, the clearest first: task, ids, source, q.
    """
    probes = run.probes
    if int(((run.meta.get("config") or {}).get("probe") or {}).get("unit_size") or 1) > 1:
        return probes.iloc[:0][["task", "ids", "source"]].assign(q=np.empty(0))
    p = p_values(run.gram().astype(float), list(probes["task"]), run.groups)
    found = probes[["task", "ids", "source"]].assign(q=benjamini_hochberg(p), p=p)
    found = found[found["q"] <= RATE].sort_values("p", kind="stable")
    most = probes["task"].value_counts()
    kept = [place < int(SHARE * most[task]) for task, place in zip(found["task"], _places(found["task"]), strict=True)]
    return found[np.array(kept, dtype=bool)].drop(columns="p").reset_index(drop=True)


def _places(names: Iterable[str]) -> Iterator[int]:
    """The place of each name among those that are equal, from 0."""
    seen: Counter[str] = Counter()
    for name in names:
        yield seen[name]
        seen[name] += 1


def p_values(gram: Array, tasks: Sequence[str], groups: Sequence[int] | None = None) -> NDArray[np.float64]:
    """One-sided p for each unit that its product with its own task's mean or the sum of others' is not below 0.

    Args:
        gram: Inner products of gradients [units, units].
        tasks: The task of every unit.
        groups: A label of every unit, the same for those that are not independent; None where all are.

    Returns:
        [units]; NaN where a task has too few groups besides the unit's own, or there is a single task.
    """
    layout = Layout.of(tasks, groups)
    cells, count = layout.cells, len(layout.tasks)
    of_cell = np.repeat(np.arange(count), cells.counts)
    means = cells.averaging @ layout.group(gram, (0, 1))  # [cells, units]: one number for each group of a task
    found = np.full(len(tasks), np.nan)
    for unit, own in enumerate(cells.of_unit if count > 1 else ()):
        apart = cells.label != cells.label[own]
        terms = _terms(means[apart, unit], of_cell[apart], count)
        rest = np.arange(count) != of_cell[own]
        found[layout.order[unit]] = np.maximum(_below(terms[~rest]), _below(terms[rest]))
    return found


def _terms(products: Array, tasks: NDArray[np.intp], count: int) -> Array:
    """For each task the mean of a unit's products, the variance of that mean and its freedom, [tasks, 3]."""
    groups = np.bincount(tasks, minlength=count)
    with np.errstate(divide="ignore", invalid="ignore"):  # a task with fewer than two groups has no variance
        mean = np.bincount(tasks, products, count) / groups
        variance = np.bincount(tasks, (products - mean[tasks]) ** 2, count) / (groups - 1) / groups
    return np.stack([mean, np.where(groups > 1, variance, np.nan), groups - 1.0], axis=1)


def _below(terms: Array) -> float:
    """One-sided p that a sum of means [terms, (value, variance, freedom)] is not below 0."""
    value = terms[:, 0].sum()
    variance, degrees = added(terms[:, 1:2], terms[:, 2:3])
    if variance[0] == 0:
        return float(value >= 0)
    return float(stats.t.cdf(value / np.sqrt(variance[0]), degrees[0]))
