"""Interference along the model's depth and along a training: rows for charts, taken from tables that are there."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from interference.report.scopes import BASE, layer_of, words_of
from interference.report.summary import RunSummary, off_diagonal, rows
from interference.run import Run
from interference.statistics.significance import Verdict

ROWS = 12_000
"""Rows of a profile or a trajectory in a report, over all runs."""
_STEP = re.compile(r"(?:step|checkpoint)[\s_=:-]*(\d+)", re.IGNORECASE)


def profile(run: RunSummary, room: int) -> tuple[list[dict[str, Any]], int]:
    """I as the ratio of means in every layer, and how many pairs of tasks were left out.

    Where the layers of all pairs are more rows than `room`, the pairs that are clear over all layers come first, then
    those with the largest values.
    """
    scopes = [(scope, made[BASE]) for scope, made in run.tables.items() if layer_of(scope) is not None and BASE in made]
    pairs = ranked(run.pairs)
    kept = pairs[: room // len(scopes)] if scopes else []
    found = [
        {"affected": row.affected, "stepped": row.stepped, "layer": layer_of(scope)}
        | {name: words_of(scope)[name] for name in ("modules", "side")}
        | {name: getattr(row, name) for name in ("value", "low", "high")}
        for scope, table in scopes
        for row in _of(table, kept)
    ]
    return found, len(pairs) - len(kept) if scopes else 0


def trajectory(runs: Sequence[RunSummary]) -> tuple[list[dict[str, Any]], int]:
    """I as the ratio of means at every step of a series of runs, and how many pairs of tasks were left out.

    A run's step is its meta's "step", which `interference.InterferenceCallback` writes, or the number behind "step" or
    "checkpoint" in its label. A series is two or more runs whose labels are else the same.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    for place, run in enumerate(runs):
        if (step := step_of(run.label, run.run)) is not None:
            series.setdefault(series_of(run.label), []).append((place, step))
    points = [(name, *point) for name, places in series.items() if len(places) > 1 for point in places]
    if not points:
        return [], 0
    pairs = list(dict.fromkeys(pair for _, place, _ in points for pair in ranked(runs[place].pairs)))
    kept = pairs[: ROWS // len(points)]
    found = [
        {"run": place, "series": name, "step": step, "affected": row.affected, "stepped": row.stepped}
        | {end: getattr(row, end) for end in ("value", "low", "high")}
        for name, place, step in points
        for row in _of(runs[place].pairs, kept)
    ]
    return found, len(pairs) - len(kept)


def in_step_order(runs: Mapping[str, Run]) -> dict[str, Run]:
    """The same runs, those of each series in the order of their steps, within the places that the series takes."""
    steps = {label: step for label, run in runs.items() if (step := step_of(label, run)) is not None}
    series: dict[str, list[str]] = {}
    for label in sorted(steps, key=steps.__getitem__):
        series.setdefault(series_of(label), []).append(label)
    waiting = {name: iter(labels) for name, labels in series.items()}
    labels = [next(waiting[series_of(label)]) if label in steps else label for label in runs]
    return {label: runs[label] for label in labels}


def step_of(label: str, run: Run) -> float | None:
    """The optimizer step at which a run was measured, if it is known."""
    step = run.meta.get("step")
    if isinstance(step, int | float):
        return float(step)
    found = _STEP.search(label)
    return float(found[1]) if found else None


def series_of(label: str) -> str:
    """A label without its step: "lora" of "lora/step-10" and of "lora, step 10"."""
    return _STEP.sub("", label).strip(" ,;:/\\_-")


def ranked(pairs: pd.DataFrame) -> list[tuple[str, str]]:
    """Pairs of tasks (affected, stepped): clear cells first, then by the size of their value."""
    clear = pairs["verdict"].isin([Verdict.CONFLICT.value, Verdict.SYNERGY.value])
    order = pairs.assign(clear=clear, size=pairs["value"].abs()).sort_values(["clear", "size"], ascending=False)
    return list(zip(order["affected"], order["stepped"], strict=True))


def _of(table: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> Iterator[Any]:
    """The rows of these pairs, as they stand in the table."""
    wanted = set(pairs)
    return (row for row in rows(off_diagonal(table)) if (row.affected, row.stepped) in wanted)
