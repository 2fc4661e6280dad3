"""CSV that a spreadsheet opens: no text in it is taken for a formula, whatever tasks and files are called."""

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
"""How text begins that a spreadsheet may compute (OWASP, "CSV Injection"), or that begins so behind apostrophes."""
_ROW_END = "\r\n"
"""Ends a row for the writer of Python, which quotes cells that hold one of these characters; see `_Lines`."""


def cell(value: Any) -> Any:
    """A value as a cell: text that begins like a formula gets an apostrophe before it, all else stays as it is.

    Different values stay different. Numbers are no text: -0.5 is -0.5.
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def rows_csv(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV, as they are: whoever formats numbers as text makes `cell`s of the names beside them."""
    csv.writer(out := _Lines(), lineterminator=_ROW_END).writerows(rows)
    return out.getvalue()


def frame_csv(frame: Any, index: bool = False) -> bytes:
    """A pandas DataFrame as a CSV file in UTF-8, its texts and labels made `cell`s.

    Args:
        frame: any; it stays as it is.
        index: write its index, too.
    """
    shown = frame.rename(columns=cell, index=cell)
    for at in range(frame.shape[1]):
        if (column := frame.iloc[:, at]).dtype.kind not in "iufb":
            shown.isetitem(at, column.map(cell).set_axis(shown.index))
    shown.to_csv(out := _Lines(), index=index, lineterminator=_ROW_END)
    return out.getvalue().encode(errors="replace")


class _Lines(io.StringIO):
    """What a writer of CSV writes to: a row at a time, whose end becomes a line feed alone.

    The writer leaves a carriage return within a cell unquoted, as if a row ended there, unless its rows end in one.
    """

    def write(self, text: str) -> int:
        return super().write(text.removesuffix(_ROW_END) + "\n")
