"""Evidence: the matrix by which tasks are grouped, and whether training has been found to follow it.

Of one run it is the matrix that a validation beside it found to rank best what training did, else interference. Of
several runs, checkpoints along a training, it is the mean of their interference.

Not here: the groups (`grouping`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from interference.blocks import Space
from interference.prediction import Validation, holding
from interference.prediction.horizons import beside
from interference.run import Run
from interference.run.phrases import counted, number
from interference.statistics.estimand import Estimand
from interference.statistics.intervals import interval
from interference.statistics.layout import Array
from interference.statistics.resamples import Resamples
from interference.statistics.significance import NOT_JUDGED, Verdict, benjamini_hochberg, p_value, verdicts
from interference.statistics.uncertainty import table_of

BASE = "interference"
"""The name of the matrix that is taken where no validation has found one."""
_LEVEL = 0.95


@dataclass(frozen=True)
class Evidence:
    """A matrix by which tasks are grouped.

    Attributes:
        name: of the prediction.
        table: a row for each pair of tasks: affected, stepped, value, verdict.
        draws: resamples of the values [replicates, tasks i, tasks j].
        validated: whether a validation found that training follows it.
        words: which matrix it is and what a validation says of it, as a clause.
    """

    name: str
    table: pd.DataFrame
    draws: Array
    validated: bool
    words: str


def evidence(runs: Sequence[Run], places: Sequence[Path]) -> Evidence:
    """The matrix by which tasks are grouped.

    Args:
        runs: of the same tasks and examples, at least one.
        places: their directories.

    Returns:
        The matrix with resamples.
    """
    if len(runs) > 1:
        why = "a validation is of single checkpoints, so this mean is not validated"
        words = f"the mean of I over {len(runs)} runs, each task's row over those in which it has a signal; {why}"
        return Evidence(BASE, *_mean([_of_run(run, BASE) for run in runs]), False, words)
    found, step, why = holding.beside(places[0], runs[0])
    if found is None or step is None:
        why = why or "there is no validation beside the run"
        return Evidence(BASE, *_of_run(runs[0], BASE), False, f"I over all its blocks; not validated: {why}")
    known = dict(_candidates(runs[0], places[0]))
    best = _best(found, step, list(known))
    if best is None:
        tested = counted(len(known), "matrix") if len(known) == 1 else f"{len(known)} matrices"
        why = f"the validation beside the run did not find any of {tested} to rank what training did"
        return Evidence(BASE, *known[BASE], False, f"I over all its blocks; not validated: {why}")
    return Evidence(str(best["prediction"]), *known[str(best["prediction"])], True, _told(best))


def _candidates(run: Run, place: Path) -> Iterator[tuple[str, tuple[pd.DataFrame, Array]]]:
    """The matrices that may group tasks, by their names in a validation.

    They are relative to a task's own step: 1 is as good as that, 0 does not matter. Parts of a model are not among
    them: they are many, and the best of many looks good by chance.
    """
    yield BASE, _of_run(run, BASE)
    yield "cosine", _of_run(run, "cosine")
    if run.meta.get("adam") is not None:
        yield "interference of AdamW's step", _of_run(run, BASE, Space.ADAM)
    ahead, _ = beside(place, run)
    if ahead is not None and ahead.tasks == run.tasks:
        for steps in ahead.steps:
            name = f"lookahead interference, {steps} step{'s' * (steps > 1)}"
            yield name, (ahead.table(BASE, steps), ahead.resamples(steps))


def _best(found: Validation, step: int, names: Sequence[str]) -> "pd.Series[float] | None":
    """At the longest horizon where any of the matrices was found to rank what training did, the best of them."""
    rows = found.table(parts=False)
    rows = rows[(rows["step"] == step) & rows["prediction"].isin(names) & (rows["low"] > 0)]
    if rows.empty:
        return None
    rows = rows[rows["horizon"] == rows["horizon"].max()]
    return rows.loc[rows["value"].idxmax()]


def _told(best: "pd.Series[float]") -> str:
    """What the validation found of the matrix that is taken."""
    value, low, high = (number(float(best[name])) for name in ("value", "low", "high"))
    return (
        f"{best['prediction']}, which the validation beside the run found to rank what training did after "
        f"{counted(int(best['horizon']), 'step')} (Spearman within rows {value} [{low}, {high}], {best['truth']})"
    )


def _of_run(run: Run, metric: str, space: Space = Space.PARAMETERS) -> tuple[pd.DataFrame, Array]:
    """The table of a metric over all blocks, and its resamples."""
    resamples = Resamples(run.theta(space=space), list(run.probes["task"]), seed=run.seed, groups=run.groups)
    estimand = Estimand(metric)
    return pd.DataFrame(table_of(resamples, estimand).columns()), resamples.of(estimand)[1]


def _mean(found: Sequence[tuple[pd.DataFrame, Array]]) -> tuple[pd.DataFrame, Array]:
    """The mean of matrices whose resamples draw the same units: its verdicts are of the mean of I.

    A row of a run in which the task has no signal, or is carried by a few units, does not count.
    """
    tables, size = [table for table, _ in found], found[0][1].shape[1:]
    heard = np.stack([_heard(table, size) for table in tables])
    values = _over([table["value"].to_numpy(dtype=float).reshape(size) for table in tables], heard)
    draws = _over([each for _, each in found], heard)
    low, high = interval(draws, _LEVEL)
    off = ~np.eye(size[0], dtype=bool)
    p = p_value(values, draws.var(axis=0), np.full(size, np.inf))
    q = benjamini_hochberg(np.where(off, p, np.nan))
    signal = np.where(heard.any(axis=0), 1.0, np.nan)
    verdict = verdicts(low, high, signal, q, _LEVEL, np.zeros(size[0], dtype=bool))
    cells = {"value": values.ravel(), "low": low.ravel(), "high": high.ravel(), "verdict": verdict.ravel()}
    return tables[0][["affected", "stepped"]].assign(**cells), draws


def _heard(table: pd.DataFrame, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """The tasks whose rows have verdicts."""
    verdict = table["verdict"].to_numpy().reshape(size)
    return np.any(~np.isin(verdict, [*NOT_JUDGED, Verdict.SELF.value]), axis=1)


def _over(arrays: Sequence[Array], heard: NDArray[np.bool_]) -> Array:
    """The mean of arrays [..., i, j] over those whose row i is heard [arrays, i]; NaN where none is."""
    stacked = np.stack(arrays)
    kept = heard.reshape(len(arrays), *[1] * (stacked.ndim - 3), -1, 1)
    count = kept.sum(axis=0)
    total = np.where(kept, stacked, 0).sum(axis=0)
    found: Array = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return found
