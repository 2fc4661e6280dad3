"""The summary of one run: tidy tables by scope and choice, the null, and each task's signal."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from interference.advice.grouping import RESAMPLES
from interference.blocks import Scope
from interference.errors import MeasurementError
from interference.report.scopes import BASE, WHOLE, Choice, Contents
from interference.run import Run
from interference.run.remarks import AT_ODDS, has_null, shown_verdicts, too_few
from interference.statistics import uncertainty
from interference.statistics.layout import Array, Preconditioned
from interference.statistics.resamples import Resamples
from interference.statistics.significance import Verdict
from mixlora.common.progress import Progress

COLUMNS = ("value", "low", "high", "q", "verdict", "nonpositive", "leverage")
_WORDS = ("verdict", "at_odds")


@dataclass(frozen=True)
class RunSummary:
    """A run with everything that a report says of it.

    Attributes:
        label: its name in the report.
        run: the run.
        tables: {scope: {choice: the table of `Run.table`}}.
        signal: of `Run.signal`.
        null: of `Run.null`; empty where a task has fewer than 4 units.
        empty: scopes in which every gradient is zero.
        draws: resamples [replicates, tasks, tasks] of interference over all layers, by which groups are found stable.
    """

    label: str
    run: Run
    tables: dict[Scope, dict[Choice, pd.DataFrame]]
    signal: pd.DataFrame
    null: pd.DataFrame
    empty: list[Scope] = field(default_factory=list)
    draws: Array = field(default_factory=lambda: np.empty((0, 0, 0)))

    @cached_property
    def few(self) -> dict[str, int]:
        """The tasks with too few groups for an interval of own Delta, over all layers: {task: how many it has}."""
        return too_few(self.run.gram(), self.run.probes)

    @property
    def kind(self) -> str:
        """The method whose checkpoint was measured."""
        return "MixLoRA" if self.run.selections else "LoRA"

    @property
    def pairs(self) -> pd.DataFrame:
        """The cells of two different tasks over all layers, as the ratio of means, with the verdicts to show."""
        cells = off_diagonal(self.tables[WHOLE][BASE])
        return cells.assign(verdict=shown_verdicts(cells))

    @property
    def loss(self) -> float:
        """Mean over the tasks of the mean loss of their units, nats per token."""
        return float(self.signal["loss"].mean())


def off_diagonal(table: pd.DataFrame) -> pd.DataFrame:
    """The cells of two different tasks."""
    return table[table["affected"] != table["stepped"]]


def rows(table: pd.DataFrame) -> list[Any]:
    """The rows of a table, their columns as attributes."""
    return list(table.itertuples())


def summarise(label: str, run: Run, contents: Contents, replicates: int, progress: Progress) -> RunSummary:
    """The tables that a page shows of a run, one Gram read for each scope.

    Raises:
        MeasurementError: if every gradient of the run is zero.
    """
    tables: dict[Scope, dict[Choice, pd.DataFrame]] = {}
    empty, done, total = [], 0, sum(len(choices) for choices in contents.grid.values())
    draws: Array = np.empty((0, 0, 0))
    for scope, choices in contents.grid.items():
        theta = run.theta(**scope.options)
        there = bool(np.any(theta.grams if isinstance(theta, Preconditioned) else theta))
        if not there:
            empty.append(scope)
        resamples = resamples_of(run, theta, replicates)
        for choice in choices if there else []:
            tables.setdefault(scope, {})[choice] = table_of(resamples, choice)
            done += 1
            progress(f"matrices of {label}", done, total)
        if scope == WHOLE and there:
            draws = resamples.of(BASE.estimand)[1][:RESAMPLES]
    if WHOLE in empty:
        raise MeasurementError(f"every gradient of {label!r} is zero: there is nothing to report; compute it again")
    return RunSummary(label, run, tables, run.signal(), null_of(run), empty, draws)


def resamples_of(run: Run, gram: Any, replicates: int, seed: int | None = None) -> Resamples:
    """The resamples of a scope whose Gram is known, as `Run.table` draws them, by the run's own seed or another."""
    seed = run.seed if seed is None else seed
    return Resamples(gram, list(run.probes["task"]), replicates=replicates, seed=seed, groups=run.groups)


def table_of(resamples: Resamples, choice: Choice) -> pd.DataFrame:
    """What `Run.table` gives of a scope."""
    return pd.DataFrame(uncertainty.table_of(resamples, choice.estimand).columns())


def null_of(run: Run) -> pd.DataFrame:
    """The split-half null of the ratio of means, or no row where a half would have a single unit."""
    if not has_null(run.gram(), run.probes):
        return pd.DataFrame(columns=["mean", "low", "high"], index=pd.Index([], name="task"), dtype=float)
    return run.null()


def cells(table: pd.DataFrame, tasks: Sequence[str], columns: Sequence[str] = COLUMNS) -> dict[str, list[Any]]:
    """Columns of a table as lists over all pairs of `tasks`, row by row; empty cells for tasks that it lacks.

    "at_odds" is among them where a value does not bear its verdict out.
    """
    place = {task: k for k, task in enumerate(tasks)}
    at = [place[i] * len(tasks) + place[j] for i, j in zip(table["affected"], table["stepped"], strict=True)]
    if "at_odds" in table and table["at_odds"].any():
        columns = [*columns, "at_odds"]
    found = {}
    for name in columns:
        words = name in _WORDS
        spread = np.full(len(tasks) ** 2, "" if words else np.nan, dtype=object if words else None)
        values = table[name].to_numpy()
        spread[at] = np.where(pd.isna(values), "", values) if words else values
        found[name] = spread.tolist()
    return found


def counts(table: pd.DataFrame) -> dict[str, int]:
    """How many cells of two different tasks show each verdict; and how many are at odds with theirs, where some are."""
    shown = shown_verdicts(off_diagonal(table)).value_counts()
    found = {verdict.value: int(shown.get(verdict.value, 0)) for verdict in Verdict if verdict is not Verdict.SELF}
    return found | ({AT_ODDS: int(shown[AT_ODDS])} if AT_ODDS in shown else {})
