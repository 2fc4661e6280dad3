"""Tables of results: models as rows, tasks as columns, as text, Markdown, CSV and LaTeX."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mixlora.common import spreadsheets
from mixlora.common.errors import DataError, plain
from mixlora.data.groups import connected
from mixlora.evaluation.results import Results
from mixlora.evaluation.scoring.intervals import Estimate
from mixlora.evaluation.scoring.metrics import Metric

MEAN = "Mean"
POPE = "POPE"
POPE_SPLITS = ("pope_rand", "pope_adv", "pope_pop")
"""Tasks that can be shown as their mean. They share images, so they are not independent."""
_MISSING = "-"
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{REPLACEMENT CHARACTER}": "?",
} | {c: f"\\{c}" for c in "&%$#_{}"}
_LATEX |= {c: f"{{{c}}}" for c in "[]"}  # at the start of a row, a bracket would be an argument of the row before


@dataclass(frozen=True)
class Cell:
    """One number of a table: percent, or points of MME; None if there is none."""

    estimate: Estimate | None
    best: bool = False

    def text(self, intervals: bool = False) -> str:
        """The number with one decimal, optionally with its interval in brackets."""
        if self.estimate is None:
            return _MISSING
        value = f"{self.estimate.value:.1f}"
        return f"{value} [{self.estimate.low:.1f}, {self.estimate.high:.1f}]" if intervals else value


@dataclass(frozen=True)
class Table:
    """Models as rows and tasks as columns.

    Attributes:
        columns: names of the columns, except the first, which has the models.
        models: labels of the rows.
        cells: [models][columns].
        notes: columns that cannot be compared, means that are missing, answers that were not parsed, or of no groups.
    """

    columns: tuple[str, ...]
    models: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]

    def text(self, intervals: bool = False) -> str:
        """For a terminal: aligned, the best of a column marked with *, notes below."""
        grid = self._grid(printable, lambda text: f"{text}*", intervals)
        widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in grid]
        return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:], *map(printable, self.notes)])

    def markdown(self, intervals: bool = False) -> str:
        """For Markdown: the best of a column bold, notes as a list below."""
        header, *rows = self._grid(_markdown, lambda text: f"**{text}**", intervals)
        rule = ["---", *["---:"] * len(self.columns)]
        lines = [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]
        return "\n".join(lines + ([""] if self.notes else []) + [f"- {_markdown(note)}" for note in self.notes])

    def csv(self, intervals: bool = False) -> str:
        """For a program: four decimals, empty if there is no number; intervals add two columns for each."""
        ends = ("value", "low", "high") if intervals else ("value",)
        names = [f"{column} {end}".removesuffix(" value") for column in self.columns for end in ends]
        rows = [["Model", *(spreadsheets.cell(printable(name)) for name in names)]]
        for model, row in zip(self.models, self.cells, strict=True):
            found = [getattr(cell.estimate, end, None) for cell in row for end in ends]
            numbers = ("" if number is None else f"{number:.4f}" for number in found)
            rows.append([spreadsheets.cell(printable(model)), *numbers])
        return spreadsheets.rows_csv(rows)

    def latex(self, intervals: bool = False) -> str:
        """For LaTeX: a tabular with rules of the package booktabs, the best of a column bold, notes as comments."""
        header, *rows = [" & ".join(row) + r" \\" for row in self._grid(_latex, _bold, intervals)]
        lines = [rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}", r"\toprule", header, r"\midrule", *rows]
        notes = [f"% {printable(note)}" for note in self.notes]
        return "\n".join(["% needs \\usepackage{booktabs}", *lines, r"\bottomrule", r"\end{tabular}", *notes])

    def _grid(self, escape: Callable[[str], str], mark: Callable[[str], str], intervals: bool) -> list[list[str]]:
        """Header and rows as texts: names escaped, the best numbers marked."""
        rows = [["Model", *map(escape, self.columns)]]
        for model, cells in zip(self.models, self.cells, strict=True):
            texts = [(mark if cell.best else str)(cell.text(intervals)) for cell in cells]
            rows.append([escape(model), *texts])
        return rows


@dataclass(frozen=True)
class _Column:
    """One column of a future table: an estimate for each row, and how each was scored."""

    name: str
    estimates: tuple[Estimate | None, ...]
    judged: tuple[tuple[str, str] | None, ...] = ()
    averaged: bool = True
    comparable: bool = True


def table(results: Sequence[Results], columns: Sequence[str] | None = None, merge_pope: bool = False) -> Table:
    """The main scores of several models: first MME in points, then the other tasks in percent, then their mean.

    MME is shown as its totals alone, "MME perception", "MME cognition" and their sum, which are not in the mean. The
    mean's interval takes tasks that share groups, as pictures, as fully dependent, and others as independent. A model
    without a score in one of the columns has no mean: it would be over other tasks than the other means. The best is
    marked in comparable columns with at least two models; models that print the same number are all marked.

    Args:
        results: one for each row.
        columns: names of the columns to show, in this order; all if None. The mean is over those shown.
        merge_pope: show `POPE_SPLITS` as their mean, "POPE".

    Raises:
        DataError: there are no results, none of them has a column, or a task has another column's name.
    """
    if not results:
        raise DataError("There are no results to tabulate; give at least one.")
    every = [*_totals(results), *_tasks(results, merge_pope)]
    found = {column.name: column for column in every}
    if twice := [name for name, count in Counter([MEAN, *(column.name for column in every)]).items() if count > 1]:
        raise DataError(f"A task is called {twice[0]!r}, which is another column's name; rename the task.")
    wanted = [name for name in (found if columns is None else columns) if name != MEAN]
    if unknown := [name for name in wanted if name not in found]:
        raise DataError(f"No results have the column {unknown[0]!r}; the columns are {', '.join([*found, MEAN])}.")
    models, shown = tuple(one.label for one in results), [found[name] for name in wanted]
    notes = [note for column in shown for note in _differences(column, models)]
    mean = _mean([column for column in shown if column.averaged], results)
    if mean and (columns is None or MEAN in columns):
        notes += _gaps(mean, shown, models)
        left = [column.name for column in shown if not column.averaged]
        notes += [f"{MEAN} leaves out scores in points: {_listed(left)}"] if left else []
        shown = [*shown, mean]
    behind = _tasks_behind([column.name for column in shown], results)
    notes += [note for one in results if (note := _unparsed(one, behind))]
    old = {
        task for one in results for task, entry in one.tasks.items() if entry.get("groups") is None and task in behind
    }
    notes += [ungrouped(sorted(old))] if old else []
    cells = zip(*(_cells(column) for column in shown), strict=True) if shown else ((),) * len(models)
    return Table(tuple(column.name for column in shown), models, tuple(map(tuple, cells)), tuple(notes))


def printable(text: str) -> str:
    """The text on one line, without control characters."""
    return plain(" ".join(text.split()))


def ungrouped(tasks: Sequence[str]) -> str:
    """A sentence on tasks whose answers an earlier version has stored without groups."""
    named = ", ".join(map(plain, tasks))
    return (
        f"Intervals of {named} treat all answers as independent, since results of an earlier version name no groups; "
        "evaluate again into another --out."
    )


def unchecked(labels: Sequence[str]) -> str:
    """A sentence on evaluations whose answers an earlier version has stored without checksums."""
    named = ", ".join(map(plain, labels))
    return (
        f"Whether answers of {named} are those that were scored was not checked, since results of an earlier version "
        "name no checksums; evaluate again into another --out."
    )


def _totals(results: Sequence[Results]) -> list[_Column]:
    names = dict.fromkeys(name for one in results for name in one.totals)
    return [
        _Column(f"MME {name}", tuple(_estimate(one.totals.get(name), 1) for one in results), averaged=False)
        for name in names
    ]


def _tasks(results: Sequence[Results], merge_pope: bool) -> list[_Column]:
    names = dict.fromkeys(name for one in results for name, entry in one.tasks.items() if entry["metric"] != Metric.MME)
    columns = {name: _task(name, results) for name in names}
    splits = [columns[name] for name in POPE_SPLITS if name in columns]
    if not merge_pope or not splits:
        return list(columns.values())
    merged = [column for name, column in columns.items() if name not in POPE_SPLITS]
    at = min(list(columns).index(split.name) for split in splits)
    return [*merged[:at], _merged(splits), *merged[at:]]


def _task(name: str, results: Sequence[Results]) -> _Column:
    entries = [one.tasks.get(name) for one in results]
    judged = [None if entry is None else (_judged(entry), f"{entry['n']} examples") for entry in entries]
    estimates = [None if entry is None else _estimate(entry["scores"][entry["main"]], 100) for entry in entries]
    comparable = len(set(judged) - {None}) < 2
    return _Column(name, tuple(estimates), tuple(judged), comparable=comparable)


def _judged(entry: Mapping[str, Any]) -> str:
    metric, main = entry["metric"], entry["main"]
    return metric if main == "accuracy" else f"{metric} {main}"


def _estimate(entry: Mapping[str, float] | None, scale: float) -> Estimate | None:
    if entry is None or math.isnan(entry["value"]):
        return None
    return Estimate(*(scale * entry[end] for end in ("value", "low", "high")))


def _merged(splits: Sequence[_Column]) -> _Column:
    """The mean of POPE's splits; its interval is the mean of theirs, as for fully dependent splits."""
    estimates: list[Estimate | None] = []
    for parts in zip(*(split.estimates for split in splits), strict=True):
        given = [part for part in parts if part is not None]
        whole = len(given) == len(splits)
        ends = [sum(getattr(part, end) for part in given) / len(splits) for end in ("value", "low", "high")]
        estimates.append(Estimate(*ends) if whole else None)
    rows = zip(*(split.judged for split in splits), strict=True)
    judged = [_alike(row) for row in rows]
    return _Column(POPE, tuple(estimates), tuple(judged), comparable=all(split.comparable for split in splits))


