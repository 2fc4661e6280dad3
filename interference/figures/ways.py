"""Ways: the estimators that one figure shows of the same units, and whether their verdicts are drawn.

A verdict is about Delta. A published estimator whose numbers need not bear it out is drawn without, above the ratio of
means, whose row has the verdicts. Nothing is drawn here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from interference.run.remarks import reduced_by
from interference.statistics.estimand import REDUCE, Aggregate, Reduce
from interference.statistics.significance import at_odds
from mixlora.common.enums import member

_WORDS = {Reduce.MEAN_OF_RATIOS: "mean of ratios (Eq. 3)"}
_ABOUT_DELTA = ("verdict", "p", "q")


@dataclass(frozen=True)
class Way:
    """An estimator of I.

    Attributes:
        title: what it is called; "" in a figure that shows no other.
        options: of `Run.table`.
        judged: whether verdicts are drawn.
    """

    title: str
    options: Mapping[str, Any]
    judged: bool = True


def published(metric: str, options: Mapping[str, Any]) -> list[Way]:
    """The way that options ask for and, if its numbers need not bear verdicts out, the ratio of means in a row below.

    Args:
        metric: as in `Run.matrix`; only `interference` has more than one way.
        options: of `Run.table`.

    Raises:
        ConfigError: if `reduce` is none of the allowed values.
    """
    reduce = member(Reduce, reduced_by(options.get("reduce")), "reduce")
    averaged = options.get("aggregate") == Aggregate.MEAN
    if metric != "interference" or (reduce == REDUCE and not averaged):
        return [Way("", options)]
    below = dict(options) | {"reduce": REDUCE.value, "aggregate": Aggregate.SUM.value}
    title = words(reduce) + (", averaged over blocks" if averaged else "")
    title_below = words(REDUCE) + (", all blocks as one" if averaged else "")
    return [Way(title, options, judged=False), Way(title_below, below)]


def words(reduce: Reduce) -> str:
    """A reduction for a reader."""
    return _WORDS.get(reduce, reduce.value.replace("-", " "))


def agreed(ways: Sequence[Way], tables: Sequence[dict[Any, pd.DataFrame]]) -> list[dict[Any, pd.DataFrame]]:
    """The tables of every way by panel; those without verdicts have the last one's, and where they are at odds with it.

    Args:
        ways: the last one is judged.
        tables: of `Run.table`, for each way, by panel.
    """
    return [
        shown if way.judged else {key: _judged(table, tables[-1][key]) for key, table in shown.items()}
        for way, shown in zip(ways, tables, strict=True)
    ]


def _judged(table: pd.DataFrame, by: pd.DataFrame) -> pd.DataFrame:
    table = table.assign(**{name: by[name] for name in _ABOUT_DELTA})
    value, low, high, verdict = (table[name].to_numpy() for name in ("value", "low", "high", "verdict"))
    return table.assign(at_odds=at_odds(value, low, high, verdict))


def told(title: str, panels: Mapping[str, pd.DataFrame]) -> str:
    """How far a row without verdicts is from those below it, over its cells of two different tasks.

    Args:
        title: title of the way.
        panels: its tables, of `agreed`, by what they are of; a single one needs no name.
    """
    cells = {name: table[table["affected"] != table["stepped"]] for name, table in panels.items()}
    names = dict.fromkeys(cells, "") if len(cells) == 1 else {name: f" ({name})" for name in cells}
    across = [f"{_holding(table)} of {len(table)} cells{names[name]}" for name, table in cells.items()]
    against = [f"{(table['at_odds'] == 'sign').sum()}{names[name]}" for name, table in cells.items()]
    return (
        f"above: {title}, as published, without verdicts; its interval contains 0 in {', '.join(across)}; its sign "
        f"contradicts the verdict below in {', '.join(against)}"
    )


def _holding(table: pd.DataFrame) -> int:
    return int(((table["low"] <= 0) & (table["high"] >= 0)).sum())
