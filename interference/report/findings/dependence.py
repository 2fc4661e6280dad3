"""What intervals take for granted of a run's units, what was found of them, and how far its tasks share groups."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from interference.report.summary import RunSummary
from interference.run import Run
from interference.run.phrases import counted
from interference.run.remarks import NAMED, dependent

MOST_TASKS = 12
"""Tasks of the page's table of groups in common; those that share most, where more do."""
_SHOWN = ("assumed", "tasks", "groups", "overlap", "shown", "sharing")


def dependences(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """What is assumed and found of each run, and its overlap; runs of which the same is true stand together.

    Each has labels, assumed, found (sentences) and, in the order of its tasks, groups (how many each has) and overlap
    (a row of shares of each), both empty where no groups are known, shown (places of the tasks that share most groups)
    and sharing (how many share any).
    """
    alike: list[tuple[dict[str, Any], list[RunSummary]]] = []
    for run in runs:
        own = {"assumed": assumed(run.run), "common": _common(run.run), **_overlap(run.run)}
        same = next((members for other, members in alike if other == own), None)
        if same is None:
            alike.append((own, [run]))
        else:
            same.append(run)
    return [
        {"labels": [run.label for run in members], "found": found(members), **{key: own[key] for key in _SHOWN}}
        for own, members in alike
    ]


def assumed(run: Run) -> str:
    """What every interval and verdict of a run takes for granted, in one sentence."""
    if run.groups is None:
        return (
            "This run has no groups, so its units were treated as independent: where examples share pictures or "
            "documents, its intervals and verdicts promise too much; compute it again."
        )
    return (
        "Intervals and verdicts assume that units of different groups are independent. Examples that share a picture, "
        "or whatever a task's group names, form one group; so do copies of an example."
    )


def found(runs: Sequence[RunSummary]) -> str:
    """What the units are like of runs whose units have the same groups, in one sentence."""
    ends = [_effective(run) for run in runs]
    if len(runs) > 1:
        ends = [f"in {run.label} {end}" for run, end in zip(runs, ends, strict=True)]
    return f"Here {_common(runs[0].run)}; {'; '.join(ends)}."


def _common(run: Run) -> str:
    """What holds of a run's units and their groups."""
    parts = [_grouped(run), _shared(run)]
    return ", and ".join(part for part in parts if part)


def _grouped(run: Run) -> str:
    """How many groups the units are of, and where they are fewest for their number."""
    if run.groups is None:
        return "nothing is known about groups or about what tasks have in common"
    if not dependent(run.probes):
        return f"each of the {counted(len(run.probes), 'unit')} is a group of its own"
    groups, units = _counts(run.probes), run.probes["task"].value_counts(sort=False)
    said = f"{counted(len(run.probes), 'unit')} form {counted(run.probes['group'].nunique(), 'group')}"
    least = str((groups / units).idxmin())
    fewest = f" ({least} has the fewest for its size: {counted(groups[least], 'group')} for {units[least]} units)"
    return said + (fewest if groups[least] < units[least] else "")


def _shared(run: Run) -> str:
    """How many pairs of tasks have groups in common, and which the largest share."""
    if run.groups is None or len(run.tasks) < 2:
        return ""
    shares = np.triu(np.maximum(_shares(run), _shares(run).T))  # of the groups of whichever has fewer
    sharing = sorted(zip(*np.nonzero(shares), strict=True), key=lambda pair: -shares[pair])
    if not sharing:
        return "no two tasks have one in common"
    named = [f"{run.tasks[i]} and {run.tasks[j]} {shares[i, j]:.0%}" for i, j in sharing[:NAMED]]
    verb, most = "has" if len(sharing) == 1 else "have", "most: " if len(sharing) > NAMED else ""
    pairs = counted(len(shares) * (len(shares) - 1) // 2, "pair")
    return f"{len(sharing)} of {pairs} of tasks {verb} some in common ({most}{', '.join(named)})"


def _effective(run: RunSummary) -> str:
    """How many units (groups, where units have them) effectively make up the task with fewest for their number."""
    grouped = run.run.groups is not None and dependent(run.run.probes)
    counts = _counts(run.run.probes) if grouped else run.signal["units"]
    least = str((run.signal["effective"] / counts).idxmin())
    noun, effective = "groups" if grouped else "units", float(run.signal["effective"][least])
    return f"{least} has {effective:.0f} effective {noun} of {counts[least]}, the fewest for its size"


def _overlap(run: Run) -> dict[str, Any]:
    if run.groups is None:
        return {"tasks": run.tasks, "groups": [], "overlap": [], "shown": [], "sharing": 0}
    shares = _shares(run)
    most = np.maximum(shares.max(axis=0, initial=0), shares.max(axis=1, initial=0))
    shown = sorted(np.argsort(-most, kind="stable")[: min(MOST_TASKS, int((most > 0).sum()))].tolist())
    groups = _counts(run.probes)[run.tasks].tolist()
    table = {"tasks": run.tasks, "groups": groups, "overlap": run.overlap().to_numpy().tolist()}
    return {**table, "shown": shown, "sharing": int((most > 0).sum())}


def _shares(run: Run) -> Any:
    """[tasks, tasks]: `Run.overlap`, 0 for a task and itself."""
    shares = run.overlap().to_numpy(copy=True)
    np.fill_diagonal(shares, 0)
    return shares


def _counts(probes: pd.DataFrame) -> pd.Series:
    """How many groups the units of every task are of."""
    return probes.groupby("task", sort=False)["group"].nunique()