def _alike(row: Sequence[tuple[str, str] | None]) -> tuple[str, str] | None:
    """How the splits of one model were scored; None if it lacks one."""
    given = [judged for judged in row if judged is not None]
    if len(given) < len(row):
        return None
    metrics, counts = (list(dict.fromkeys(part)) for part in zip(*given, strict=True))
    return " and ".join(metrics), " and ".join(counts)


def _mean(columns: Sequence[_Column], results: Sequence[Results]) -> _Column | None:
    """The mean of the columns, in rows that have all of them."""
    if not columns:
        return None
    tasks = [POPE_SPLITS if column.name == POPE else (column.name,) for column in columns]
    estimates: list[Estimate | None] = []
    for row, own in enumerate(results):
        parts = [part for column in columns if (part := column.estimates[row]) is not None]
        whole = len(parts) == len(columns)
        estimates.append(average(parts, tasks, own.dependent) if whole else None)
    return _Column(MEAN, tuple(estimates), comparable=all(column.comparable for column in columns))


def average(parts: Sequence[Estimate], tasks: Sequence[Sequence[str]], dependent: Sequence[Sequence[str]]) -> Estimate:
    """The mean of estimates, those of tasks that share groups fully dependent, the others independent.

    The distances of the ends from the values add up between dependent estimates, and in quadrature between others.

    Args:
        parts: the estimates.
        tasks: the tasks that each is about.
        dependent: sets of tasks that share groups.
    """
    blocks = connected([at for at, names in enumerate(dependent) if set(names) & set(own)] for own in tasks)
    value = sum(part.value for part in parts) / len(parts)
    below, above = dict.fromkeys(blocks, 0.0), dict.fromkeys(blocks, 0.0)
    for part, block in zip(parts, blocks, strict=True):
        below[block] += part.value - part.low
        above[block] += part.high - part.value
    low, high = (math.hypot(*ends.values()) / len(parts) for ends in (below, above))
    return Estimate(value, value - low, value + high)


