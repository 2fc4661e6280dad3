"""The report's directory: the page, the figures and the tables of some runs."""

from collections.abc import Sequence
from pathlib import Path

from interference import figures
from interference.errors import ConfigError
from interference.report import data, page, tables
from interference.run import Run, load
from mixlora.progress import Progress, silent

REDUCE = "ratio-of-means"


def write(
    runs: Sequence[Path],
    labels: Sequence[str] | None,
    out: Path,
    detail: str | None = None,
    examples: bool = True,
    progress: Progress = silent,
) -> list[Path]:
    """The paths of report.html and of the folders of figures (PNG, SVG) and tables (CSV).

    Args:
        runs: directories, in the order in which they are shown and compared.
        labels: what they are called; their paths if None.
        out: the directory to write to.
        detail: as in `data.report`.
        examples: whether the examples that drive a cell are read again and shown.
        progress: told of what is measured.

    Raises:
        ConfigError: there are other than as many labels as runs, or one twice.
        RunError: a run cannot be read, or the report not written.
    """
    named = _named(runs, labels)
    sources = {label: str(path) for label, path in zip(named, runs, strict=True)}
    made = data.report(named, detail, examples=examples, sources=sources, progress=progress)
    written = [page.write(made.to_json(), out / "report.html")]
    tables.write(made, out / "tables")
    _draw(named, out / "figures")
    return [*written, out / "figures", out / "tables"]


def _named(runs: Sequence[Path], labels: Sequence[str] | None) -> dict[str, Run]:
    names = [str(path) for path in runs] if labels is None else list(labels)
    if len(names) != len(runs):
        raise ConfigError(f"--label is given {len(names)} times for {len(runs)} runs; give one for each, or none")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two runs are called {twice!r}; give each a --label of its own")
    return {name: load(path) for name, path in zip(names, runs, strict=True)}


def _draw(runs: dict[str, Run], folder: Path) -> None:
    for place, (name, run) in enumerate(runs.items()):
        figures.save(figures.heatmap(run, title=name, reduce=REDUCE), folder, f"matrix-{place + 1}")
        figures.save(figures.panels(run, reduce=REDUCE), folder, f"layers-{place + 1}")
    if len({tuple(run.tasks) for run in runs.values()}) == 1 < len(runs):
        figures.save(figures.series(runs, reduce=REDUCE), folder, "series")
