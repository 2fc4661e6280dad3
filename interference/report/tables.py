"""The CSV files of a report: the same numbers as the page's, in full precision, for a spreadsheet or a script."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import pandas as pd

from interference.report.data import ReportData
from interference.report.scopes import BASE, WHOLE, key_of
from mixlora.common.spreadsheets import frame_csv

_WHOLE = key_of(WHOLE)
_READ = {name: getattr(BASE, name) for name in ("metric", "pairs", "reduce")}
"""How the numbers of the null, the profile and the trajectory are made."""


def render(report: ReportData) -> dict[str, bytes]:
    """The tables of a report: the content of every file by its name.

    `matrix-K.csv` is the K-th run's interference (ratio of means, all layers) as a matrix, rows affected and columns
    stepped; `cells.csv` every choice of metric over all layers, one row per cell; `differences.csv`, `signal.csv`,
    `null.csv`, `profile.csv`, `groups.csv`, `overlap.csv`, `lookahead.csv`, `trial.csv` and `trajectory.csv` are what
    their names say, where there is any. No file is named after a run or task.
    """
    frames = {f"matrix-{place + 1}": frame for place, frame in enumerate(_matrices(report))}
    rows = {
        "cells": _cells(report),
        "differences": _differences(report),
        "signal": _signal(report),
        **{name: _rows(report, name) for name in ("null", "profile")},
        "groups": _groups(report),
        "overlap": _overlap(report),
        "lookahead": _lookahead(report),
        "trial": _trial(report),
        "trajectory": ({**row, "run": report.runs[row["run"]]["label"], **_READ} for row in report.trajectory),
    }
    frames |= {name: pd.DataFrame(list(found)) for name, found in rows.items()}
    shown = {f"{name}.csv": frame for name, frame in frames.items() if not frame.empty}
    return {name: frame_csv(frame, name.startswith("matrix-")) for name, frame in shown.items()}


def _matrices(report: ReportData) -> Iterator[pd.DataFrame]:
    size = len(report.tasks)
    for run in report.runs:
        values = run["cells"][_WHOLE][BASE.key]["value"]
        rows = [values[start : start + size] for start in range(0, size * size, size)]
        yield pd.DataFrame(rows, pd.Index(report.tasks, name="affected"), report.tasks, dtype=float)


def _cells(report: ReportData) -> Iterator[dict[str, Any]]:
    for run in report.runs:
        yield from _tidy(report, {"run": run["label"]}, run["cells"][_WHOLE])


def _differences(report: ReportData) -> Iterator[dict[str, Any]]:
    for found in report.differences:
        names = {name: report.runs[found[name]]["label"] for name in ("first", "second")}
        yield from _tidy(report, names, found["cells"][_WHOLE])


def _tidy(report: ReportData, names: dict[str, str], choices: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per cell of every choice; cells of tasks that were not measured are left out."""
    pairs = [(affected, stepped) for affected in report.tasks for stepped in report.tasks]
    known = {choice["key"]: choice for choice in report.choices}
    for key, columns in choices.items():
        options = {name: known[key][name] for name in ("metric", "pairs", "reduce")}
        for place, (affected, stepped) in enumerate(pairs):
            if columns["verdict"][place]:
                numbers = {name: values[place] for name, values in columns.items()}
                odds = {"at_odds": numbers.pop("at_odds", "")} if "run" in names else {}
                yield {**names, **options, "affected": affected, "stepped": stepped, **numbers, **odds}


def _rows(report: ReportData, name: str) -> Iterator[dict[str, Any]]:
    return ({"run": run["label"], **_READ, **row} for run in report.runs for row in run[name])


def _signal(report: ReportData) -> Iterator[dict[str, Any]]:
    """One row per task of every run: how many units, their mean loss (nats per token), and what their gradients say."""
    for run in report.runs:
        for row in run["signal"]:
            of_task = {name: run[name][row["task"]] for name in ("units", "loss")}
            yield {"run": run["label"], "task": row["task"], **of_task, **row}


def _groups(report: ReportData) -> Iterator[dict[str, Any]]:
    """The suggested group of every task, from 1, and its place among the leaves of the tree."""
    for run in report.runs:
        if run["grouping"] is not None:
            group_of = {task: k + 1 for k, names in enumerate(run["grouping"]["split"]) for task in names}
            for place, task in enumerate(run["grouping"]["order"]):
                yield {"run": run["label"], "task": task, "group": group_of[task], "leaf": place + 1}


def _overlap(report: ReportData) -> Iterator[dict[str, Any]]:
    """The share of a task's groups that another task has units of, too, in runs whose groups are known."""
    for found in report.dependence:
        tasks = found["tasks"] if found["groups"] else []
        for label, (i, task), (j, other) in product(found["labels"], enumerate(tasks), enumerate(tasks)):
            if i != j:
                counts = {"groups": found["groups"][i], "share": found["overlap"][i][j]}
                yield {"run": label, "task": task, "other": other, **counts}


def _lookahead(report: ReportData) -> Iterator[dict[str, Any]]:
    """Interference after every number of real steps, one row per cell."""
    for found in report.horizons:
        for shown in found["matrices"]:
            for affected, row in zip(found["tasks"], shown["rows"], strict=True):
                for stepped, cell in zip(found["tasks"], row, strict=True):
                    names = {"run": found["label"], "steps": shown["steps"], "affected": affected, "stepped": stepped}
                    yield {**names, **cell}


def _trial(report: ReportData) -> Iterator[dict[str, Any]]:
    """Every arm of every trial, one row an arm; losses by task have the columns "loss: TASK"."""
    for found in report.trials:
        for row in found["rows"]:
            names = {"run": found["label"], "arm": row["arm"], "adapters": row["adapters"]}
            cells = {
                f"{name}{'' if end == 'value' else f'_{end}'}": value
                for name in ("loss", "right", "against_random", "against_together")
                for end, value in row[name].items()
            }
            by_task = {f"loss: {task}": loss for task, loss in row["tasks"].items()}
            yield {**names, "parameters": row["parameters"], **cells, **by_task}
