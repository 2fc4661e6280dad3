"""What the command line prints: tables of a run for a terminal, progress, and errors without control sequences."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from interference.run import Run, Scope
from interference.run.remarks import (
    AT_ODDS,
    ZERO,
    adam_step,
    also_trained,
    carried,
    carried_words,
    copied,
    dependence,
    few,
    has_null,
    nearly_stationary,
    nonpositive,
    opposed,
    other_blocks,
    other_loss,
    reached,
    reduced_by,
    scarce,
    shown_verdicts,
    sketched,
    stationary,
    too_few,
    unstable,
)
from interference.run.schema import meta_of
from mixlora.common.errors import plain

if TYPE_CHECKING:
    from interference.config import AnalysisConfig
    from interference.verification.result import Verification

STYLES = {"conflict": "bold blue", "synergy": "bold red", "unclear": "dim", "self": "dim"}
STYLES |= {"no-signal": "dim italic", "carried": "dim italic", AT_ODDS: "dim"}
MARKS = {"conflict": "conflict", "synergy": "synergy", "unclear": "unclear", "no-signal": "no signal", "self": ""}
MARKS |= {"carried": "carried by few examples", AT_ODDS: "at odds"}

_CELL = ("affected", "stepped", "value", "low", "high", "verdict")
_SHOWN = 20
"""Rows of a long table that are printed."""
ENDS = 15
"""Cells at each end that are listed where the matrix does not fit."""
_NAME, _COLUMN = 10, 7
"""Characters that a matrix needs at least for the names of its rows and for each of its columns."""


def number(value: float) -> str:
    """Three significant digits."""
    return "–" if pd.isna(value) else f"{value:.3g}"


def matrix(table: pd.DataFrame, title: str, carried: Mapping[str, str] | None = None) -> Table:
    """The cells of `Run.table` as a matrix: value, interval and verdict in each cell.

    Args:
        table: of `Run.table`.
        title: above it.
        carried: what a row says that is carried, by task, if more is known than that.
    """
    words = carried or {}
    tasks = list(dict.fromkeys(table["affected"]))
    table = table.assign(verdict=shown_verdicts(table))
    grid = Table(title=plain(title), title_justify="left", show_lines=True, padding=(0, 1))
    grid.add_column("affected \\ stepped", overflow="fold")
    for task in tasks:
        grid.add_column(plain(task), justify="center", overflow="fold")
    for task in tasks:
        row = table[table["affected"] == task]
        grid.add_row(plain(task), *(_cell(cell, words.get(task)) for cell in row.to_dict("records")))
    return grid


def fits(table: pd.DataFrame, console: Console) -> bool:
    """Whether the cells of a table are printed as a matrix: the console is wide enough, or they are few."""
    return console.width >= _NAME + _COLUMN * table["affected"].nunique() or len(table) <= 2 * ENDS


def extremes(table: pd.DataFrame, title: str) -> Table:
    """The lowest and highest cells of `Run.table`, where the matrix of all tasks would not fit."""
    cells = table[table["affected"] != table["stepped"]]
    cells = cells.assign(verdict=shown_verdicts(cells))
    known = cells.dropna(subset="value").sort_values("value")[list(_CELL)]
    ends = pd.concat([known.head(ENDS), known.iloc[ENDS:].tail(ENDS)])
    none = f", of which {len(cells) - len(known)} have no value" if len(known) < len(cells) else ""
    return frame(ends, f"{title}: the {ENDS} lowest and {ENDS} highest of {len(cells)} cells{none}; --json has all")


def frame(data: pd.DataFrame, title: str) -> Table:
    """Any small DataFrame."""
    grid = Table(title=plain(title), title_justify="left")
    data = data.reset_index() if data.index.name else data
    for column in data.columns:
        numeric = pd.api.types.is_numeric_dtype(data[column])
        grid.add_column(plain(column), justify="right" if numeric else "left", overflow="fold")
    for row in data.itertuples(index=False):
        grid.add_row(*(number(v) if isinstance(v, float) else plain(v) for v in row))
    return grid


def comparison(table: pd.DataFrame, title: str, runs: Sequence[Run], console: Console, **scope: Any) -> None:
    """Print the cells of `compare` that are not a task with itself, and what a reader must know of the runs."""
    cells = table[table["affected"] != table["stepped"]].drop(columns=["p"])
    console.print(frame(cells, title))
    apart = other_blocks(*(run.scope(**scope)["name"] for run in runs))
    steps = [plain(line) for run in runs for line in adam_step(run.meta)] if scope.get("space") == "adam" else []
    for line in dict.fromkeys([apart, *(sketched(run.meta) for run in runs), *steps]):
        if line:
            console.print(Text(f"note: {line}"))


def show(run: Run, metric: str, console: Console, **options: Any) -> None:
    """Print the matrix of a run, what noise alone does, each task's signal, and what a reader must know."""
    table = run.table(metric, **options)
    scope, _ = Scope.split(options)
    gram = run.gram(**scope.options)
    said = ", ".join(f"{key} {value}" for key, value in read_by(metric, options).items())
    title = f"{metric} ({said})" if said else metric
    wide = fits(table, console)
    carriers = run.carriers(**scope.options)
    words = {task: carried_words(groups, run.meta) for task, groups in carriers.items()}
    console.print(matrix(table, title, words) if wide else extremes(table, title))
    console.print(headline(table))
    if metric == "interference" and has_null(gram, run.probes):
        null = run.null(**options)
        meaning = "mean cosine of its pairs" if options.get("pairs") == "same-example" else "should be 1"
        how = f"{meaning} ({reduced_by(options.get('reduce'))})"
        console.print(frame(null, f"split-half null: I of one half of a task's units against the other; {how}"))
    signal = run.signal(**scope.options)
    console.print(frame(signal, "signal of each task's mean gradient"))
    shared = run.overlap()
    if wide and (shared.to_numpy() > 0).sum() > len(shared):  # a remark tells how many units share groups
        console.print(frame(shared, "groups in common (share)"))
    for line in remarks(run, table, signal, metric, options.get("reduce"), options.get("aggregate"), carriers, gram):
        console.print(Text(f"note: {line}"))


