"""What the command line prints of evaluations: scores, differences, tables."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixlora.errors import ConfigError, DataError, plain
from mixlora.evaluation import results, tables
from mixlora.evaluation.comparison import Comparison
from mixlora.evaluation.results import Results

FORMS = ("text", "markdown", "csv", "latex")


def scores(found: Results) -> str:
    """Every score of a model with its 95% interval, one task a line."""
    rows = [["task", "score", "value", "95% interval", "examples", "no answer found"]]
    for task, entry in found.tasks.items():
        for name, value in entry["scores"].items():
            main = name == entry["main"]
            counts = [str(entry["n"]), str(entry["unparsed"] or "")] if main else ["", ""]
            title = f"{entry['metric']} {name}" if main else f"  {name}"
            rows.append([plain(task) if main else "", title, *_numbers(value), *counts])
    for name, value in found.totals.items():
        rows.append([f"MME {name}", "", *_numbers(value), "", ""])
    return _aligned(rows)


def differences(found: Comparison) -> str:
    """How much the second model is better than the first, one task a line, with paired 95% intervals."""
    rows = [
        ["task", "score", f"{plain(found.second)} minus {plain(found.first)}", "95% interval", "examples", "differ"]
    ]
    for task, own in found.differences.items():
        for name, value in own.values.items():
            main = name == own.main
            counts = [str(own.n), str(own.differing)] if main else ["", ""]
            title = f"{own.metric} {name}" if main else f"  {name}"
            rows.append([plain(task) if main else "", title, *_numbers(asdict(value), signed=True), *counts])
    said = _aligned(rows)
    return said + (f"\nleft out, not in both: {', '.join(map(plain, found.left_out))}" if found.left_out else "")


def table(paths: Sequence[Path], form: str, intervals: bool, merge_pope: bool) -> str:
    """Evaluations as a table.

    Raises:
        ConfigError: an unknown form.
        DataError: a directory holds no results, or two have the same label.
    """
    if form not in FORMS:
        raise ConfigError(f"--format {form!r} is none of {', '.join(FORMS)}")
    found = [results.load(path) for path in paths]
    labels = [one.label for one in found]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise DataError(f"Two of the results are called {twice!r}; evaluate one of them with another --label.")
    made = tables.table(found, merge_pope=merge_pope)
    text: str = getattr(made, form)(intervals)
    return text


def to_json(found: Results) -> str:
    """Scores for a script."""
    return _json({"label": found.label, "tasks": found.tasks, "totals": found.totals})


def differences_json(found: Comparison) -> str:
    """Differences for a script."""
    return _json(asdict(found))


def _json(data: Any) -> str:
    return json.dumps(_finite(data), indent=2)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(value: dict[str, float], signed: bool = False) -> list[str]:
    if math.isnan(value["value"]):
        return ["–", "not defined"]
    form = "{:+.3g}" if signed else "{:.3g}"
    return [form.format(value["value"]), f"[{value['low']:.3g}, {value['high']:.3g}]"]


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
