"""Comparison: how a metric differs between two runs of the same examples.

Not here: the resamples and their intervals (`statistics`).
"""

from typing import Any

import pandas as pd

from interference.blocks import Scope
from interference.errors import ScopeError
from interference.run.frames import tidy
from interference.run.remarks import other_data, other_units
from interference.run.run import Run
from interference.statistics import uncertainty
from interference.statistics.estimand import Aggregate


def compare(a: Run, b: Run, metric: str = "interference", **options: Any) -> pd.DataFrame:
    """The change of a metric from run a to run b, one row per cell, resampling the same units in both.

    Args:
        a: A run.
        b: Another run, of the same examples in the same order.
        metric: As in `Run.matrix`.
        **options: Scope and options of `Run.table` (but `by`), for both runs.

    Returns:
        Columns affected and stepped (ordered categoricals, in the order of `Run.tasks`), a, b, and difference (b - a).
        Then low and high (95% bootstrap interval of the difference), p, q (p adjusted over the cells), and verdict:
        "lower", "higher" or "unclear".

    Raises:
        ScopeError: If the runs do not have the same examples, by name and content, or lack the scope.
        ConfigError: If an option has a value that is not allowed.
        MeasurementError: If every gradient in the scope is zero.

    Example:
        >>> import interference
        >>> lora, mixlora = (interference.load(f"reports/reference/{name}") for name in ("lora", "mixlora"))
        >>> change = interference.compare(lora, mixlora)
        >>> change.query("affected == 'read_word' and stepped == 'name_ink'")["verdict"].item()
        'higher'
    """
    if told := other_examples(a, b):
        raise ScopeError(told)
    own = {"groups": a.groups, "groups_b": b.groups}
    if "groups" in options:
        own["groups_b"] = options["groups"]
    scope, options = Scope.split({"seed": a.seed, **own} | options)
    first, second = (run._theta(scope, options.get("aggregate", Aggregate.SUM)) for run in (a, b))
    found = uncertainty.compare(first, second, list(a.probes["task"]), metric, **options)
    return tidy(found.columns(), found.tasks)


def other_examples(a: Run, b: Run) -> str | None:
    """Why two runs cannot be compared unit by unit.

    Args:
        a: A run.
        b: Another run.

    Returns:
        A sentence; None where they hold the same examples in the same order, as far as they tell.
    """
    if any(list(a.probes[column]) != list(b.probes[column]) for column in ("task", "ids", "source")):
        sizes = other_units(a.meta, b.meta)
        return sizes or "the runs do not have the same examples in the same order; compute both with the same seed"
    if not all("content" in run.probes for run in (a, b)):
        return other_data(a.meta, b.meta)
    changed = a.probes[a.probes["content"].to_numpy() != b.probes["content"].to_numpy()]
    if changed.empty:
        return None
    first = changed.iloc[0]
    return (
        f"{len(changed)} of the runs' {len(a.probes)} units have the same names and other content, the first is "
        f"{first['ids']} of task {first['task']!r}: the examples changed in between; compute both on the same"
    )
