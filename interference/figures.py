"""Figures: a Run to a matplotlib Figure. Nothing is computed here that the Run does not give."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from interference.blocks import Side
from interference.errors import ScopeError
from interference.measure import METRICS
from interference.run import Run, compare
from mixlora.errors import plain

COLOURS = "RdBu_r"  # blue for negative, red for positive, as in the paper's heatmaps
MARKS = {"conflict": "conflict", "synergy": "synergy", "unclear": "", "no-signal": "no signal", "self": ""}
CHANGES = {"lower": "lower", "higher": "higher"}
FRAMES = {"conflict": "-", "lower": "-", "synergy": (0, (3, 2)), "higher": (0, (3, 2))}
SIGNED = ("interference", "delta", "cosine", "pair_cosine")  # 0 means neither helps nor hurts
LONGEST = 28  # characters of a task's name
LIMIT = 1.0  # the least half-width of the colour scale of I: 1 is what a task's own step brings


def heatmap(run: Run, metric: str = "interference", title: str | None = None, **options: Any) -> Figure:
    """The matrix of a metric, each cell with its 95% interval and its verdict.

    Args:
        run: a run.
        metric: as in `Run.matrix`.
        title: above the matrix; None for the metric's meaning.
        options: scope and options of `Run.table`.
    """
    table = run.table(metric, **options)
    size = 1.9 + 1.15 * len(run.tasks)
    figure, (axes,) = _canvas(1, 1, (size + 1.0, size))
    limit = _limit([table], metric)
    _matrix(axes, table, run.tasks, metric, limit, detailed=True)
    title = title if title is not None else f"{metric}: {METRICS[metric].meaning}"
    axes.set_title(plain(title), fontsize=10, wrap=True, parse_math=False)
    _colourbar(figure, [axes], metric, limit, [table])
    return figure


def series(runs: Mapping[str, Run], metric: str = "interference", **options: Any) -> Figure:
    """The matrices of several runs side by side, on one colour scale.

    Args:
        runs: {title: run}, all of the same tasks.
        metric: as in `Run.matrix`.
        options: scope and options of `Run.table`.
    """
    tables = [run.table(metric, **options) for run in runs.values()]
    tasks = next(iter(runs.values())).tasks
    size = 1.0 + 0.95 * len(tasks)
    figure, axes = _canvas(1, len(runs), (size * len(runs) + 1.5, size + 1.0))
    limit = _limit(tables, metric)
    for place, (title, table) in enumerate(zip(runs, tables, strict=True)):
        _matrix(axes[place], table, tasks, metric, limit, detailed=True, labelled=place == 0)
        axes[place].set_title(plain(title), fontsize=10, parse_math=False)
    _colourbar(figure, axes, metric, limit, tables)
    return figure


def difference(runs: Mapping[str, Run], metric: str = "interference", **options: Any) -> Figure:
    """The matrices of two runs on the same examples, and how the second differs, with paired intervals and verdicts.

    Args:
        runs: {title: run}, two of them.
        metric: as in `Run.matrix`.
        options: scope and options of `Run.table`.

    Raises:
        ScopeError: there are not two runs, or they do not hold the same units.
    """
    if len(runs) != 2:
        raise ScopeError(f"a difference is between two runs, but {len(runs)} were given")
    first, second = runs.values()
    tables = [run.table(metric, **options) for run in runs.values()]
    change = compare(first, second, metric, **options).rename(columns={"difference": "value"})
    change.loc[change["affected"] == change["stepped"], "verdict"] = "self"
    names = [*runs, f"{list(runs)[1]} minus {next(iter(runs))}"]
    size = 1.0 + 0.95 * len(first.tasks)
    figure, axes = _canvas(1, 3, (size * 3 + 1.5, size + 1.0))
    limit = _limit([*tables, change], metric)
    for place, (title, table) in enumerate(zip(names, [*tables, change], strict=True)):
        _matrix(axes[place], table, first.tasks, metric, limit, detailed=True, labelled=place == 0)
        axes[place].set_title(plain(title), fontsize=10, parse_math=False)
    _colourbar(figure, axes, metric, limit, [*tables, change])
    return figure


def panels(run: Run, metric: str = "interference", layers: Sequence[int] | None = None, **options: Any) -> Figure:
    """Small multiples: one row a layer, one column a group of modules and side, as in the paper's Figure 2.

    Args:
        run: a run.
        metric: as in `Run.matrix`.
        layers: rows; None for every probed layer.
        options: options of `Run.table`, but no modules or side.
    """
    blocks = run.scope(layers)
    rows = sorted({int(layer) for layer in blocks["layer"].dropna()})
    columns = [(group, side) for group in dict.fromkeys(blocks["group"]) for side in (Side.A, Side.B)]
    tables: dict[tuple[int, int], pd.DataFrame] = {}
    for r, layer in enumerate(rows):
        for c, (group, side) in enumerate(columns):
            if run.gram(layers=[layer], modules=[group], side=side).any():
                tables[r, c] = run.table(metric, layers=[layer], modules=[group], side=side, **options)
    figure, axes = _canvas(len(rows), len(columns), (2.6 * len(columns) + 1.5, 2.4 * len(rows) + 1.2))
    limit = _limit(list(tables.values()), metric)
    for place, panel in enumerate(axes):
        r, c = divmod(place, len(columns))
        panel.set_title(f"layer {rows[r]}, {columns[c][0]}, {columns[c][1]}", fontsize=8)
        if (r, c) in tables:
            _matrix(panel, tables[r, c], run.tasks, metric, limit, labelled=c == 0, footed=r == len(rows) - 1)
        else:
            panel.text(0.5, 0.5, "every gradient is zero", ha="center", va="center", fontsize=8)
            panel.set_axis_off()
    _colourbar(figure, axes, metric, limit, list(tables.values()))
    return figure


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _canvas(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def _limit(tables: Sequence[pd.DataFrame], metric: str) -> float:
    """Half the colour scale's width: a robust maximum, so that one cell of noise does not bleach the rest."""
    values = np.concatenate([table["value"].to_numpy() for table in tables]) if tables else np.zeros(0)
    values = np.abs(values[np.isfinite(values)])
    if metric == "interference":
        return max(LIMIT, float(np.quantile(values, 0.9))) if len(values) else LIMIT
    return float(np.quantile(values, 0.95)) or 1.0 if len(values) else 1.0


