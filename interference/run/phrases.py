"""Small pieces of sentences: numbers, intervals, counts and lists of names. Names stay as they are."""

import math
from collections.abc import Sequence
from typing import Any

SHOWN = 6
"""Names that a sentence lists before it counts the rest."""


def number(value: float) -> str:
    """Two decimals, or two significant digits where those say more; "–" for what is not a number."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.2f}" if 0.095 <= abs(value) < 1000 or value == 0 else f"{value:.2g}"


def interval(low: float, high: float) -> str:
    """An interval in brackets."""
    return f"[{number(low)}, {number(high)}]" if math.isfinite(low) and math.isfinite(high) else "[no interval]"


def cell(row: Any, name: str = "I") -> str:
    """A row of a table of `interference`: who steps, on whom, value, interval, and whether these contradict Delta's."""
    said = f"a step of {row.stepped} on {row.affected}, {name} = {number(row.value)} {interval(row.low, row.high)}"
    against = getattr(row, "at_odds", "")
    return f"{said}, whose {against} does not match the verdict on Delta" if against else said


def sentence(clause: str) -> str:
    """A clause with its capital and full stop."""
    return f"{clause[0].upper()}{clause[1:]}."


def counted(count: int, noun: str) -> str:
    """The count with its noun in the right number."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def several(names: Sequence[str]) -> str:
    """A list of names, its end counted where it is long."""
    shown = list(names[:SHOWN])
    rest = len(names) - len(shown)
    if rest:
        return f"{', '.join(shown)} and {rest} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
