"""Figures of what examples select: the map of the examples, and the use of every factor. Nothing is computed here."""

from collections.abc import Mapping, Sequence
from textwrap import fill

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
from interference.factors.contrast import Contrast
from interference.factors.factors import Factors, origin, remarks
from interference.factors.neighbours import Embedding
from interference.figures.canvas import COLOURS, SHAPES, Picture, room, short
from mixlora.common.errors import plain

SCALE = "cividis"
PANELS = 7  # in a row
TRAINED, UNTRAINED = "trained", "untrained"


def embedding(
    factors: Factors,
    embedded: Embedding,
    unseen: Sequence[str] = (),
    title: str | None = None,
    beside: Contrast | None = None,
) -> Picture:
    """The map of the examples, one point each, a colour and a shape per task; beside it the untrained adapter's.

    Args:
        factors: what the examples select.
        embedded: `neighbours.embed` of it.
        unseen: tasks that the adapter was not trained on; they are drawn hollow.
        title: above the purity; None for none.
        beside: `contrast.contrast` with the untrained adapter; None if there is none, which the figure then says.

    Raises:
        ScopeError: if an unseen task is not among the tasks.
    """
    names = factors.selections.names
    for task in unseen:
        if task not in names:
            raise ScopeError(f"unseen task {task!r} is not among the tasks: {', '.join(names)}")
    shown = _shown(embedded, beside)
    height = max(5.2, 1.0 + 0.24 * len(names)) + 0.3 * (beside is not None)
    figure = Picture((8.6 if beside is None else 12.2, height))
    panels = figure.grid(1, len(shown))
    for axes, (adapter, one) in zip(panels, shown.items(), strict=True):
        for place, task in enumerate(names):
            _scatter(axes, one.points[factors.selections.labels == place], place, task, task in unseen)
        _frame_map(axes, one)
        head = [_adapter(factors, adapter)] if beside is not None else []
        lines = [*head, *([] if title is None else [plain(title)]), *_purities(one, beside is not None)]
        axes.set_title("\n".join(lines), fontsize=9, loc="left", parse_math=False)
    _legend(figure, panels[0], hollow=bool(unseen))
    _tell_control(figure, factors, embedded, beside)
    points = {name: _points(factors, one) for name, one in shown.items()}
    points = {name: own.assign(unseen=own["task"].isin(unseen).to_numpy()) for name, own in points.items()}
    figure.data = pd.concat([own.assign(adapter=name) for name, own in points.items()], ignore_index=True)
    return figure


def pairs(
    factors: Factors,
    embedded: Embedding,
    pairing: Pairing,
    beside: Contrast | None = None,
    beside_pairing: Pairing | None = None,
) -> Picture:
    """The map of pairs of a seen and an unseen task, a colour and a shape per pair, and how much every two tasks share.

    Args:
        factors: what the examples of the paired tasks select, and of no others.
        embedded: `neighbours.embed` of it.
        pairing: `affinity.paired` of it.
        beside: `contrast.contrast` with the untrained adapter, in a row below; None if there is none.
        beside_pairing: `affinity.paired` of the untrained adapter's selections.
    """
    shown, pairings = _shown(embedded, beside), [pairing, *([] if beside_pairing is None else [beside_pairing])]
    matrix = pairing.overlap
    side, names = max(1.8, 0.62 * len(matrix)), room(factors.selections.names)
    legend = 1.2 + sum(0.5 + 1.15 * room(pair) for pair in pairing.pairs)
    height = max(5.8, side + names + 1.8)
    figure = Picture((max(6.6 + side + names, legend), height + (len(shown) - 1) * max(5.0, side + names + 1.2)))
    panels = figure.subplots(len(shown), 2, width_ratios=(5.6, side), squeeze=False)
    limit = max(float(np.abs(found.overlap.to_numpy()).max()) for found in pairings) or 1.0
    both = zip(panels, shown.items(), pairings, strict=True)
    for (axes, right), (adapter, one), found in both:
        for place, pair in enumerate(found.pairs):
            for hollow, task in enumerate(pair):
                rows = np.array(factors.selections.tasks) == task
                _scatter(axes, one.points[rows], place, task, bool(hollow))
        _frame_map(axes, one)
        _overlaps(right, found.overlap, factors.selections.mixture, limit)
        head = f"{_adapter(factors, adapter)}\n" if beside is not None else ""
        axes.set_title(f"{head}{_overlap_title(found)}", fontsize=9, loc="left")
    _two_rows(figure, panels[0, 0])
    _tell_control(figure, factors, embedded, beside)
    figure.data = _pair_data(factors, shown, pairings)
    return figure


