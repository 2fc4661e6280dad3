"""The report's directory: the page, the figures and the tables of some runs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from interference.advice import Trial, tried
from interference.errors import ConfigError, RunError
from interference.figures import matrices
from interference.figures.canvas import Picture, files
from interference.prediction import Lookahead, holding
from interference.prediction.horizons import beside
from interference.report import data, tables
from interference.report.findings import depth
from interference.report.findings.predicts import Judged
from interference.report.html import render
from interference.run import Run, load
from interference.run.phrases import sentence
from mixlora.common.directories import check_writable
from mixlora.common.files import exists
from mixlora.common.outputs import OutputFolder
from mixlora.common.progress import Progress, silent

PANEL_CELLS = 4_000
"""Cells of all panels of one figure: more take minutes to draw and cannot be read."""
SIDE_BY_SIDE = 60
"""Tasks of all matrices of the figure that shows the runs beside each other."""
MATRIX_TASKS = 40
"""Tasks of the figure of one run's matrix: more are metres of paper."""
KINDS = ("png", "svg")


def write(
    runs: Sequence[Path],
    labels: Sequence[str] | None,
    out: Path,
    detail: str | None = None,
    examples: bool = True,
    progress: Progress = silent,
) -> list[Path]:
    """The paths of report.html and of the folders of figures (PNG, SVG), where there are any, and tables (CSV).

    They replace those of a report before as a whole: where one cannot be written, all stay as they were.

    Args:
        runs: directories, shown and compared in the order of `data.report`.
        labels: what they are called; their paths if None.
        out: the directory to write to.
        detail: as in `data.report`.
        examples: whether the examples that drive a cell are read again and shown.
        progress: called with what is measured.

    Raises:
        ConfigError: labels are more or fewer than runs, or one is given twice.
        RunError: a run cannot be read, the report not written, or `out` holds what no report wrote.
    """
    named, folder = _named(runs, labels), check(out)
    if not exists(out):
        check_writable(out)  # now, not after minutes of bootstraps
    sources = {label: str(path) for label, path in zip(named, runs, strict=True)}
    named = depth.in_step_order(named)  # figures are numbered as the tables are
    ahead, unshown = _ahead(named, sources)
    judged, unjudged = _judged(named, sources)
    trials, untried = _tried(named, sources)
    beside_them: dict[str, Any] = {"ahead": ahead, "judged": judged, "tried": trials}
    made = data.report(named, detail, examples=examples, sources=sources, progress=progress, **beside_them)
    made.left_out.extend([*unshown, *unjudged, *untried])
    drawn = {name: _layers(run) for name, run in named.items()}
    made.left_out.extend(_not_drawn(named, drawn))
    pictures = {f"figures/{name}": content for name, content in _figures(named, drawn)}
    sheets = {f"tables/{name}": content for name, content in tables.render(made).items()}
    html = render.render(made.to_json()).encode("utf-8")
    folder.replace({"report.html": html, **pictures, **sheets})
    return [out / "report.html", *([out / "figures"] if pictures else []), out / "tables"]


def _ahead(runs: Mapping[str, Run], sources: Mapping[str, str]) -> tuple[dict[str, Lookahead], list[str]]:
    """The lookaheads beside the runs, and sentences on those that are not shown."""
    found = {label: beside(Path(sources[label]), run) for label, run in runs.items()}
    unshown = [f"{label}: {words}." for label, (_, words) in found.items() if words]
    return {label: ahead for label, (ahead, _) in found.items() if ahead is not None}, unshown


def _judged(runs: Mapping[str, Run], sources: Mapping[str, str]) -> tuple[dict[str, Judged], list[str]]:
    """The validations that judge the runs, and sentences on those that are not shown."""
    found = {label: holding.beside(Path(sources[label]), run) for label, run in runs.items()}
    unshown = [f"{label}: {sentence(words)}" for label, (_, _, words) in found.items() if words]
    judged = {label: (own, step) for label, (own, step, _) in found.items() if own is not None and step is not None}
    return judged, unshown


def _tried(runs: Mapping[str, Run], sources: Mapping[str, str]) -> tuple[dict[str, Trial], list[str]]:
    """The trials of the runs' advice, and sentences on those that are not shown."""
    found = {label: tried.beside(Path(sources[label]), run) for label, run in runs.items()}
    unshown = [f"{label}: {sentence(words)}" for label, (_, words) in found.items() if words]
    return {label: own for label, (own, _) in found.items() if own is not None}, unshown


def check(out: Path) -> OutputFolder:
    """The directory of a report.

    Raises:
        RunError: it is a run, or holds what no report wrote.
    """
    if exists(out / "run.json"):
        raise RunError(f"{out} is a run, which a report has no place in; choose another --out")
    return OutputFolder(out, "interference report")


def _named(runs: Sequence[Path], labels: Sequence[str] | None) -> dict[str, Run]:
    names = [str(path) for path in runs] if labels is None else list(labels)
    if len(names) != len(runs):
        raise ConfigError(f"--label is given {len(names)} times for {len(runs)} runs; give one for each, or none")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two runs are called {twice!r}; give each a --label of its own")
    return {name: load(path) for name, path in zip(names, runs, strict=True)}


def _layers(run: Run) -> list[int]:
    """The layers that a figure shows one by one: all, or at even distances as many as its cells allow, or none."""
    layers = sorted({int(layer) for layer in run.blocks["layer"].dropna()})
    columns = 2 * run.blocks["group"].nunique()
    room = PANEL_CELLS // (columns * len(run.tasks) ** 2)
    if len(layers) <= room or room < 2:
        return layers[:room]
    return [layers[round(k * (len(layers) - 1) / (room - 1))] for k in range(room)]


def _side_by_side(runs: Mapping[str, Run]) -> bool:
    """Whether the runs are drawn beside each other: several, of the same tasks."""
    return len({tuple(run.tasks) for run in runs.values()}) == 1 < len(runs)


def _fits(runs: Mapping[str, Run]) -> bool:
    return sum(len(run.tasks) for run in runs.values()) <= SIDE_BY_SIDE


def _not_drawn(runs: Mapping[str, Run], drawn: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Sentences on the figures that are left out or shortened; the page itself has their numbers."""
    for place, (name, run) in enumerate(runs.items(), 1):
        tasks, layers = len(run.tasks), run.blocks["layer"].dropna().nunique()
        if tasks > MATRIX_TASKS:
            yield f"figures/matrix-{place} of {name} is not drawn: {tasks} tasks are more than {MATRIX_TASKS}."
        if layers and not drawn[name]:
            yield f"figures/layers-{place} of {name} is not drawn: a panel of {tasks} tasks cannot be read."
        elif len(drawn[name]) < layers:
            yield f"figures/layers-{place} shows {len(drawn[name])} of {layers} layers of {name}."
    if _side_by_side(runs) and not _fits(runs):
        yield f"figures/series is not drawn: {len(runs)} matrices of {len(next(iter(runs.values())).tasks)} tasks."


def _figures(runs: Mapping[str, Run], drawn: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, bytes]]:
    """The figures' files: name and content."""
    for stem, figure in _drawn(runs, drawn):
        yield from files({stem: figure}, KINDS).items()


def _drawn(runs: Mapping[str, Run], drawn: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Picture]]:
    for place, (name, run) in enumerate(runs.items(), 1):
        if len(run.tasks) <= MATRIX_TASKS:
            yield f"matrix-{place}", matrices.heatmap(run, title=name)
        if drawn[name]:
            yield f"layers-{place}", matrices.panels(run, layers=drawn[name])
    if _side_by_side(runs) and _fits(runs):
        yield "series", matrices.series(runs)
