"""How two runs differ, cell by cell on the same examples, and what may be concluded from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, groupby, pairwise

import numpy as np
import pandas as pd

from interference.blocks import Scope
from interference.errors import MeasurementError
from interference.report.findings.depth import series_of, step_of
from interference.report.scopes import BASE, PAPER, WHOLE, Choice, seconds_of
from interference.report.summary import RunSummary, counts, off_diagonal, resamples_of, rows
from interference.run.phrases import cell, counted, number
from interference.run.remarks import other_blocks
from interference.statistics.significance import Change, Verdict
from interference.statistics.uncertainty import change_of

COLUMNS = ("value", "low", "high", "q", "verdict")
ALL_PAIRS = 4
"""Of up to this many runs, each is compared with each."""
MOST = 10
"""Pairs of runs that a report compares."""
SECONDS = 30.0
"""Estimated time for all comparisons on one core."""
UNEQUAL = 0.1
"""Relative difference of mean losses beyond which a comparison of runs misleads."""


@dataclass(frozen=True)
class Compared:
    """The second run minus the first.

    Attributes:
        first: place of the first run.
        second: place of the second.
        tables: {scope: {choice: affected, stepped, value, low, high, q, verdict}}.
        words: what it comes to.
    """

    first: int
    second: int
    tables: dict[Scope, dict[Choice, pd.DataFrame]]
    words: str


def partners(runs: Sequence[RunSummary]) -> list[tuple[int, int]]:
    """Which runs to compare: each with each where they are few.

    Else neighbours of one method in the given order, and each MixLoRA with the LoRA whose loss is nearest.
    """
    if len(runs) <= ALL_PAIRS:
        return list(combinations(range(len(runs)), 2))
    kinds = {kind: [k for k, run in enumerate(runs) if run.kind == kind] for kind in ("LoRA", "MixLoRA")}
    found = {pair for places in kinds.values() for pair in pairwise(places)}
    for place in kinds["MixLoRA"] if kinds["LoRA"] else []:
        found.add((min(kinds["LoRA"], key=lambda k: abs(runs[k].loss - runs[place].loss)), place))
    return sorted(found, key=lambda pair: (runs[pair[0]].kind == runs[pair[1]].kind, pair))


def difference(runs: Sequence[RunSummary], pair: tuple[int, int], replicates: int, share: int) -> Compared:
    """The change from one run to another, over all layers first, then wherever both were measured and time allows.

    Args:
        runs: the measured runs.
        pair: places of two that hold the same examples.
        replicates: resamples.
        share: how many pairs of runs share the time.
    """
    first, second = (runs[place] for place in pair)
    room = int(SECONDS / share / (2 * seconds_of(first.run, replicates)))
    tables: dict[Scope, dict[Choice, pd.DataFrame]] = {}
    for scope, wanted in groupby(_wanted(first, second)[: max(room, 1)], lambda found: found[0]):
        tables[scope] = change(first, second, scope, [choice for _, choice in wanted], replicates)
    return Compared(*pair, tables, _words(first, second, tables[WHOLE][BASE]))


def change(
    first: RunSummary, second: RunSummary, scope: Scope, choices: Sequence[Choice], replicates: int
) -> dict[Choice, pd.DataFrame]:
    """The cells of `interference.compare` for every choice, with the difference as the value."""
    seed = first.run.seed  # one for both; the groups are each run's own
    a, b = (resamples_of(one.run, one.run.theta(**scope.options), replicates, seed) for one in (first, second))
    found = {}
    for choice in choices:
        try:
            table = pd.DataFrame(change_of(a, b, choice.estimand).columns())
        except MeasurementError as error:
            raise MeasurementError(f"{first.label!r} and {second.label!r} cannot be compared: {error}") from None
        table = table.rename(columns={"difference": "value"})
        own = table["affected"] == table["stepped"]
        found[choice] = table.assign(verdict=np.where(own, Verdict.SELF.value, table["verdict"]))
    return found


def unequal_loss(first: RunSummary, second: RunSummary) -> str | None:
    """A warning where the mean losses differ too much for like to be compared with like.

    None for two moments of one training, whose losses are meant to differ.
    """
    least = min(first.loss, second.loss)
    if _one_training(first, second):
        return None
    if least <= 0 or abs(first.loss - second.loss) / least <= UNEQUAL:
        return None
    return (
        f"the mean losses differ ({number(first.loss)} and {number(second.loss)} nats per token), and interference "
        "changes along a training whatever the method: compare checkpoints at about the same loss"
    )


def _one_training(first: RunSummary, second: RunSummary) -> bool:
    """Whether they are two moments of one training."""
    steps = [step_of(run.label, run.run) is not None for run in (first, second)]
    return all(steps) and series_of(first.label) == series_of(second.label)


def _wanted(first: RunSummary, second: RunSummary) -> list[tuple[Scope, Choice]]:
    """The most telling first: all layers, then each further scope by the ratio of means, then other choices."""
    shared = [scope for scope in first.tables if scope in second.tables]
    choices = [BASE, PAPER, Choice("delta"), Choice("cosine")]
    return [(WHOLE, choice) for choice in choices] + [(scope, BASE) for scope in shared if scope != WHOLE]


def _in_short(lower: pd.DataFrame, higher: pd.DataFrame) -> str:
    """Whether tasks interfere less in the second run, in a word or two; nothing where no pair changes."""
    if lower.empty and higher.empty:
        return ""
    if lower.empty or higher.empty:
        return "less interference: " if lower.empty else "more interference: "
    return "mixed: "


def _words(first: RunSummary, second: RunSummary, table: pd.DataFrame) -> str:
    cells = off_diagonal(table)
    lower, higher = (cells[cells["verdict"] == kind.value] for kind in (Change.LOWER, Change.HIGHER))
    along = _one_training(first, second)  # what changes there is no method's merit
    short = "" if along else _in_short(lower, higher)
    found = f"{second.label} against {first.label}, on the same examples: {short}"
    if cells.empty:
        return f"{second.label} against {first.label}: one task alone, so there is no pair of tasks to compare."
    if lower.empty and higher.empty:
        found += f"no pair of {len(cells)} changes beyond noise"
    else:
        found += f"I is higher in {len(higher)} and lower in {len(lower)} of {counted(len(cells), 'pair')} beyond noise"
        extreme = pd.concat([lower, higher])
        row = max(rows(extreme), key=lambda row: abs(row.value))
        found += f", most: {cell(row, 'change of I')}"
    before, after = (counts(run.tables[WHOLE][BASE])["conflict"] for run in (first, second))
    found += f"; conflicts {before} before, {after} after"
    if along:
        found += f", while the mean loss goes from {number(first.loss)} to {number(second.loss)} nats per token"
    warning = unequal_loss(first, second)
    if apart := other_blocks(first.run.blocks["name"], second.run.blocks["name"]):
        warning = apart
    return f"{found}. But {warning}." if warning else f"{found}."