def read_by(metric: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given and that a metric reads."""
    ignored = {"pairs", "reduce"} if metric not in ("interference", "delta") else set()
    ignored |= {"reduce"} if metric == "delta" else set()
    return {key: value for key, value in options.items() if value is not None and key not in ignored}


def headline(table: pd.DataFrame) -> str:
    """How many pairs of tasks conflict, help, or are noise."""
    cells = table[table["affected"] != table["stepped"]]
    counts = shown_verdicts(cells).value_counts()
    parts = [
        f"{counts.get(verdict, 0)} {MARKS[verdict]}" for verdict in ("conflict", "synergy", "unclear", "no-signal")
    ]
    parts += [f"{counts[mark]} {MARKS[mark]}" for mark in ("carried", AT_ODDS) if counts.get(mark, 0)]
    return f"{len(cells)} pairs of tasks: {', '.join(parts)}. Verdicts are about Delta_j L_i (95%, Benjamini-Hochberg)."


def remarks(
    run: Run,
    table: pd.DataFrame,
    signal: pd.DataFrame,
    metric: str = "interference",
    reduce: str | None = None,
    aggregate: str | None = None,
    carriers: Mapping[str, Sequence[Sequence[int]]] | None = None,
    gram: np.ndarray | None = None,
) -> list[str]:
    """What a reader of this matrix must know.

    Args:
        run: the run.
        table: of `Run.table`.
        signal: of `Run.signal`, in the same scope.
        metric: metric of the table.
        reduce: as in `Run.table`; None for the default.
        aggregate: as in `Run.table`; None for the default.
        carriers: of `Run.carriers`, in the same scope; None: not told.
        gram: of `Run.gram`, in the same scope; None: of all blocks.
    """
    found, gram = [], run.gram() if gram is None else gram
    zero = run.zero_blocks()
    if zero:
        found.append(
            f"{len(zero)} of {len(run.blocks)} blocks have zero gradients ({zero[0]}, ...) and add nothing: {ZERO}"
        )
    if metric == "interference" and reduced_by(reduce) != reduced_by(None) and (tasks := unstable(table)):
        why = nonpositive(_listed(tasks))
        found.append(f"{why}, so means of ratios are unstable there; the default, {reduced_by(None)}, is not")
    if other := opposed(table, metric, reduce, aggregate):
        found.append(other)
    if forced := stationary(signal):
        found.append(
            f"{nearly_stationary(_listed(forced))}: off-diagonal values must average below 0 there, whatever the tasks "
            "are; compare with an earlier checkpoint"
        )
    if shared := dependence(run.probes):
        found.append(plain(shared))
    if silent := few(too_few(gram, run.probes), run.probes):
        found.append(plain(silent))
    found += [plain(line) for line in carried(carriers or {}, run.probes, run.meta)]
    if metric == "delta" and (led := scarce(table, carriers or {})):
        found.append(plain(led))
    if again := copied(gram, run.probes):
        found.append(plain(again))
    if sketch := sketched(run.meta):
        found.append(sketch)
    found += [plain(line) for line in adam_step(run.meta)]
    if loss := other_loss(run.meta):
        found.append(loss)
    if others := run.meta.get("not_probed"):
        found.append(also_trained("; ".join(others)))
    return found + [plain(line) for line in reached(run.meta)]


def notes(run: Run, config: "AnalysisConfig", origin: Path | None) -> list[str]:
    """What whoever computed a run must know: fewer examples than asked for, one task alone, a changed checkpoint.

    And what of the data reached the model.
    """
    samples, size = config.probe.samples, config.probe.unit_size
    counts = run.probes["task"].value_counts(sort=False) * size
    few = {task: count for task, count in counts.items() if count <= samples - size}
    whole = f" in whole units of {size}" if size > 1 else ""
    found = [f"task {task!r} has {count} examples{whole}, fewer than samples={samples}" for task, count in few.items()]
    if left := {samples - count for count in counts if samples - size < count < samples}:
        found.append(f"units of {size} leave {max(left)} of samples={samples} examples of a task unused")
    if loss := other_loss(run.meta):
        found.append(loss)
    found += adam_step(run.meta)
    if again := run.meta.get("measured_again"):
        parts = "a part" if again == 1 else f"{again} parts"
        found.append(f"measured again: {parts} of the unfinished work, damaged or from examples that have changed")
    if len(run.tasks) == 1:
        found.append("a run of one task has no pair of tasks to compare")
    if origin is not None and origin.is_dir() and fingerprint(meta_of(origin)) not in ("", fingerprint(run.meta)):
        found.append(f"the checkpoint has changed since {origin} was computed: this run measures it as it is now")
    return found + reached(run.meta)


def fingerprint(meta: Mapping[str, Any]) -> str:
    """Of the model that a run measured; empty where its file does not tell, or an earlier version wrote it."""
    known = meta.get("fingerprints") or {}
    return str(known["model"]) if "base weights" in known else ""


def verification(found: "Verification", console: Console) -> None:
    """Print what `verify` found."""
    console.print(frame(found.gradients, "units recomputed by batch-1 autograd: relative errors"))
    console.print(frame(found.steps, "real steps against first-order Delta (step: lambda; predicted: nats per token)"))
    adam = found.adam
    if adam is not None:
        title = "real steps of torch's AdamW, a task's mean gradient each, against first-order Delta of AdamW's step"
        console.print(frame(adam.steps, title))
    console.print(
        f"{'passed' if found.passed else 'FAILED'}: gradients equal autograd to {number(found.error)} (relative, "
        f"{found.dtype}), the Gram to {number(found.gram_error)} (worst in {found.gram_block}), "
        f"losses to {number(found.loss_error)}; Delta matches real steps {_until(found.linear_until)}."
    )
    if adam is not None:
        console.print(
            f"AdamW's step equals torch's to {number(adam.error)} (worst in {adam.block}); "
            f"its Delta matches real steps {_until(adam.linear_until)}."
        )
    if adam is not None and not adam.linear_until and found.dtype == "float32":
        console.print(
            "note: AdamW adds a gradient to its second moments before it divides. In a young state, or one of other "
            "examples, that changes them much, and its next step is not the one measured; measure a later checkpoint."
        )
    if found.passed and not found.linear_until:
        console.print(
            f"Steps were not judged: {found.dtype} rounds losses by more than small steps move them. That says "
            "nothing against Delta; measure in float32 to compare it."
        )
    if found.routers and not found.linear_until:
        console.print(
            "note: routers were measured. Their straight-through gradient is an estimate, not the derivative of the "
            "loss, so even small real steps may differ from it. Measure without probe.routers to check A and B."
        )


def _until(step: float) -> str:
    """Up to which step Delta matches real ones."""
    return f"up to a step of {number(step)}" if step else "at no step size tried"


def tables(named: Mapping[str, pd.DataFrame], console: Console) -> None:
    """Print the first rows of tables."""
    for name, table in named.items():
        console.print(frame(table.head(_SHOWN), name))


def to_json(data: pd.DataFrame) -> str:
    """Rows as JSON; numbers that do not exist are null."""
    return json.dumps(records(data), indent=2)


def tables_json(tables: dict[str, pd.DataFrame]) -> str:
    """Several tables as JSON, by name."""
    named = {name: table.reset_index() if table.index.name else table for name, table in tables.items()}
    return json.dumps({name: records(table) for name, table in named.items()}, indent=2)


def records(data: pd.DataFrame) -> list[Any]:
    """Rows as dicts; numbers that do not exist are None."""
    return list(data.astype(object).where(data.notna(), None).to_dict("records"))


def _listed(tasks: Sequence[str]) -> str:
    return ", ".join(plain(task) for task in tasks)


def _cell(cell: dict[str, Any], carried: str | None) -> Text:
    if cell["affected"] == cell["stepped"]:
        return Text(number(cell["value"]), style=STYLES["self"], justify="center")
    interval = f"[{number(cell['low'])}, {number(cell['high'])}]" if not pd.isna(cell["low"]) else "[no interval]"
    verdict = str(cell["verdict"])
    mark = carried or MARKS[verdict] if verdict == "carried" else MARKS[verdict]
    return Text(f"{number(cell['value'])}\n{interval}\n{mark}", style=STYLES[verdict], justify="center")