def _cells(column: _Column) -> list[Cell]:
    cells = [Cell(estimate) for estimate in column.estimates]
    given = [cell for cell in cells if cell.estimate is not None]
    if len(given) < 2 or not column.comparable:
        return cells
    best = max(given, key=lambda cell: cell.estimate.value if cell.estimate else -math.inf).text()
    return [replace(cell, best=cell.text() == best) for cell in cells]


def _differences(column: _Column, models: Sequence[str]) -> list[str]:
    """A note on a column whose scores are of different kinds."""
    if column.comparable:
        return []
    kinds: dict[str, list[str]] = {}
    for model, judged in zip(models, column.judged, strict=True):
        if judged is not None:
            kinds.setdefault(", ".join(judged), []).append(model)
    return [f"{column.name} cannot be compared: " + "; ".join(f"{kind} ({_listed(m)})" for kind, m in kinds.items())]


def _gaps(mean: _Column, shown: Sequence[_Column], models: Sequence[str]) -> list[str]:
    """A note on each row without a mean."""
    notes = []
    for row, model in enumerate(models):
        if mean.estimates[row] is None:
            lacking = [column.name for column in shown if column.averaged and column.estimates[row] is None]
            notes.append(f"{model} has no mean, which would leave out {_listed(lacking)}")
    return notes


def _tasks_behind(columns: Sequence[str], results: Sequence[Results]) -> set[str]:
    """The tasks that the columns show, also within a sum or mean."""
    found = set(columns) | (set(POPE_SPLITS) if POPE in columns else set())
    if any(name in columns for one in results for name in (f"MME {total}" for total in one.totals)):
        found |= {name for one in results for name, entry in one.tasks.items() if entry["metric"] == Metric.MME}
    return found


def _unparsed(one: Results, tasks: set[str]) -> str:
    entries = {name: entry for name, entry in one.tasks.items() if name in tasks and entry["unparsed"]}
    counts = [f"{name} {entry['unparsed']} of {entry['n']}" for name, entry in entries.items()]
    return f"Answers of {one.label} that were not understood and count as wrong: {_listed(counts)}" if counts else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _markdown(text: str) -> str:
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|" else c for c in text)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in printable(text))


def _bold(text: str) -> str:
    return rf"\textbf{{{text}}}"
