"""Notebook: how a run is shown in one: its matrix in the colours of the report, its tasks and its blocks.

Not here: figures (`interference.figures`) and the report's page (`interference.report`).
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interference.blocks import Scope, select
from interference.errors import InterferenceError
from interference.run.remarks import few, shown_verdicts, too_few
from interference.statistics.significance import Verdict
from mixlora.common.errors import plain
from mixlora.common.files import amount

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

    from interference.run.run import Run

POSITIVE = ((247, 247, 247), (253, 219, 199), (244, 165, 130), (225, 122, 98), (207, 74, 60))
NEGATIVE = ((247, 247, 247), (209, 229, 240), (146, 197, 222), (95, 163, 208), (47, 127, 189))
"""Red, green and blue from the middle of the scale outwards, as on the report's light page (`style.css`)."""
MOST_TASKS = 12
"""Tasks whose matrix is shown unasked."""
MOST_BYTES = 2**28
"""Bytes of Gram matrices that are read to show a run unasked."""
KEY = "Rows are the affected task, columns the stepped task. {frames}"
FRAMES = "A frame is beyond noise: solid for conflict, dashed for synergy."

_OWN, _SILENT = "background-color: #eceae4; color: #4a4740", "background-color: #fbfaf7; color: #4a4740"
_MARKS = {
    "conflict": "outline: 2px solid #000000; outline-offset: -3px; font-weight: 700",
    "synergy": "outline: 2px dashed #000000; outline-offset: -3px; font-weight: 700",
    "no-signal": _SILENT,
    "carried": _SILENT,
    "self": _OWN,
}
_CELLS: list[Any] = [
    {"selector": "td", "props": "text-align: center; white-space: pre; padding: 0.3em 0.6em"},
    {"selector": "caption", "props": "text-align: left; caption-side: bottom; max-width: 60em"},
]


def shade(value: float, limit: float) -> str:
    """The CSS of a value: its colour of the diverging scale, and the ink that is read best on it.

    Args:
        value: Of a cell; NaN has no colour.
        limit: The end of the scale; what lies beyond keeps the end's colour.
    """
    if not np.isfinite(value):
        return "background-color: #ffffff; color: #000000"
    stops = np.array(NEGATIVE if value < 0 else POSITIVE, dtype=float)
    place = min(abs(value) / limit, 1) * (len(stops) - 1)
    below = min(int(place), len(stops) - 2)
    red, green, blue = np.floor(stops[below] + (place - below) * (stops[below + 1] - stops[below]) + 0.5).astype(int)
    shares = np.array([red, green, blue]) / 255
    light = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
    ink = "#000000" if light > 0.179 else "#ffffff"  # whichever has the greater contrast
    return f"background-color: rgb({red}, {green}, {blue}); color: {ink}"


def limit_of(tables: Sequence[pd.DataFrame], metric: str) -> float:
    """The end of the colour scale that tables share: a high quantile of the sizes off the diagonal, as on the page.

    Args:
        tables: Of `Run.table` or of `compare`, in notebook and figures alike.
        metric: Of the tables.

    Returns:
        Half the scale's width; of I at least 1, which is what a task's own step brings.
    """
    cells = [table.loc[table["affected"] != table["stepped"], "value"].abs().dropna() for table in tables]
    values = np.concatenate(cells) if cells else np.zeros(0)
    share = 0.9 if metric == "interference" else 0.95
    robust = float(np.quantile(values, share)) if len(values) else 0.0
    return max(1.0, robust) if metric == "interference" else robust or 1.0


def styled(table: pd.DataFrame, metric: str, shown: pd.DataFrame | None = None) -> "Styler":
    """The cells of `Run.table` as a coloured matrix: a frame where it is beyond noise.

    Args:
        table: Of `Run.table`.
        metric: Metric of the table.
        shown: [tasks, tasks], what the cells say; None for the values.
    """
    values = _square(table, "value").astype(float)
    verdicts = _square(table.assign(shown=shown_verdicts(table)), "shown")
    limit = limit_of([table], metric)
    css = [
        [f"{shade(value, limit)}; {_MARKS.get(verdict, '')}" for value, verdict in zip(*row, strict=True)]
        for row in zip(values.to_numpy(), verdicts.to_numpy(), strict=True)
    ]
    frame = values if shown is None else shown
    style = frame.style.apply(lambda _: pd.DataFrame(css, frame.index, frame.columns), axis=None)
    style = style.format(None if shown is not None else "{:.3g}", na_rep="–", escape="html")
    style = style.format_index(_label, axis=0).format_index(_label, axis=1)
    framed = verdicts.isin(["conflict", "synergy"]).any(axis=None)
    caption = f"{metric}. {KEY.format(frames=FRAMES if framed else 'No cell is beyond noise.')}"
    return style.set_table_styles(_CELLS).set_caption(escape(caption))


