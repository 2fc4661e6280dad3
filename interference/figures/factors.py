"""Figures of what examples select: the map of the examples, and the use of every factor. Nothing is computed here."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from interference.blocks import Side
from interference.errors import ScopeError
from interference.factors import selections
from interference.factors.affinity import Pairing
from interference.factors.factors import Factors
from interference.factors.neighbours import Embedding
from interference.figures.canvas import COLOURS, SHAPES, Picture, room, short
from mixlora.common.errors import plain

SCALE = "cividis"
PANELS = 7  # in a row


def embedding(factors: Factors, embedded: Embedding, unseen: Sequence[str] = (), title: str | None = None) -> Picture:
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
    figure = Picture((8.6, max(5.2, 1.0 + 0.24 * len(names))))
    axes = figure.subplots()
    for place, task in enumerate(names):
        _scatter(axes, embedded.points[factors.selections.labels == place], place, task, task in unseen)
    _frame_map(axes, embedded)
    purity, on_map = embedded.purity, embedded.map_purity
    lines = [
        f"{purity.k} nearest by selections of the same task: {purity.value:.0%} (chance {purity.chance:.0%}, 95% of "
        f"shuffles {purity.low:.0%} to {purity.high:.0%})",
        f"{on_map.k} nearest on this map: {on_map.value:.0%}",
    ]
    text = "\n".join(lines if title is None else [plain(title), *lines])
    axes.set_title(text, fontsize=9, loc="left", parse_math=False)
    _legend(figure, axes, hollow=bool(unseen))
    figure.data = _points(factors, embedded).assign(unseen=factors.examples["task"].isin(unseen).to_numpy())
    return figure


def pairs(factors: Factors, embedded: Embedding, pairing: Pairing) -> Picture:
    """The map of pairs of a seen and an unseen task, a colour and a shape a pair, and how much every two tasks share.

    Args:
        factors: what the examples of the paired tasks select, and of no others.
        embedded: `neighbours.embed` of it.
        pairing: `affinity.paired` of it.
    """
    matrix = pairing.overlap
    side, names = max(1.8, 0.62 * len(matrix)), room(factors.selections.names)
    legend = 1.2 + sum(0.5 + 1.15 * room(pair) for pair in pairing.pairs)
    figure = Picture((max(6.6 + side + names, legend), max(5.8, side + names + 1.8)))
    axes, beside = figure.subplots(1, 2, width_ratios=(5.6, side))
    for place, pair in enumerate(pairing.pairs):
        for hollow, task in enumerate(pair):
            rows = np.array(factors.selections.tasks) == task
            _scatter(axes, embedded.points[rows], place, task, bool(hollow))
    _frame_map(axes, embedded)
    _overlaps(beside, matrix, factors.selections.mixture)
    axes.set_title(_overlap_title(pairing), fontsize=9, loc="left")
    _two_rows(figure, axes)
    seen = {task: pair[0] for pair in pairing.pairs for task in pair}
    points = _points(factors, embedded)
    points = points.assign(pair=points["task"].map(seen), unseen=~points["task"].isin(list(seen.values())))
    shared = pd.DataFrame({"task": np.repeat(matrix.index, len(matrix)), "other": [*matrix.columns] * len(matrix),
                           "overlap": matrix.to_numpy().ravel()})  # fmt: skip
    figure.data = pd.concat({"map": points, "overlap": shared}, names=["panel"]).reset_index(0).reset_index(drop=True)
    return figure


def usage(factors: Factors) -> Picture:
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
    figure = Picture(size)
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
        label=short(task),
    )


def _frame_map(axes: Axes, embedded: Embedding) -> None:
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    for edge in axes.spines.values():
        edge.set_color("0.7")
    axes.set_xlabel(
        f"t-SNE (perplexity {embedded.perplexity:g}, seed {embedded.seed}): nearness counts, axes and gaps do not",
        fontsize=8,
    )


def _points(factors: Factors, embedded: Embedding) -> pd.DataFrame:
    """One row an example: task, id, and where it lies on the map."""
    x, y = embedded.points.T
    return factors.examples.filter(["task", "id"]).reset_index(drop=True).assign(x=x, y=y)


def _overlaps(axes: Axes, matrix: pd.DataFrame, mixture: bool) -> None:
    """Seen tasks down, unseen ones across, so that the pairs are the diagonal, which is framed."""
    count, values = len(matrix), matrix.to_numpy()
    limit = float(np.abs(values).max()) or 1.0
    axes.imshow(values, cmap=SCALE if mixture else "RdBu_r", vmin=0 if mixture else -limit, vmax=limit)
    for (row, column), value in np.ndenumerate(values):
        dark = value < limit / 2 if mixture else abs(value) > 0.6 * limit
        colour = "white" if dark else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    for place in range(count):
        corner = (place - 0.46, place - 0.46)
        axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="black", linewidth=1.6))
    names = [[short(task) for task in index] for index in (matrix.columns, matrix.index)]
    axes.set_xticks(range(count), names[0], parse_math=False, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names[1], parse_math=False)
    axes.tick_params(labelsize=8, length=0)
    axes.set_xlabel("unseen task", fontsize=8)
    axes.set_ylabel("seen task", fontsize=8)


def _overlap_title(pairing: Pairing) -> str:
    """How much the paired tasks share, beside those not paired and beside other ways to pair them."""
    pairs = f"overlap of selections (beside; framed: the pairs): of a pair {pairing.mean:.2f}"
    if len(pairing.pairs) == 1:
        return f"{pairs}; of one pair there is nothing to compare it with"
    kind = "all" if pairing.exact else "random"
    return (
        f"{pairs}, of tasks not paired {pairing.others:.2f}\n"
        f"{pairing.at_least} of {kind} {pairing.tried} ways to pair these tasks give as much (p = {pairing.p:.2g})"
    )


def _two_rows(figure: Picture, axes: Axes) -> None:
    """A legend whose first row is the seen tasks and whose second the unseen ones, a column a pair."""
    handles, names = axes.get_legend_handles_labels()
    blank = [Line2D([], [], linestyle="none") for _ in range(2)]
    legend = figure.legend(
        blank + handles,
        ["seen:", "unseen:", *names],
        loc="outside lower left",
        ncols=1 + len(names) // 2,
        fontsize=8,
        handletextpad=0.3,
        columnspacing=1.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


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
