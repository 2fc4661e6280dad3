"""How often the intervals and verdicts of a law's data sets are right: what the coverage tests hold, as a table.

    python -m tests.interference.statistics.coverage [DATASETS] [LAW ...]

prints the table of COVERAGE.md, one row for each of `LAWS` whose name holds one of the words.
"""

import sys
from collections import defaultdict
from dataclasses import astuple, dataclass, fields

import numpy as np

from interference.statistics.estimand import Estimand
from interference.statistics.uncertainty import Comparison, Resamples, Table, change_of, table_of
from tests.interference.statistics.laws import LAWS, Law

DELTA, RATIO = Estimand("delta"), Estimand("interference", reduce="ratio-of-means")
LESS = 2 / 3
"""Noise of the second run relative to the first, where the change between two runs is known not to be 0."""


@dataclass(frozen=True)
class Figures:
    """Shares, NaN where there is nothing to count.

    Attributes:
        carried: rows of tasks with a mean that are said to be carried by a few units.
        delta: cells of two tasks whose interval of Delta holds the truth, of those that have an interval.
        delta_or_none: the same, of all cells, one without an interval counted as right.
        own: tasks with a mean whose own Delta's interval holds the truth, of those that have an interval.
        own_or_none: the same, of all, one without an interval counted as right.
        ratio: cells of rows with a signal whose interval of the ratio of means holds the truth.
        conflict: cells without a conflict that are called so.
        synergy: cells without a synergy that are called so.
        signal: tasks whose mean is 0 and that are not said to have no signal.
        change: cells whose interval of the change of Delta between two runs holds the truth, of those that have one.
        change_or_none: the same, of all cells, one without an interval counted as right.
        change_of_ratio: as `change`, of the ratio of means, in rows of tasks with a mean.
        false_change: cells of two measurements of one law that are said to differ, in Delta or the ratio of means.
    """

    carried: float
    delta: float
    delta_or_none: float
    own: float
    own_or_none: float
    ratio: float
    conflict: float
    synergy: float
    signal: float
    change: float
    change_or_none: float
    change_of_ratio: float
    false_change: float


def measured(law: Law, datasets: int, replicates: int = 400, compared: bool = True) -> Figures:
    """The figures of a law over seeded data sets.

    Args:
        law: of the gradients.
        datasets: how many.
        replicates: of each bootstrap.
        compared: whether two runs are compared, too, which takes twice as long.
    """
    counted: dict[str, list[np.ndarray]] = defaultdict(list)
    for seed in range(datasets):
        first = resamples(law, law.gram(seed), seed, replicates)
        _count(counted, law, table_of(first, DELTA), table_of(first, RATIO))
        if compared:
            after = resamples(law, law.gram(seed, LESS * law.noise), seed, replicates)
            again = resamples(law, law.gram(seed, again=1), seed, replicates)
            _count_changes(counted, law, first, after, again)
    pooled = {name: np.concatenate(cells) for name, cells in counted.items()}
    found = {name: float(cells.mean()) for name, cells in pooled.items() if len(cells)}
    return Figures(**{field.name: found.get(field.name, np.nan) for field in fields(Figures)})


def resamples(law: Law, gram: np.ndarray, seed: int, replicates: int) -> Resamples:
    return Resamples(gram, law.tasks, replicates=replicates, seed=seed, groups=law.labels)


def covered(found: Table | Comparison, truth: np.ndarray) -> np.ndarray:
    """Whether every interval holds the truth; NaN where there is none."""
    return np.where(np.isnan(found.low), np.nan, (found.low <= truth) & (truth <= found.high))


def ratio(delta: np.ndarray) -> np.ndarray:
    """Delta relative to own Delta, NaN for a task without a mean."""
    own = np.diagonal(delta)
    return np.divide(delta, own[:, None], out=np.full_like(delta, np.nan), where=own[:, None] > 0)


def _count(counted: dict[str, list[np.ndarray]], law: Law, delta: Table, share: Table) -> None:
    truth, off, loud = law.delta(), ~np.eye(law.count, dtype=bool), np.diagonal(law.delta()) > 0
    hits, verdict = covered(delta, truth), delta.verdict
    counted["carried"].append(((verdict == "carried") & off).any(axis=1)[loud])
    for name, cells in (("delta", hits[off]), ("own", np.diagonal(hits)[loud])):
        counted[name].append(cells[~np.isnan(cells)])
        counted[f"{name}_or_none"].append(np.nan_to_num(cells, nan=1))
    counted["ratio"].append(covered(share, ratio(truth))[off & (verdict != "no-signal") & loud[:, None]])
    counted["conflict"].append((verdict == "conflict")[off & (truth >= 0)])
    counted["synergy"].append((verdict == "synergy")[off & (truth <= 0)])
    counted["signal"].append(((verdict != "no-signal") & off).any(axis=1)[~loud])


def _count_changes(
    counted: dict[str, list[np.ndarray]], law: Law, first: Resamples, after: Resamples, again: Resamples
) -> None:
    before, later = law.delta(), law.delta(LESS * law.noise)
    hits = covered(change_of(first, after, DELTA), later - before)
    counted["change"].append(hits[~np.isnan(hits)])
    counted["change_or_none"].append(np.nan_to_num(hits, nan=1).ravel())
    cells = ~np.eye(law.count, dtype=bool) & (np.diagonal(before) > 0)[:, None]
    counted["change_of_ratio"].append(covered(change_of(first, after, RATIO), ratio(later) - ratio(before))[cells])
    counted["false_change"] += [(change_of(first, again, one).verdict != "unclear").ravel() for one in (DELTA, RATIO)]


def main(arguments: list[str]) -> None:
    """Print the table."""
    datasets, words = int((arguments or ["200"])[0]), arguments[1:] or [""]
    print("| law |", " | ".join(field.name.replace("_", " ") for field in fields(Figures)), "|")
    print("|---" * (1 + len(fields(Figures))) + "|")
    for name, law in LAWS.items():
        if any(word in name for word in words):
            shares = ("–" if np.isnan(share) else f"{100 * share:.1f}" for share in astuple(measured(law, datasets)))
            print("|", name, "|", " | ".join(shares), "|", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