def html(run: "Run", scope: Scope | None = None) -> str:
    """What a notebook shows of a run: the matrix, the tasks with their units and mean loss, and its blocks.

    Args:
        run: The run.
        scope: The blocks whose matrix is shown; None for all.
    """
    losses = run.probes.groupby("task", sort=False)["loss"]
    tasks = pd.DataFrame({"units": losses.size(), "loss (nats per token)": losses.mean()}).reset_index()
    tasks["task"] = tasks["task"].map(plain)
    table = tasks.to_html(index=False, float_format="{:.2f}".format, max_rows=40)
    blocks = run.blocks if scope is None else run.scope(**scope.options)
    parts = [f"{len(blocks)} blocks"]
    for column in ("layer", "module", "side"):
        values = [str(value) for value in blocks[column].dropna().unique()]
        shown = [*values[:8], "…", values[-1]] if len(values) > 10 else values
        parts += [f"{column}s {', '.join(shown)}"] if shown else []
    return f"{_matrix(run, scope or Scope())}\n{table}\n<p>{escape(plain('; '.join(parts)))}</p>"


def _matrix(run: "Run", scope: Scope) -> str:
    """The matrix of a run, or why it is not shown."""
    size = 4 * len(select(run.blocks, scope)) * len(run.probes) * (len(run.probes) + 1) // 2
    if len(run.tasks) < 2:
        return _said("A run of one task has no pair of tasks to compare.")
    if len(run.tasks) > MOST_TASKS:
        return _said(
            f"The matrix of {len(run.tasks)} tasks is not shown automatically (the limit is {MOST_TASKS} tasks).", True
        )
    if size > MOST_BYTES:
        return _said(
            f"The matrix is not shown automatically, because it would read {amount(size)} of Gram matrices.", True
        )
    try:
        table = run.table("interference", **scope.options)
    except InterferenceError as error:
        return _said(f"There is no matrix to show: {error}.")
    texts = [
        _text(value, low, high, verdict)
        for value, low, high, verdict in zip(
            table["value"], table["low"], table["high"], shown_verdicts(table), strict=True
        )
    ]
    shown = _square(table.assign(text=texts), "text")
    matrix = styled(table, "interference", shown).set_uuid(_name(table)).to_html()
    if not (table["verdict"] == Verdict.NO_SIGNAL).any():
        return matrix
    said = few(too_few(run.gram(**scope.options), run.probes), run.probes)
    return f"{matrix}\n{_said(f'{said}.')}" if said else matrix


def _said(sentence: str, remedy: bool = False) -> str:
    more = " <code>run.styled()</code> shows it, <code>run.table()</code> has its numbers." if remedy else ""
    return f"<p>{escape(plain(sentence))}{more}</p>"


def _name(table: pd.DataFrame) -> str:
    """What tells the styles of one matrix on a page from another's: the same for the same numbers."""
    text = table[["value", "low", "high"]].round(2).to_csv() + "".join(table["verdict"])
    return f"{pd.util.hash_array(np.array([text], dtype=object))[0]:x}"


def _text(value: float, low: float, high: float, verdict: str) -> str:
    """What a cell says: value, interval, verdict, a line each."""
    lines = [f"{value:.2f}" if np.isfinite(value) else "–"]
    if verdict != "self":
        lines.append(f"[{low:.2f}, {high:.2f}]" if np.isfinite(low) else "[no interval]")
        lines.append(verdict.replace("-", " "))
    return "\n".join(lines)


def _square(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column of a table as [tasks, tasks]."""
    tasks = _names(table["affected"].cat.categories)
    values = table[column].to_numpy(object).reshape(len(tasks), -1)
    return pd.DataFrame(values, tasks.rename("affected"), tasks.rename("stepped"))


def _names(categories: Iterable[str]) -> "pd.Index[Any]":
    return pd.Index(list(categories), dtype=object)


def _label(name: Any) -> str:
    return escape(plain(name))
