"""Figures of what examples select: the map of the examples, and the use of every factor. Nothing is computed here."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from interference import selections
from interference.blocks import Side
from interference.errors import ScopeError
from interference.factors import Factors
from interference.neighbours import Embedding
from mixlora.errors import plain

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's, no yellow
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")  # 10 shapes and 7 colours repeat together after 70 tasks
LONGEST = 28  # characters of a task's name
SCALE = "cividis"
PANELS = 7  # in a row


def embedding(factors: Factors, embedded: Embedding, unseen: Sequence[str] = (), title: str | None = None) -> Figure:
    """The map of the examples, one point each, a colour and a shape a task.

    Args:
        factors: what the examples select.
        embedded: `neighbours.embed` of it.
        unseen: tasks that the adapter was not trained on; they are drawn hollow.
        title: above the purity; None for none.

    Raises:
        ScopeError: if an unseen task is not among the tasks.
    """
    names = factors.selections.names
    for task in unseen:
        if task not in names:
            raise ScopeError(f"unseen task {task!r} is not among the tasks: {', '.join(names)}")
    figure = Figure(figsize=(8.6, max(5.2, 1.0 + 0.24 * len(names))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, task in enumerate(names):
        _scatter(axes, embedded.points[factors.selections.labels == place], place, task, task in unseen)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    for edge in axes.spines.values():
        edge.set_color("0.7")
    purity, on_map = embedded.purity, embedded.map_purity
    lines = [
        f"{purity.k} nearest by selections of the same task: {purity.value:.0%} (chance {purity.chance:.0%}, 95% of "
        f"shuffles {purity.low:.0%} to {purity.high:.0%})",
        f"{on_map.k} nearest on this map: {on_map.value:.0%}",
    ]
    text = "\n".join(lines if title is None else [plain(title), *lines])
    axes.set_title(text, fontsize=9, loc="left", parse_math=False)
    axes.set_xlabel(
        f"t-SNE (perplexity {embedded.perplexity:g}, seed {embedded.seed}): nearness counts, axes and gaps do not",
        fontsize=8,
    )
    _legend(figure, axes, hollow=bool(unseen))
    return figure


def usage(factors: Factors) -> Figure:
    """How much each factor of each block is used: a panel a module and side, a row a layer, a column a factor.

    Of a mixture the share of examples that chose the factor, with a cross on a factor that none chose; of a LoRA the
    share of the squared activation. Factors of the same number in two modules have nothing to do with each other.
    """
    chosen = factors.selections
    panels = _panels(factors)
    columns = min(PANELS, max(1, len({module for _, module, _ in panels})))
    rows = -(-len(panels) // columns)
    tallest = max(len(values) for values in panels.values())
    widest = max(values.shape[1] for values in panels.values())
    size = (1.6 + columns * max(1.3, 0.1 * widest), 0.9 + rows * (0.7 + max(0.7, 0.1 * tallest)))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    limit = max(float(np.nanmax(values)) for values in panels.values())
    for place, ((component, module, side), values) in enumerate(panels.items()):
        layers = _layers(factors, component, module, side)
        name = plain(module) if component == "language" else f"{component} {plain(module)}"
        _heat(grid[place], values, layers, limit, f"{name}, {side}", marked=chosen.mixture)
    grid[0].set_ylabel("layer", fontsize=8)
    grid[(rows - 1) * columns].set_xlabel("factor" if chosen.mixture else "rank direction", fontsize=8)
    bar = figure.colorbar(ScalarMappable(Normalize(0, limit), SCALE), ax=list(grid), shrink=0.8)
    bar.ax.tick_params(labelsize=7)
    kind = "share of examples that chose the factor (×: none)" if chosen.mixture else "share of squared activation"
    bar.set_label(kind, fontsize=8)
    return figure


def _scatter(axes: Axes, points: np.ndarray, place: int, task: str, hollow: bool) -> None:
    colour = COLOURS[place % len(COLOURS)]
    axes.scatter(
        points[:, 0],
        points[:, 1],
        s=26,
        marker=SHAPES[place % len(SHAPES)],
        facecolors="none" if hollow else colour,
        edgecolors=colour if hollow else "white",
        linewidths=1.0 if hollow else 0.4,
        alpha=None if hollow else 0.75,  # tasks may lie on top of each other
        label=_label(task),
    )


def _legend(figure: Figure, axes: Axes, hollow: bool) -> None:
    handles, names = axes.get_legend_handles_labels()
    title = "task (hollow: unseen in training)" if hollow else "task"
    legend = figure.legend(handles, names, loc="outside right upper", fontsize=8, title=title, title_fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _panels(factors: Factors) -> dict[tuple[str, str, str], np.ndarray]:
    """{(component, module, side): [layers, factors]}, sides apart, every side's modules in the model's order."""
    chosen = factors.selections
    shares, blocks = selections.shares(chosen), chosen.blocks
    found: dict[tuple[str, str, str], np.ndarray] = {}
    for side in (Side.A, Side.B):
        for (component, module), group in blocks[blocks["side"] == side].groupby(["component", "module"], sort=False):
            scale = chosen.values[group["name"].iloc[0]].shape[1] if chosen.mixture else 1
            widest = int(group["factors"].max())
            rows = [np.pad(shares[name] * scale, (0, widest - len(shares[name])), constant_values=np.nan)
                    for name in group["name"]]  # fmt: skip
            found[str(component), str(module), str(side)] = np.array(rows)
    return found


def _layers(factors: Factors, component: str, module: str, side: str) -> list[str]:
    blocks = factors.selections.blocks
    rows = (blocks["component"] == component) & (blocks["module"] == module) & (blocks["side"] == side)
    return ["" if pd.isna(layer) else str(layer) for layer in blocks[rows]["layer"]]


def _heat(axes: Axes, values: np.ndarray, layers: Sequence[str], limit: float, title: str, marked: bool) -> None:
    axes.imshow(values, vmin=0, vmax=limit, cmap=SCALE, aspect="auto", interpolation="nearest")
    if marked:
        rows, columns = np.nonzero(values == 0)
        axes.scatter(columns, rows, s=8, marker="x", color="white", linewidths=0.7)
    axes.set_title(title, fontsize=8, parse_math=False)
    step = -(-len(layers) // 16)
    axes.set_yticks(range(0, len(layers), step), layers[::step])
    axes.set_xticks([0, values.shape[1] - 1] if values.shape[1] > 1 else [0])
    axes.tick_params(labelsize=6, length=2)


def _label(task: str) -> str:
    """A task's name, its middle left out where it would squeeze the map."""
    name = plain(task)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 11]}…{name[-10:]}"
