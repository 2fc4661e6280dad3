"""What the command line prints of a plan: what a configuration costs, and what verdicts need by a pilot.

Not here: the cost of lookaheads, validations and trials, which stands with what is printed of each.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.console import Console

from interference.cli.printing import ENDS, frame, records
from mixlora.common.errors import plain
from mixlora.common.files import amount

if TYPE_CHECKING:
    from interference.advice.cost import TrialCost
    from interference.measurement.plan import Plan
    from interference.prediction.cost import Cost, ValidationCost
    from interference.run.planning import Needed


def plan(found: "Plan | None", console: Console, needs: "Needed | None" = None) -> None:
    """Print what `plan` found: what a configuration costs, and what verdicts need by a pilot."""
    if found is not None:
        _costs(found, console)
    if needs is not None:
        _needed(needs, None if found is None else found.groups, console)


def _needed(found: "Needed", here: Mapping[str, int] | None, console: Console) -> None:
    left_out = ([] if found.found.grouped else ["units"]) + ["unlimited"] * bool(found.table["unlimited"].isna().all())
    shown = found.table.drop(columns=left_out)
    counts = [name for name in ("groups", "units", "unlimited") if name in shown]
    shown = shown.assign(**{name: shown[name].map(_count) for name in counts}).rename(columns={"groups": found.kind})
    more = f"; the {ENDS} greatest of {len(shown)} needs, --json has all" if len(shown) > ENDS else ""
    console.print(frame(shown.head(ENDS), f"{found.kind} of each task that a verdict needs, from the pilot{more}"))
    for line in found.sentences(here):
        console.print(plain(line), markup=False, highlight=False)


def _count(value: float) -> str:
    """A number of groups or units, which may be too large or not known."""
    return "–" if pd.isna(value) else f"{value:,.0f}" if np.isfinite(value) else "too many"


def _costs(found: "Plan", console: Console) -> None:
    console.print(
        frame(found.choices, f"{found.units} units of {found.blocks} blocks, {found.width:,} gradient entries each")
    )
    kept = f"{amount(found.stored)} of Gram matrices, which the run keeps"
    console.print(f"disk: {amount(found.spool)} of gradients while computing, and {kept}")
    if found.seconds is None or found.memory is None:
        console.print("memory and time were not measured; leave out --no-time to measure them")
        return
    gpu = "" if found.gpu_memory is None else f", on the GPU {amount(found.gpu_memory)}"
    console.print(f"memory: {amount(found.memory)}{gpu}")
    parts = ", ".join(f"{name} {spent:.2g}" for name, spent in found.seconds.items())
    console.print(
        f"time: {duration(sum(found.seconds.values()))} (seconds: {parts}), estimated from examples of all lengths"
    )


def duration(seconds: float) -> str:
    """A time for a reader."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plan_json(
    found: "Plan | None",
    needs: "Needed | None" = None,
    ahead: "Cost | None" = None,
    tested: "ValidationCost | None" = None,
    tried: "TrialCost | None" = None,
) -> str:
    """A plan, what verdicts need by a pilot, what a lookahead, a validation and a trial take, as JSON."""
    names = ("units", "groups", "blocks", "width", "spool", "stored", "memory", "gpu_memory", "seconds")
    cost = {} if found is None else {name: getattr(found, name) for name in names} | {"choices": records(found.choices)}
    cost |= {} if ahead is None else {"lookahead": {**asdict(ahead), "seconds": ahead.seconds}}
    cost |= {} if tested is None else {"validation": {**asdict(tested), "seconds": tested.seconds}}
    cost |= {} if tried is None else {"trial": {**asdict(tried), "seconds": tried.seconds}}
    if needs is None:
        return json.dumps(cost, indent=2)
    rows = needs.table.assign(reachable=np.isfinite(needs.table["groups"]).where(needs.table["groups"].notna(), None))
    finite = rows.replace([np.inf, -np.inf], np.nan)  # what is not reachable takes more than a million groups
    return json.dumps(cost | {"effect": needs.effect, "power": needs.power, "needed": records(finite)}, indent=2)
