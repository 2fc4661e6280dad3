"""What the command line prints about evaluations: scores, differences, tables."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixlora.common.errors import ConfigError, DataError, plain
from mixlora.evaluation import results, tables
from mixlora.evaluation.comparison import Comparison
from mixlora.evaluation.results import Results
from mixlora.evaluation.scoring.metrics import Metric

FORMS = ("text", "markdown", "csv", "latex")


def scores(found: Results) -> str:
    """Every score of a model with its 95% interval, one a line; shares in percent, MME's scores in points.

    The number of groups is there if it is below that of the examples in some task.
    """
    rows = [["task", "score", "value", "95% interval", "examples", "groups", "no answer found"]]
    for task, entry in found.tasks.items():
        counts = [str(entry["n"]), _groups(entry["n"], entry.get("groups")), str(entry["unparsed"] or "")]
        rows += _rows(task, entry["metric"], entry["main"], entry["scores"], counts)
    for name, value in found.totals.items():
        rows.append([f"MME {plain(name)}", "", *_numbers(value, 1), "", "", ""])
    old = [task for task, entry in found.tasks.items() if entry.get("groups") is None]
    return _aligned(_without_empty(rows, "groups")) + (f"\n{tables.ungrouped(old)}" if old else "")


def differences(found: Comparison) -> str:
    """Every difference, second model minus first, one a line, in points, with paired 95% intervals.

    The number of groups is there if it is below that of the examples in some task.
    """
    title = f"{plain(found.second)} minus {plain(found.first)}"
    rows = [["task", "score", title, "95% interval", "examples", "groups", "differ"]]
    for task, own in found.differences.items():
        values = {name: asdict(value) for name, value in own.values.items()}
        counts = [str(own.n), _groups(own.n, own.groups), str(own.differing)]
        rows += _rows(task, own.metric, own.main, values, counts, signed=True)
    notes = [tables.ungrouped(found.ungrouped)] if found.ungrouped else []
    if found.unchecked:
        notes.append(tables.unchecked(found.unchecked))
    if found.left_out:
        notes.append(f"left out, not in both or scored otherwise: {', '.join(map(plain, found.left_out))}")
    return "\n".join([_aligned(_without_empty(rows, "groups")), *notes])


def table(
    paths: Sequence[Path],
    form: str,
    intervals: bool = False,
    columns: Sequence[str] | None = None,
    merge_pope: bool = False,
) -> str:
    """Evaluations as a table; `columns` as in `tables.table`.

    Raises:
        ConfigError: an unknown form.
        DataError: a directory holds no results, or two have the same label.
    """
    if form not in FORMS:
        raise ConfigError(f"--format {form!r} is not one of {', '.join(FORMS)}")
    found = [results.load(path) for path in paths]
    labels = [one.label for one in found]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise DataError(f"Two of the results are called {twice!r}; evaluate one of them with another --label.")
    made = tables.table(found, columns, merge_pope)
    text: str = getattr(made, form)(intervals)
    return text.removesuffix("\n")


def to_json(found: Results) -> str:
    """Scores for a script."""
    return _json({"label": found.label, "tasks": found.tasks, "totals": found.totals})


def differences_json(found: Comparison) -> str:
    """Differences for a script."""
    return _json(asdict(found))


def _json(data: Any) -> str:
    return json.dumps(results.finite(data), indent=2)


def _rows(
    task: str,
    metric: str,
    main: str,
    values: Mapping[str, Mapping[str, float]],
    counts: list[str],
    signed: bool = False,
) -> list[list[str]]:
    """A task's rows: its main score first, then the others."""
    first = {name: values[name] for name in values if name == main}
    rows = []
    for name, value in {**first, **values}.items():
        numbers = _numbers(value, 1 if (metric, name) == (Metric.MME, "score") else 100, signed)
        head = [plain(task), f"{metric} {name}"] if name == main else ["", f"  {name}"]
        rows.append([*head, *numbers, *(counts if name == main else [""] * len(counts))])
    return rows


def _groups(examples: int, groups: int | None) -> str:
    """The number of groups, if it is known and below that of the examples."""
    return str(groups) if groups is not None and groups < examples else ""


def _without_empty(rows: list[list[str]], column: str) -> list[list[str]]:
    """The rows, the first of which has the columns' names, without this column if it is empty."""
    at = rows[0].index(column)
    return rows if any(row[at] for row in rows[1:]) else [row[:at] + row[at + 1 :] for row in rows]


def _numbers(value: Mapping[str, float], scale: int, signed: bool = False) -> list[str]:
    """A value and its interval, times `scale`; 100 makes percent of a share, and points of a difference."""
    if math.isnan(value["value"]):
        return ["-", "not defined"]
    middle, low, high = (scale * value[end] for end in ("value", "low", "high"))
    if signed:
        return [f"{middle:+.1f}", f"[{low:+.1f}, {high:+.1f}]"]
    return [f"{middle:.1f}" + "%" * (scale == 100), f"[{low:.1f}, {high:.1f}]"]


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
