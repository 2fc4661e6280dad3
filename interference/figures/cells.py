"""Cells: one matrix on its axes, with intervals, verdicts and frames, and the colour bar of several.

Not here: which matrices a figure has, and how large it is (`matrices`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from interference.figures.canvas import alone, short
from interference.run.remarks import AT_ODDS, shown_verdicts

COLOURS = "RdBu_r"  # blue for negative, red for positive, as in the paper's heatmaps
MARKS = {"conflict": "conflict", "synergy": "synergy", "unclear": "", "self": ""}
MARKS |= {"no-signal": "no signal", "carried": "carried", AT_ODDS: ""}
CHANGES = {"lower": "lower", "higher": "higher"}
FRAMES = {"conflict": "-", "lower": "-", "synergy": (0, (3, 2)), "higher": (0, (3, 2))}
SIGNED = ("interference", "delta", "cosine", "pair_cosine")  # 0 means neither helps nor hurts


def matrix(
    axes: Axes,
    table: pd.DataFrame,
    tasks: Sequence[str],
    metric: str,
    limit: float,
    detailed: bool = False,
    labelled: bool = True,
    footed: bool = True,
    judged: bool = True,
) -> None:
    """Draw the matrix of a table.

    Args:
        axes: Where it is drawn.
        table: Of `Run.table`, tasks * tasks rows.
        tasks: In the order of rows and columns.
        metric: Of the table.
        limit: The value at the end of the colour scale.
        detailed: Whether cells have their interval and verdict.
        labelled: Whether rows are named.
        footed: Whether columns are named.
        judged: Whether verdicts are shown.
    """
    count = len(tasks)
    own = table["affected"] == table["stepped"]
    table = table.assign(verdict=shown_verdicts(table) if judged else np.where(own, table["verdict"], AT_ODDS))
    values = table["value"].to_numpy().reshape(count, count)
    sign = "+" if metric in SIGNED and not detailed else ""
    texts = [_text(row, detailed, sign) for row in table.itertuples()]
    low = -limit if metric in SIGNED else 0.0
    with alone(axes):
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
    names = [short(task) for task in tasks]  # as they are: "$" begins no formula
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


def _frame_verdicts(axes: Axes, verdicts: np.ndarray) -> None:
    """A frame around what is beyond noise: solid for conflict or lower, dashed for synergy or higher."""
    for (row, column), verdict in np.ndenumerate(verdicts):
        if verdict in FRAMES:
            style, corner = FRAMES[verdict], (column + 0.04, row + 0.04)
            axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="black", linewidth=1.3, linestyle=style))


def _text(row: Any, detailed: bool, sign: str) -> str:
    value = "–" if not np.isfinite(row.value) else f"{row.value:{sign}.2f}"
    if not detailed or row.verdict == "self":
        return value
    interval = f"[{row.low:.2f}, {row.high:.2f}]" if np.isfinite(row.low) else "[no interval]"
    mark = (MARKS | CHANGES)[row.verdict]
    return "\n".join([value, interval, mark] if mark else [value, interval])


def colourbar(figure: Figure, axes: Sequence[Axes], metric: str, limit: float, tables: Sequence[pd.DataFrame]) -> None:
    """Draw the colour bar beside the axes of some tables, whose scale ends at `limit`."""
    low = -limit if metric in SIGNED else 0.0
    beyond = any((table["value"].abs() > limit).any() for table in tables)
    colours = ScalarMappable(Normalize(low, limit), COLOURS if low else "Reds")
    bar = figure.colorbar(colours, ax=list(axes), shrink=0.7, extend="both" if beyond and low else "neither")
    bar.ax.tick_params(labelsize=7)
    bar.set_label(metric, fontsize=8)
