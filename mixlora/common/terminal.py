"""The terminal: where results and progress are printed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mixlora.common.errors import plain
from mixlora.common.progress import Progress as Report
from mixlora.common.progress import silent


def console(stderr: bool = False) -> Console:
    """A console; where output is not a terminal, lines are 200 columns wide."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 200
    return Console(file=stream, width=width, soft_wrap=False, highlight=False, markup=False, emoji=False)


@contextmanager
def progress(console: Console, quiet: bool = False) -> Iterator[Report]:
    """A progress report: bars with the time left on a terminal, a line every tenth otherwise."""
    if quiet:
        yield silent
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bars:
            known: dict[str, TaskID] = {}

            def advance(stage: str, done: int, total: int) -> None:
                if stage not in known:
                    known[stage] = bars.add_task(plain(stage), total=total or None)
                bars.update(known[stage], completed=done, total=total or None)

            yield advance
    else:
        yield _Lines(console)


class _Lines:
    """A line every tenth of each stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tenths: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        tenth = 10 * done // total if total else 0
        if done < total and self._tenths.get(stage, 0) >= tenth:
            return
        self._tenths[stage] = tenth
        self._console.print(f"{plain(stage)}: {done}/{total}", highlight=False)