def usage(factors: Factors) -> Picture:
    """How much each factor of each block is used: a panel per module and side, a row per layer, a column per factor.

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


def _shown(embedded: Embedding, beside: Contrast | None) -> dict[str, Embedding]:
    """The maps that are drawn, by adapter."""
    return {TRAINED: embedded} | ({} if beside is None else {UNTRAINED: beside.embedding})


def _adapter(factors: Factors, which: str) -> str:
    """What a panel is of."""
    return "the trained adapter" if which == TRAINED else origin(factors)


def _purities(embedded: Embedding, narrow: bool) -> list[str]:
    """The purity of a map, beside its level of chance, in lines."""
    purity, on_map = embedded.purity, embedded.map_purity
    chance = f"chance {purity.chance:.0%}, 95% of shuffles {purity.low:.0%} to {purity.high:.0%}"
    nearest = f"same task among {purity.k} nearest by selections: {purity.value:.0%}"
    first = [nearest, f"({chance})"] if narrow else [f"{nearest} ({chance})"]
    return [*first, f"same task among {on_map.k} nearest on this map: {on_map.value:.0%}"]


def _tell_control(figure: Picture, factors: Factors, embedded: Embedding, beside: Contrast | None) -> None:
    """Write above the panels how the trained adapter's purity differs, or that there is nothing to compare it with."""
    said = remarks(factors)
    figure.notes += said
    if beside is None:
        _heading(figure, "\n".join(fill(plain(sentence), 100) for sentence in said))
        return
    pair = f"purity by selections: trained {embedded.purity.value:.1%}, untrained {beside.embedding.purity.value:.1%}"
    interval = ""
    if beside.withheld is None:
        interval = f" [{100 * beside.low:+.1f}, {100 * beside.high:+.1f}] (95%, {beside.groups} groups of examples)"
    found = f"{pair}, difference {100 * beside.difference:+.1f} points{interval}"
    _heading(figure, f"{found}\n{plain(beside.verdict)}")


def _heading(figure: Picture, text: str) -> None:
    figure.suptitle(text, fontsize=9, x=0.004, ha="left", parse_math=False)


def _pair_data(factors: Factors, shown: Mapping[str, Embedding], pairings: Sequence[Pairing]) -> pd.DataFrame:
    """What the figure of pairs draws: points of the maps and cells of the overlaps, by adapter."""
    seen = {task: pair[0] for pair in pairings[0].pairs for task in pair}
    parts = []
    for (name, one), pairing in zip(shown.items(), pairings, strict=True):
        points, matrix = _points(factors, one), pairing.overlap
        points = points.assign(pair=points["task"].map(seen), unseen=~points["task"].isin(list(seen.values())))
        shared = pd.DataFrame({"task": np.repeat(matrix.index, len(matrix)), "other": [*matrix.columns] * len(matrix),
                               "overlap": matrix.to_numpy().ravel()})  # fmt: skip
        both = pd.concat({"map": points, "overlap": shared}, names=["panel"]).reset_index(0)
        parts.append(both.assign(adapter=name))
    return pd.concat(parts, ignore_index=True)


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
        f"t-SNE (perplexity {embedded.perplexity:g}, seed {embedded.seed}): nearness matters, axes and gaps do not",
        fontsize=8,
    )


def _points(factors: Factors, embedded: Embedding) -> pd.DataFrame:
    """One row an example: task, id, and where it lies on the map."""
    x, y = embedded.points.T
    return factors.examples.filter(["task", "id"]).reset_index(drop=True).assign(x=x, y=y)


def _overlaps(axes: Axes, matrix: pd.DataFrame, mixture: bool, limit: float) -> None:
    """Seen tasks down, unseen ones across, so that the pairs are the diagonal, which is framed; colours to a limit."""
    count, values = len(matrix), matrix.to_numpy()
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
    pairs = f"overlap of selections (beside, pairs framed): {pairing.mean:.2f} within pairs"
    if len(pairing.pairs) == 1:
        return f"{pairs}; one pair has nothing to be compared with"
    kind = "all" if pairing.exact else "random"
    return (
        f"{pairs}, {pairing.others:.2f} between other tasks\n"
        f"{pairing.at_least} of {kind} {pairing.tried} ways to pair these tasks give as much (p = {pairing.p:.2g})"
    )


def _two_rows(figure: Picture, axes: Axes) -> None:
    """A legend whose first row is the seen tasks and whose second the unseen ones, a column per pair."""
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
