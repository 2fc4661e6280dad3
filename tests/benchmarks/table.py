"""A row of the benchmarks' table, and how it is printed."""

from dataclasses import dataclass

WIDTHS = (8, 48, 10, 16, 10)
HEAD = ("what", "case", "measured", "range", "promise")


@dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        what: the benchmark: "speed", "memory", "metrics" or "right".
        case: what was measured.
        measured: the number, with its unit if it has one.
        spread: from the smallest to the largest of its repeats.
        promise: what it should be.
        note: anything beside it.
    """

    what: str
    case: str
    measured: str
    spread: str = ""
    promise: str = ""
    note: str = ""


def show(row: Row) -> None:
    """Print a row as soon as it is known."""
    _line(row.what, row.case, row.measured, row.spread, row.promise, row.note)


def head() -> None:
    """Print the names of the columns."""
    _line(*HEAD, "")


def _line(*cells: str) -> None:
    fixed = " ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=False))
    print(f"{fixed} {cells[-1]}".rstrip(), flush=True)
