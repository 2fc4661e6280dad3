"""How far the first order holds: a run's I beside what real steps from the same checkpoint did, after each number."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from interference.prediction import Lookahead
from interference.report.scopes import BASE, WHOLE
from interference.report.summary import RunSummary
from interference.run.phrases import counted, number
from interference.statistics.agreement import Agreement, agreement

_SHOWN = ("value", "low", "high", "verdict")


def horizons(summaries: Sequence[RunSummary], ahead: Mapping[str, Lookahead]) -> list[dict[str, Any]]:
    """What a report shows of the lookaheads of its runs."""
    return [_horizon(run, ahead[run.label]) for run in summaries if run.label in ahead]


def _horizon(run: RunSummary, found: Lookahead) -> dict[str, Any]:
    tasks = [task for task in run.run.tasks if task in found.tasks]
    first = _matrix(run.tables[WHOLE][BASE], tasks)
    points, shown = [], []
    for steps in found.steps:
        table = found.table("interference", steps)
        table = table[table["affected"].isin(tasks) & table["stepped"].isin(tasks)]
        agreed = agreement(first, _matrix(table, tasks))
        others = table.loc[table["affected"] != table["stepped"], "verdict"]
        kinds = {kind: int((others == kind).sum()) for kind in ("conflict", "synergy", "unclear", "no-signal")}
        points.append({"steps": steps, "within": agreed.within, "overall": agreed.overall, **kinds})
        shown.append({"steps": steps, "rows": [_row(table, task, tasks) for task in tasks]})
    return {
        "label": run.label,
        "tasks": tasks,
        "words": _words(points, agreed),
        "recipe": _followed(found),
        "points": points,
        "matrices": shown,
    }


def _row(table: pd.DataFrame, affected: str, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """The cells of an affected task, in the order of the tasks."""
    own = table[table["affected"] == affected].set_index("stepped").loc[list(tasks)]
    return [{name: cell[name] for name in _SHOWN} for cell in own.to_dict("records")]


def _matrix(table: pd.DataFrame, tasks: Sequence[str]) -> NDArray[np.float64]:
    """The values of a tidy table [tasks i, tasks j]."""
    return (
        table.pivot(index="affected", columns="stepped", values="value")
        .reindex(index=list(tasks), columns=list(tasks))
        .to_numpy(dtype=float)
    )


def _words(points: Sequence[Mapping[str, Any]], agreed: Agreement) -> str:
    """The answer, in a sentence or two."""
    if agreed.rows == 0:
        return f"{counted(agreed.pairs, 'pair')} of tasks are too few to say whether I ranks what real steps do."
    near, far = points[0], points[-1]
    return (
        f"Within rows, I ranks the tasks as real steps along them do with a Spearman correlation of "
        f"{number(near['within'])} after {counted(near['steps'], 'step')} and of {number(far['within'])} after "
        f"{far['steps']} ({counted(agreed.pairs, 'pair')} of tasks, {counted(agreed.rows, 'row')}). 1 is the same "
        "order, 0 none."
    )


def _followed(found: Lookahead) -> str:
    """The recipe of the branches, in a sentence."""
    recipe = dict(found.meta.get("recipe") or {})
    return (
        f"Each branch trains on one task alone, {counted(len(found.seeds), 'seed')} of it: "
        f"{recipe.get('optimizer', 'AdamW without a state')}, a constant rate of "
        f"{recipe.get('learning_rate')}, batches of {recipe.get('batch_size')} examples."
    )
