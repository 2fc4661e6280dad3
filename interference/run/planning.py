"""Planning: what a verdict needs, by a pilot's variance: a table of pairs of tasks, and its sentences.

Not here: the formulas (`statistics.power`), and what a measurement costs (`measurement.plan`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from interference.errors import ScopeError
from interference.run.remarks import other_units
from interference.run.run import Run
from interference.statistics.power import EFFECT, MOST, Needs, needs

__all__ = ["EFFECT", "Needed", "check_pilot", "needed"]

HELPS = 0.9
"""Examples of the same groups do not help where any number of them leaves more than this share of the groups needed."""


@dataclass(frozen=True)
class Needed:
    """What verdicts need by a pilot.

    Attributes:
        table: one row per pair of tasks, the greatest need first: affected, stepped, delta (Delta_j L_i to be told from
            0), groups (of each task; infinite above a million, NaN where the pilot has no signal for the affected
            task), units (of the affected task, at the pilot's units a group), unlimited (groups, if each had any number
            of units; NaN where the pilot has no two units of one group).
        found: what it was read from.
        effect: the interference to be found; None for each cell's own in the pilot.
        power: share of data sets that get the verdict.
        pictures: whether groups are pictures.
        carried: tasks that a few units of the pilot carry.
    """

    table: pd.DataFrame
    found: Needs
    effect: float | None
    power: float
    pictures: bool = False
    carried: Sequence[str] = ()

    @property
    def kind(self) -> str:
        """What is counted."""
        return "groups" if self.found.grouped else "units"

    def sentences(self, here: Mapping[str, int] | None = None) -> list[str]:
        """What a reader should conclude; `here` has {task: groups} of what is planned, if anything is."""
        silent = list(dict.fromkeys(self.table.loc[self.table["groups"].isna(), "affected"]))
        found = []
        if len(known := self.table.dropna(subset="groups")):
            found.append(self._worst(known.iloc[0], here or {}))
        if silent:
            names = ", ".join(silent)
            found.append(
                f"the pilot has no signal for {names} (own Delta not above 0 beyond noise), so nothing can be said "
                "about what these rows need; measure a larger pilot, or an earlier checkpoint"
            )
        if self.carried:
            found.append(
                f"a few examples of the pilot carry {', '.join(self.carried)}, so the numbers for their rows are "
                "guesses; measure a larger pilot"
            )
        return found + self._crowded("pictures" if self.pictures else "groups")

    def _worst(self, row: "pd.Series[Any]", here: Mapping[str, int]) -> str:
        wished = "the pilot's own Delta" if self.effect is None else f"an interference of {self.effect:g}"
        count, kind = row["groups"], self.kind
        much = f"{count:.0f} {kind} of each task" if math.isfinite(count) else f"more than {MOST:,} {kind} of each task"
        size = f" ({row['units']:.0f} units at the pilot's number per group)" if self.found.grouped else ""
        both = [here[task] for task in (row["affected"], row["stepped"]) if task in here]
        planned = f"; {min(both)} {kind} are planned" if both else ""
        return (
            f"a verdict on {wished} takes {much}{size if math.isfinite(count) else ''} for a power of {self.power:.0%} "
            f"in the cell that needs most, a step of {row['stepped']} on {row['affected']}{planned}"
        )

    def _crowded(self, name: str) -> list[str]:
        """That more units of the same groups would not help, where that is so."""
        known = self.table[np.isfinite(self.table["groups"]) & self.table["unlimited"].notna()]
        if not len(known):
            return []
        worst = known.iloc[0]
        if worst["unlimited"] < HELPS * worst["groups"]:
            return []
        one, two = (self.found.tasks.index(worst[key]) for key in ("affected", "stepped"))
        alike = np.nanmax(self.found.intraclass[[one, two]])
        return [
            f"more examples of the same {name} would not help: gradients within one have an intraclass correlation of "
            f"{alike:.2f}, and with any number of examples in each it would still take {worst['unlimited']:.0f}"
        ]


def needed(
    pilot: Run,
    effect: float | None = EFFECT,
    *,
    power: float = 0.8,
    level: float = 0.95,
    tasks: Sequence[str] | None = None,
    **scope: Any,
) -> Needed:
    """How many groups of each task a verdict needs, by a pilot's variance; see `statistics.power.needs`.

    Args:
        pilot: a run, of as few as four groups a task; twenty or more tell the variance well.
        effect: the interference I_ij to be found; None for what the pilot has.
        power: share of data sets that get the verdict.
        level: level of the intervals and verdicts.
        tasks: those that are planned; None for the pilot's.
        scope: layers, modules, side and space, as in `Run.table`.

    Raises:
        ScopeError: if the pilot lacks a task or the scope, has one task alone, or too few groups of one.
        ConfigError: if the effect, power or level cannot be used.
    """
    if missing := [task for task in tasks or () if task not in pilot.tasks]:
        raise ScopeError(
            f"the pilot has no task {missing[0]!r}, only {', '.join(pilot.tasks)}; measure a pilot of all tasks"
        )
    chosen = pilot.probes["task"].isin(pilot.tasks if tasks is None else list(tasks)).to_numpy()
    rows = np.flatnonzero(chosen)
    own = pilot.probes["task"].iloc[rows]
    if own.nunique() < 2:
        raise ScopeError(
            "there is only one task, so there is no pair to plan for; give two or more tasks, and a pilot of them"
        )
    groups = None if pilot.groups is None else [pilot.groups[row] for row in rows]
    gram = pilot.gram(**scope)[np.ix_(rows, rows)]
    found = needs(gram, list(own), effect, power=power, level=level, groups=groups)
    carried = [task for task in pilot.carriers(**scope) if task in found.tasks]
    return Needed(_table(found), found, effect, power, _by_pictures(pilot), carried)


def _by_pictures(pilot: Run) -> bool:
    """Whether a pilot's groups are pictures."""
    tasks = (pilot.meta.get("config") or {}).get("tasks") or {}
    return bool(tasks) and all(task.get("group") == "image" for task in tasks.values())


def check_pilot(pilot: Run, config: Mapping[str, Any]) -> None:
    """Raise a ScopeError if a pilot's units are of another size than those of the configuration that is planned."""
    if told := other_units(pilot.meta, {"config": config}):
        raise ScopeError(f"the pilot does not match the plan: {told}")


def _table(found: Needs) -> pd.DataFrame:
    """The rows of `Needed.table`."""
    count = len(found.tasks)
    cells = [(i, j) for i in range(count) for j in range(count) if i != j]
    frame = pd.DataFrame(
        {
            "affected": [found.tasks[i] for i, _ in cells],
            "stepped": [found.tasks[j] for _, j in cells],
            "delta": [found.delta[cell] for cell in cells],
            "groups": [found.groups[cell] for cell in cells],
            "units": [np.ceil(found.groups[i, j] * found.size[i] - 1e-9) for i, j in cells],
            "unlimited": [found.unlimited[cell] for cell in cells],
        }
    )
    return frame.sort_values("groups", ascending=False, kind="stable", na_position="last", ignore_index=True)
