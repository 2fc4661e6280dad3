"""Did the advice help? The arms of a trial beside each other, where a run's advice was tried by training."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from interference.advice.arms import MIXLORA
from interference.advice.tried import Trial
from interference.report.summary import RunSummary
from interference.run.phrases import counted

_COLUMNS = ("loss", "right", "against_random", "against_together")
_ENDS = {"value": "", "low": "_low", "high": "_high"}


def trials(summaries: Sequence[RunSummary], tried: Mapping[str, Trial]) -> list[dict[str, Any]]:
    """What a report shows of the trials of its runs' advice."""
    return [_shown(run.label, tried[run.label]) for run in summaries if run.label in tried]


def _shown(label: str, found: Trial) -> dict[str, Any]:
    table, by_task = found.table(), found.by_task()
    groups = {str(arm["name"]): arm["groups"] for arm in found.meta["arms"]}
    rows = []
    for row in table.to_dict("records"):
        own = by_task[by_task["arm"] == row["arm"]].set_index("task")["loss"]
        cells = {name: {end: _number(row[f"{name}{tail}"]) for end, tail in _ENDS.items()} for name in _COLUMNS}
        told = {"arm": str(row["arm"]), "groups": groups.get(str(row["arm"]), []), **cells}
        counts = {name: _number(row[name]) for name in ("adapters", "parameters")}
        rows.append({**told, **counts, "tasks": {str(task): float(loss) for task, loss in own.items()}})
    return {"label": label, "tasks": list(dict.fromkeys(found.examples["task"])), "how": _how(found), "rows": rows}


def _how(found: Trial) -> str:
    """The trainings, in sentences."""
    meta = found.meta
    parts = (
        f"Every arm took {counted(meta['steps'], 'optimizer step')} of "
        f"{meta['share'] * found.examples['task'].nunique()} examples in all, over all its adapters, with "
        f"{counted(len(found.losses), 'seed')}. What is read was neither probed nor trained on."
    )
    if MIXLORA in found.arms:
        parts += " The MixLoRA's factors are as many parameters as the LoRA with more ranks has; its routers are extra."
    return parts


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
