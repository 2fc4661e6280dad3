"""Figures of validations: how well each prediction ranks what training did, by checkpoint and steps of training."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from interference.figures.canvas import COLOURS, SHAPES, Picture
from interference.prediction import Validation

_DRAWN = ("interference", "cosine", "progress", "smallness")
_COLUMNS = 3


def validation(found: Validation) -> Picture:
    """Spearman's correlation of predictions with what training did, within rows, a panel for each checkpoint.

    Drawn are interference, cosine, progress, smallness (the control) and the longest lookahead. The band is the
    interval of the agreement of seeds, the dashed line the ceiling. A filled mark has an interval above 0.

    Args:
        found: A validation.

    Returns:
        The figure; its data has every prediction but those of single parts of the model.
    """
    table, ceilings = found.table(parts=False), found.ceilings()
    panels = [(kind, step) for kind in dict.fromkeys(table["truth"]) for step in sorted(set(table["step"]))]
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Picture((1 + 3.2 * columns, 0.9 + 2.6 * rows))
    grid = figure.grid(rows, columns)
    names = _drawn(table["prediction"].tolist())
    for axes, (kind, step) in zip(grid, panels, strict=False):
        own = table[(table["truth"] == kind) & (table["step"] == step)]
        _panel(axes, own, ceilings[ceilings["truth"] == kind], names)
        axes.set_title(f"checkpoint at step {step} ({kind})", fontsize=9)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    figure.data = pd.concat([table, ceilings.drop(columns="score").assign(prediction="ceiling")], ignore_index=True)
    figure.explain(["Spearman within rows of affected tasks. Filled: the 95% interval over seeds and tasks is above 0"])
    return figure


def _drawn(names: Sequence[str]) -> list[str]:
    """The predictions that get a line: the longest lookahead, where there are any, among them."""
    ahead = [name for name in dict.fromkeys(names) if name.startswith("lookahead interference")]
    whole = [name for name in ahead if name.endswith(("step", "steps"))]
    return [*_DRAWN, *whole[-1:]]


def _panel(axes: Axes, table: pd.DataFrame, ceilings: pd.DataFrame, names: Sequence[str]) -> None:
    """The predictions of one checkpoint over the horizons."""
    horizons = list(ceilings["horizon"])
    places = np.arange(len(horizons))
    axes.fill_between(places, ceilings["low"], ceilings["high"], color="0.9", zorder=0)
    axes.plot(places, ceilings["ceiling"], color="0.55", linewidth=1.2, linestyle="--", label="ceiling")
    for k, name in enumerate(names):
        own = table[table["prediction"] == name].set_index("horizon").reindex(horizons)  # NaN where it was not made
        colour = COLOURS[k % len(COLOURS)]
        axes.plot(places, own["value"], color=colour, linewidth=1)
        filled = [colour if low > 0 else "white" for low in own["low"]]
        mark = SHAPES[k % len(SHAPES)]
        axes.scatter(places, own["value"], s=30, marker=mark, facecolors=filled, edgecolors=colour, zorder=3)
        axes.plot([], [], color=colour, marker=mark, linewidth=1, label=name)
    axes.axhline(0, color="0.5", linewidth=0.8, zorder=0)
    axes.set_ylim(-1.05, 1.05)
    axes.set_xticks(places, [str(horizon) for horizon in horizons], fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("steps of training", fontsize=8)
