"""Figures: a Run to a matplotlib Figure. Nothing is computed here that the Run does not give."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from interference.blocks import Scope, Side, Space
from interference.errors import ScopeError
from interference.figures.canvas import Picture, room, save
from interference.figures.cells import FRAMES, colourbar, matrix
from interference.figures.ways import Way, agreed, told
from interference.run import Run, compare
from interference.run.frames import in_order
from interference.run.notebook import limit_of
from interference.run.remarks import opposed, shown_verdicts
from interference.statistics.estimand import METRICS
from mixlora.common.errors import plain

__all__ = ["difference", "heatmap", "panels", "save", "series"]

KEY = "frame: beyond noise; solid conflict, dashed synergy"  # where verdicts are not written


def heatmap(run: Run, metric: str = "interference", title: str | None = None, **options: Any) -> Picture:
    """The matrix of a metric, each cell with its 95% interval and its verdict.

    Args:
        run: A run.
        metric: As in `Run.matrix`.
        title: Above the matrix; None for the metric's meaning.
        **options: Scope and options of `Run.table`.

    Returns:
        A matplotlib Figure, with `data` (a DataFrame of what is drawn), `notes` and `caption`.

    Raises:
        ScopeError: If the scope is not there.
        ConfigError: If an option has a value that is not allowed.
        MeasurementError: If every gradient in the scope is zero.

    Example:
        >>> import interference
        >>> figure = interference.figures.heatmap(interference.load("reports/reference/lora"), layers=[3])
        >>> len(figure.data)
        36
    """
    table = run.table(metric, **options)
    return drawn(table, metric, f"{metric}: {METRICS[metric].meaning}" if title is None else title, **options)


def drawn(table: pd.DataFrame, metric: str, title: str, **options: Any) -> Picture:
    """The picture of `heatmap`, of a table that is there already.

    Args:
        table: Of `Run.table`.
        metric: Of the table.
        title: Above the matrix.
        **options: Those that the table was made with.

    Returns:
        A matplotlib Figure, with `data`, `notes` and `caption`.
    """
    tasks = list(table["affected"].cat.categories)
    size = 1.9 + 1.15 * len(tasks)
    more = _more_room(tasks)
    figure = Picture((size + 1.0 + more, size + more))
    (axes,) = figure.grid(1, 1)
    limit = limit_of([table], metric)
    matrix(axes, table, tasks, metric, limit, detailed=True)
    axes.set_title(plain(title), fontsize=10, wrap=True, parse_math=False)
    colourbar(figure, [axes], metric, limit, [table])
    figure.data = table
    _explain(figure, metric, [Way("", options)])
    return figure


def series(runs: Mapping[str, Run], metric: str = "interference", **options: Any) -> Picture:
    """The matrices of several runs side by side, on one colour scale.

    Args:
        runs: {title: run}, all of the same tasks; they are drawn in the first run's order.
        metric: As in `Run.matrix`.
        **options: Scope and options of `Run.table`.

    Returns:
        A matplotlib Figure, with `data` (a DataFrame of what is drawn), `notes` and `caption`.

    Raises:
        ScopeError: If there is no run, their tasks differ, or the scope is not there.
        ConfigError: If an option has a value that is not allowed.
        MeasurementError: If every gradient in the scope is zero.
    """
    tasks = _common(runs)
    tables = [in_order(run.table(metric, **options), tasks) for run in runs.values()]
    size = 1.0 + 0.95 * len(tasks)
    more = _more_room(tasks)
    figure = Picture((size * len(runs) + 1.5 + more, size + 1.0 + more), "compressed")
    axes = figure.grid(1, len(runs))
    limit = limit_of(tables, metric)
    for place, (title, table) in enumerate(zip(runs, tables, strict=True)):
        matrix(axes[place], table, tasks, metric, limit, detailed=True, labelled=place == 0)
        axes[place].set_title(plain(title), fontsize=10, parse_math=False)
    colourbar(figure, axes, metric, limit, tables)
    figure.data = _stacked({(title,): table for title, table in zip(runs, tables, strict=True)}, ["run"])
    _explain(figure, metric, [Way("", options)])
    return figure


def _common(runs: Mapping[str, Run]) -> list[str]:
    """The tasks of all runs, in the first one's order; a ScopeError where they differ."""
    if not runs:
        raise ScopeError("a series needs at least one run, but none was given")
    (first, tasks), *others = ((title, run.tasks) for title, run in runs.items())
    for title, own in others:
        if set(own) != set(tasks):
            raise ScopeError(
                f"a series is of runs of the same tasks, but {first!r} has {', '.join(tasks)} and {title!r} "
                f"{', '.join(own)}; draw them apart"
            )
    return tasks


