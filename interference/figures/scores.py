"""Figures of scores: evaluations beside each other, task by task, and how the second differs. Nothing is computed here
that the evaluations do not give, but means of differences.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from interference.errors import ScopeError
from interference.figures.canvas import COLOURS, SHAPES, Picture, short
from mixlora.evaluation.comparison import Comparison
from mixlora.evaluation.results import Results
from mixlora.evaluation.scoring.intervals import Estimate
from mixlora.evaluation.tables import MEAN, average, table

Groups = Mapping[str, Sequence[str]]
_POINTS = "MME"
_COLUMNS = ["panel", "group", "task", "model", "value", "low", "high"]
_ROOM = 0.6  # of a row, shared by the models


def scores(results: Sequence[Results], comparison: Comparison | None = None, unseen: Sequence[str] = ()) -> Picture:
    """Every model's score on every task with its 95% interval, tasks down the side, and the paired difference.

    Scores are in percent; MME's sums are in points, below. The interval of the mean over the tasks takes tasks that
    share groups, as pictures, as fully dependent, and others as independent.

    Args:
        results: of the models, whose labels must differ.
        comparison: of two models, drawn as a second column; None for none.
        unseen: tasks that the models were not trained on; they and the others are drawn apart, each with its mean.

    Raises:
        ScopeError: if an unseen task is not among the tasks.
    """
    groups = _groups(results, unseen)
    parts = [_scores(results, groups)]
    if comparison is not None:
        parts.append(_differences(comparison, groups))
    data = pd.concat(parts, ignore_index=True)
    heights = [len(data[data["group"] == group]["task"].unique()) for group in groups]
    line = max(0.34, 0.17 * len(results))
    figure = Picture((4.2 + 3.6 * len(parts), 1.6 + 0.3 * len(groups) + line * sum(heights)))
    grid = figure.subplots(len(groups), len(parts), squeeze=False, height_ratios=heights)
    for row, (group, axes) in enumerate(zip(groups, grid, strict=True)):
        names = list(dict.fromkeys(data[data["group"] == group]["task"]))
        for column, (panel, part) in enumerate(zip(axes, parts, strict=True)):
            _draw(panel, part[part["group"] == group], names, list(dict.fromkeys(part["model"])), bool(column))
            _label(panel, names if not column else [""] * len(names), group, first=not column)
            if group != _POINTS:
                panel.set_xlim(_range(part))
            panel.set_xlabel(_unit(group, bool(column)), fontsize=8)
            if column and not row:
                panel.set_title(short(part["model"].iloc[0]), fontsize=9, parse_math=False)
    _legend(figure, grid[0][0])
    figure.data = data
    figure.notes = list(table(results).notes)
    return figure


def _groups(results: Sequence[Results], unseen: Sequence[str]) -> dict[str, list[str]]:
    """The tasks of each group of rows, by its name: the trained ones, the unseen ones, MME's sums."""
    columns = [name for name in table(results).columns if name != MEAN]
    points = list(dict.fromkeys(f"MME {name}" for one in results for name in one.totals))
    tasks = [name for name in columns if name not in points]
    for task in unseen:
        if task not in tasks:
            raise ScopeError(f"unseen task {task!r} is not among the tasks: {', '.join(tasks)}")
    seen = [task for task in tasks if task not in unseen]
    found = {"seen in training" if unseen else "": seen, "unseen": [task for task in tasks if task in unseen]}
    return {name: group for name, group in (found | {_POINTS: points}).items() if group}


def _scores(results: Sequence[Results], groups: Groups) -> pd.DataFrame:
    rows = []
    for group, tasks in groups.items():
        found = table(results, [*tasks, MEAN] if group != _POINTS else tasks)
        for model, cells in zip(found.models, found.cells, strict=True):
            for name, cell in zip(found.columns, cells, strict=True):
                one = cell.estimate
                ends = (math.nan,) * 3 if one is None else (one.value, one.low, one.high)
                rows.append(("score", group, name, model, *ends))
    return pd.DataFrame(rows, columns=_COLUMNS)


def _differences(comparison: Comparison, groups: Groups) -> pd.DataFrame:
    """In percentage points; NaN where there is none, as of MME's sums."""
    rows = []
    title = f"{comparison.second} minus {comparison.first}"
    for group, tasks in groups.items():
        found = []
        for task in tasks:
            one = comparison.differences.get(task)
            value = one.values[one.main] if one is not None else None
            found.append([math.nan] * 3 if value is None else [100 * v for v in (value.value, value.low, value.high)])
        rows += [("difference", group, task, title, *ends) for task, ends in zip(tasks, found, strict=True)]
        if group != _POINTS:
            rows.append(("difference", group, MEAN, title, *_mean(found, tasks, comparison.dependent)))
    return pd.DataFrame(rows, columns=_COLUMNS)


def _mean(
    parts: Sequence[Sequence[float]], tasks: Sequence[str], dependent: Sequence[Sequence[str]]
) -> tuple[float, float, float]:
    """The mean of the tasks' values and the ends of its interval."""
    found = average([Estimate(*ends) for ends in parts], [(task,) for task in tasks], dependent)
    return found.value, found.low, found.high


def _draw(axes: Axes, data: pd.DataFrame, names: Sequence[str], models: Sequence[str], signed: bool) -> None:
    """One point with its interval a task and model; of a difference hollow where its interval contains 0."""
    for place, model in enumerate(models):
        own = data[data["model"] == model].set_index("task").loc[list(names)]
        height = [row + _ROOM * ((place + 0.5) / len(models) - 0.5) for row in range(len(names))]
        colour = "black" if signed else COLOURS[place % len(COLOURS)]
        beside = [own["value"] - own["low"], own["high"] - own["value"]]
        clear = (own["low"] > 0) | (own["high"] < 0) | (not signed)
        axes.errorbar(own["value"], height, xerr=beside, fmt="none", ecolor=colour, elinewidth=1.2, capsize=2)
        axes.scatter(
            own["value"],
            height,
            s=26,
            marker=SHAPES[place % len(SHAPES)],
            facecolors=[colour if filled else "white" for filled in clear],
            edgecolors=colour,
            zorder=3,
            label=short(model),
        )
    for name, row in zip(names, range(len(names)), strict=True):
        if data[data["task"] == name]["value"].isna().all():
            axes.text(0.5, row, "none", transform=axes.get_yaxis_transform(), ha="center", va="center", fontsize=7)
    if signed:
        axes.axvline(0, color="0.5", linewidth=0.8, zorder=0)


def _range(part: pd.DataFrame) -> tuple[float, float]:
    """What the panels of a column show, but those of MME's points: all its values and intervals, and some air."""
    shown = part[part["group"] != _POINTS][["value", "low", "high"]].to_numpy()
    low, high = (float(of(shown)) for of in (np.nanmin, np.nanmax)) if np.isfinite(shown).any() else (0.0, 1.0)
    air = 0.04 * (high - low) or 1.0
    return low - air, high + air


def _label(axes: Axes, names: Sequence[str], group: str, first: bool) -> None:
    axes.set_yticks(range(len(names)), [short(name) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(labelsize=8, length=2)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    if group != _POINTS:
        axes.axhline(len(names) - 1.5, color="0.7", linewidth=0.8)
    if first:
        axes.set_ylabel(group, fontsize=9)


def _unit(group: str, difference: bool) -> str:
    if group == _POINTS:
        return "points, 95% interval"
    return "percentage points, paired 95% interval" if difference else "score in percent, 95% interval"


def _legend(figure: Picture, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside upper left", ncols=min(4, len(names)), fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