def _matrix(
    axes: Axes,
    table: pd.DataFrame,
    tasks: Sequence[str],
    metric: str,
    limit: float,
    detailed: bool = False,
    labelled: bool = True,
    footed: bool = True,
) -> None:
    count = len(tasks)
    values = table["value"].to_numpy().reshape(count, count)
    texts = [_text(row, detailed) for row in table.itertuples()]
    low = -limit if metric in SIGNED else 0.0
    seaborn.heatmap(
        values,
        ax=axes,
        vmin=low,
        vmax=limit,
        cmap=COLOURS if low else "Reds",
        annot=np.array(texts, dtype=object).reshape(count, count),
        fmt="",
        annot_kws={"fontsize": 7 if detailed else 6},
        cbar=False,
        square=True,
        linewidths=0.5,
        xticklabels=False,
        yticklabels=False,
    )
    for row, column in np.argwhere(np.isnan(values)):  # which seaborn leaves empty
        axes.text(column + 0.5, row + 0.5, "–", ha="center", va="center", fontsize=7)
    names = [_label(task) for task in tasks]  # as they are: "$" begins no formula
    if footed:
        axes.set_xticks(np.arange(count) + 0.5, names, parse_math=False)
    if labelled:
        axes.set_yticks(np.arange(count) + 0.5, names, parse_math=False)
    axes.tick_params(labelsize=7, length=0)
    axes.tick_params(axis="x", rotation=40)
    axes.tick_params(axis="y", rotation=0)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right")
    if footed:
        axes.set_xlabel("stepped task", fontsize=8)
    if labelled:
        axes.set_ylabel("affected task", fontsize=8)
    _frame_verdicts(axes, table["verdict"].to_numpy().reshape(count, count))


def _label(task: str) -> str:
    """A task's name, its middle left out where it would push the matrix off the figure."""
    name = plain(task)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 11]}…{name[-10:]}"


def _frame_verdicts(axes: Axes, verdicts: np.ndarray) -> None:
    """A frame around what is beyond noise: solid for conflict or lower, dashed for synergy or higher."""
    for (row, column), verdict in np.ndenumerate(verdicts):
        if verdict in FRAMES:
            style, corner = FRAMES[verdict], (column + 0.04, row + 0.04)
            axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="black", linewidth=1.3, linestyle=style))


def _text(row: Any, detailed: bool) -> str:
    value = "–" if not np.isfinite(row.value) else f"{row.value:.2f}"
    if not detailed or row.verdict == "self":
        return value
    interval = f"[{row.low:.2f}, {row.high:.2f}]" if np.isfinite(row.low) else "[no interval]"
    mark = (MARKS | CHANGES)[row.verdict]
    return "\n".join([value, interval, mark] if mark else [value, interval])


def _colourbar(figure: Figure, axes: Sequence[Axes], metric: str, limit: float, tables: Sequence[pd.DataFrame]) -> None:
    low = -limit if metric in SIGNED else 0.0
    beyond = any((table["value"].abs() > limit).any() for table in tables)
    colours = ScalarMappable(Normalize(low, limit), COLOURS if low else "Reds")
    bar = figure.colorbar(colours, ax=list(axes), shrink=0.7, extend="both" if beyond and low else "neither")
    bar.ax.tick_params(labelsize=7)
    bar.set_label(metric, fontsize=8)