def difference(
    runs: Mapping[str, Run], metric: str = "interference", ways: Sequence[Way] = (), **options: Any
) -> Picture:
    """The matrices of two runs on the same examples, and how the second differs, with paired intervals and verdicts.

    Args:
        runs: {title: run}, two of them.
        metric: As in `Run.matrix`.
        ways: One row each, with options of their own; none for the one of the options.
        **options: Scope and options of `Run.table`.

    Returns:
        A matplotlib Figure, with `data` (a DataFrame of what is drawn), `notes` and `caption`.

    Raises:
        ScopeError: If there are not two runs, they do not have the same units, or the scope is not there.
        ConfigError: If an option has a value that is not allowed.
        MeasurementError: If every gradient in the scope is zero.

    Example:
        >>> import interference
        >>> lora, mixlora = (interference.load(f"reports/reference/{name}") for name in ("lora", "mixlora"))
        >>> figure = interference.figures.difference({"LoRA": lora, "MixLoRA": mixlora}, layers=[3])
        >>> list(dict.fromkeys(figure.data["run"]))
        ['LoRA', 'MixLoRA', 'MixLoRA minus LoRA']
    """
    if len(runs) != 2:
        raise ScopeError(f"a difference is between two runs, but {len(runs)} were given")
    ways = ways or [Way("", options)]
    rows = agreed(ways, [_with_change(runs, metric, way.options) for way in ways])
    tasks = next(iter(runs.values())).tasks
    size = 1.0 + 0.95 * len(tasks)
    more = _more_room(tasks)
    figure = Picture((size * 3 + 1.5 + more, size * len(ways) + 1.0 + more), "compressed")
    axes = figure.grid(len(ways), 3)
    for k, (way, shown) in enumerate(zip(ways, rows, strict=True)):
        own, limit = axes[3 * k : 3 * k + 3], limit_of(list(shown.values()), metric)
        for place, (title, table) in enumerate(shown.items()):
            edges = {"labelled": place == 0, "footed": k == len(ways) - 1}
            matrix(own[place], table, tasks, metric, limit, detailed=True, judged=way.judged, **edges)
            own[place].set_title(_titled(title, way), fontsize=10, parse_math=False)
        colourbar(figure, own, metric, limit, list(shown.values()))
    figure.data = _by_way(ways, [{(title,): table for title, table in shown.items()} for shown in rows], ["run"])
    _explain(figure, metric, ways)
    return figure


def _with_change(runs: Mapping[str, Run], metric: str, options: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The tables of two runs and of their difference, by title."""
    first, second = runs.values()
    tables = [run.table(metric, **options) for run in runs.values()]
    change = compare(first, second, metric, **options).rename(columns={"difference": "value"})
    change.loc[change["affected"] == change["stepped"], "verdict"] = "self"
    names = [*runs, f"{list(runs)[1]} minus {next(iter(runs))}"]
    return dict(zip(names, [*tables, change], strict=True))


def _titled(title: str, way: Way) -> str:
    return f"{way.title}\n{plain(title)}" if way.title else plain(title)


def panels(
    run: Run,
    metric: str = "interference",
    layers: Sequence[int] | None = None,
    modules: Sequence[str] | None = None,
    side: Side | str | None = None,
    space: Space | str = Space.PARAMETERS,
    ways: Sequence[Way] = (),
    **options: Any,
) -> Picture:
    """Small multiples: one row per layer, one column per group of modules and side, as in the paper's Figure 2.

    Args:
        run: A run.
        metric: As in `Run.matrix`.
        layers: Rows; None for every probed layer.
        modules: Columns: modules or groups of them; None for every group.
        side: Side of the columns; None for A and B.
        space: "weight" for columns of W, which has no sides, if the run was computed with weight_space=True; "adam" for
            AdamW's step, if with step="adam".
        ways: All layers once for each, with options of their own; none for the one of the options.
        **options: Options of `Run.table`.

    Returns:
        A matplotlib Figure, with `data` (a DataFrame of what is drawn), `notes` and `caption`.

    Raises:
        ScopeError: If a layer, module or side is not there, or none of these blocks lies in a layer.
        ConfigError: If an option has a value that is not allowed.

    Example:
        >>> import interference
        >>> figure = interference.figures.panels(interference.load("reports/reference/lora"), layers=[0, 3])
        >>> sorted(set(figure.data["layer"]))
        [0, 3]
    """
    blocks = run.scope(layers, modules, side, space)
    blocks = blocks[blocks["layer"].notna()]
    rows = sorted({int(layer) for layer in blocks["layer"]})
    if not rows:
        raise ScopeError(
            "no block in this scope belongs to a layer; name modules of layers, or a run that probes layers"
        )
    groups = modules or list(dict.fromkeys(blocks["group"]))
    sides = (Side.W,) if space == Space.WEIGHT else (Side.A, Side.B) if side is None else (Side(side),)
    columns = [(group, one) for group in groups for one in sides]
    ways = ways or [Way("", options)]
    found = [_panel_tables(run, rows, columns, space, metric, **way.options) for way in ways]
    made, empty = agreed(ways, [tables for tables, _ in found]), found[0][1]
    width, longest = max(1.8, 0.42 * len(run.tasks)), room(run.tasks)
    across = width + max(0.25, 0.67 * longest - 0.3)  # names below a panel reach under the one before it
    height = (width + 0.35 + 0.15 * (len(ways) > 1)) * len(rows) * len(ways)
    figure = Picture((across * len(columns) + longest + 1.4, height + longest + 0.6), "compressed")
    axes = figure.grid(len(rows) * len(ways), len(columns))
    for k, (way, tables) in enumerate(zip(ways, made, strict=True)):
        own, limit = axes[k * len(axes) // len(ways) :][: len(axes) // len(ways)], limit_of([*tables.values()], metric)
        for place, panel in enumerate(own):
            r, c = divmod(place, len(columns))
            key = (rows[r], *columns[c])
            panel.set_title(_titled(f"layer {key[0]}, {key[1]}, {key[2]}", way), fontsize=8, parse_math=False)
            if key in tables:
                edges = {"labelled": c == 0, "footed": (k, r) == (len(ways) - 1, len(rows) - 1)}
                matrix(panel, tables[key], run.tasks, metric, limit, judged=way.judged, **edges)
            else:
                panel.text(0.5, 0.5, empty[key], ha="center", va="center", fontsize=8)
                panel.set_axis_off()
        colourbar(figure, own, metric, limit, list(tables.values()))
    figure.data = _by_way(ways, made, ["layer", "modules", "side"])
    _explain(figure, metric, ways, KEY)
    return figure


def _panel_tables(
    run: Run,
    layers: Sequence[int],
    columns: Sequence[tuple[str, Side]],
    space: Space | str,
    metric: str,
    **options: Any,
) -> tuple[dict[tuple[int, str, Side], pd.DataFrame], dict[tuple[int, str, Side], str]]:
    """The tables of the panels, by layer, modules and side, and why others have none."""
    tables, empty = {}, {}
    for layer in layers:
        there = run.scope([layer], space=space)
        for group, side in columns:
            named = (there[["module", "group", "component"]] == group).any(axis=1) & (there["side"] == side)
            scope = Scope([layer], [group], side, space)
            if not named.any():
                empty[layer, group, side] = "not probed"
            elif not run.gram(**scope.options).any():
                empty[layer, group, side] = "every gradient is zero"
            else:
                tables[layer, group, side] = run.table(metric, **scope.options, **options)
    return tables, empty


def _by_way(ways: Sequence[Way], tables: Sequence[Mapping[Any, pd.DataFrame]], keys: Sequence[str]) -> pd.DataFrame:
    """The tables of every way below each other; where there are several, their titles are the first column."""
    if len(ways) == 1:
        return _stacked(tables[0], keys)
    named = {(way.title, *key): table for way, own in zip(ways, tables, strict=True) for key, table in own.items()}
    return _stacked(named, ["estimator", *keys])


def _explain(figure: Picture, metric: str, ways: Sequence[Way], key: str = "") -> None:
    """Below a figure: what frames mean (the key), what a row without verdicts holds, and where a cell has none."""
    lines, data = [], figure.data
    for way in ways:
        own = data[data["estimator"] == way.title] if len(ways) > 1 else data
        if not way.judged:
            by = "run" if "run" in own else "estimator"
            lines.append(told(way.title, {str(name): part for name, part in own.groupby(by, sort=False)}))
            figure.notes.append(lines[-1])
            continue
        if key and shown_verdicts(own).isin(list(FRAMES)).any():
            lines.append(key)
        if found := opposed(own, metric, way.options.get("reduce"), way.options.get("aggregate")):
            lines.append(found)
            figure.notes.append(found)
    if lines:
        figure.explain(lines)


def _stacked(tables: Mapping[Any, pd.DataFrame], keys: Sequence[str]) -> pd.DataFrame:
    """The tables below each other, with the parts of their keys as first columns."""
    frames = [table.assign(**dict(zip(keys, key, strict=True))) for key, table in tables.items()]
    whole = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(keys))
    return whole[[*keys, *whole.columns.drop(list(keys))]]


def _more_room(tasks: Sequence[str]) -> float:
    """For names longer than the figures' sizes allow for, in inches."""
    return max(0.0, room(tasks) - 0.9)
