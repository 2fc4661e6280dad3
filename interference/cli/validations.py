"""What the command line prints of a validation: what training did, and how well each prediction ranks it."""

import json
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.text import Text

from interference.cli import plans, printing
from interference.cli.horizons import at_once
from interference.prediction import Validation
from interference.prediction.holding import interval
from interference.statistics.ranking import INTERVALS, SCORES
from mixlora.common.errors import plain

if TYPE_CHECKING:
    from interference.prediction.cost import ValidationCost


def show(found: Validation, console: Console) -> None:
    """Print the truth at every horizon, and the predictions' scores at every checkpoint."""
    recipe = dict(found.outcomes.meta["recipe"])
    share, seeds = found.outcomes.meta["share"], found.outcomes.seeds
    examples = f"{share} example{'s' * (share > 1)} of each task in a step"
    asked = ((found.meta.get("config") or {}).get("validation") or {}).get("held_out")
    read = f"{len(seeds)} seeds, from {seeds[0]} on; {held_out(found.outcomes.examples, asked)}"
    console.print(Text(plain(f"recipe ({recipe.get('of')}): {examples}; {read}")))
    table, ceilings = found.table(parts=False), found.ceilings()
    for kind in found.outcomes.kinds:
        for horizon in found.outcomes.horizons:
            console.print(Text(_truth(found.truth(kind, horizon), str(kind), horizon)))
            own = ceilings[(ceilings["truth"] == kind) & (ceilings["horizon"] == horizon)]
            console.print(Text(f"  {_agreement(own.iloc[0])}"))
            rows = table[(table["truth"] == kind) & (table["horizon"] == horizon)]
            title = f"Spearman within rows, {kind}, {steps(horizon)}"
            console.print(printing.frame(_by_checkpoint(rows), title))
    console.print(Text("*: the 95% interval over seeds and tasks is above 0; --json has every interval"))


def held_out(examples: pd.DataFrame, asked: int | None) -> str:
    """How many held-out examples there are of each task, which may be fewer than were asked for.

    Args:
        examples: one row each, with task.
        asked: of each task; None if that is not known.
    """
    counts = examples["task"].value_counts()
    least, most = int(counts.min()), int(counts.max())
    number = str(most) if least == most else f"{least} to {most}"
    few = asked is not None and least < asked
    told = f" ({asked} were asked for, but no others are left)" if few else ""
    verb = "are" if most > 1 else "is"
    return f"{number} held-out example{'s' * (most > 1)} of each task {verb} read{told}"


def _truth(table: pd.DataFrame, kind: str, horizon: int) -> str:
    """What the trainings did, in a line."""
    apart = table[table["affected"] != table["stepped"]]
    counts = apart["verdict"].value_counts()
    own = table[table["affected"] == table["stepped"]]["value"]
    counted = f"hurt in {counts.get('conflict', 0)} and helped in {counts.get('synergy', 0)} of {len(apart)} pairs"
    least, most = apart["value"].min(), apart["value"].max()
    return (
        f"after {steps(horizon)} ({kind}): training with another task {counted}; it lowered a loss "
        f"by {least:.2g} to {most:.2g} nats, and a task's own training by {own.min():.2g} to {own.max():.2g}"
    )


def _agreement(row: pd.Series) -> str:
    """How well seeds agree, and what that allows."""
    if pd.isna(row["value"]):
        return "seeds cannot be compared: what training did has no ranks"
    found = f"the truth of one seed ranks that of another by {row['value']:.2f} {interval(row['low'], row['high'])}"
    return f"{found}; a prediction that knows all but the noise would score about {row['ceiling']:.2f}"


def _by_checkpoint(rows: pd.DataFrame) -> pd.DataFrame:
    """Predictions x checkpoints; a star where the interval is above 0."""
    told = rows.assign(
        said=[
            "" if pd.isna(value) else f"{value:+.2f}{'*' if low > 0 else ' '}"
            for value, low in zip(rows["value"], rows["low"], strict=True)
        ]
    )
    wide = told.pivot(index="prediction", columns="step", values="said").fillna("")
    wide = wide.reindex(list(dict.fromkeys(told["prediction"])))
    wide.columns = [f"step {step}" for step in wide.columns]
    return wide


def steps(count: int) -> str:
    """A number of steps with its noun."""
    return f"{count} step{'s' * (count > 1)}"


def cost(found: "ValidationCost", console: Console) -> None:
    """Print what a validation's trainings take."""
    console.print(
        f"validation: {found.trainings} trainings of {steps(found.steps)} on up to {found.most} tasks, each with "
        f"{found.share} in a step; {found.readings} readings of {found.examples} held-out examples"
    )
    if found.tasks < INTERVALS:
        console.print(f"note: with {found.tasks} tasks scores have no intervals; that takes {INTERVALS}")
    if found.seconds is not None:
        told = f"{plans.duration(found.seconds)}{at_once(found.processes)}"
        console.print(f"validation's time, without the runs and lookaheads: {told}")


def to_json(found: Validation) -> str:
    """The truth, the ceilings and every prediction's scores, a row each."""
    kinds = found.outcomes.kinds
    truths = pd.concat([found.truth(kind).assign(truth=str(kind)) for kind in kinds])
    return json.dumps(
        {
            "truth": json.loads(printing.to_json(truths)),
            "ceilings": json.loads(printing.to_json(found.ceilings(None))),
            "predictions": json.loads(
                printing.to_json(pd.concat([found.table(name).assign(score=name) for name in SCORES]))
            ),
        },
        indent=2,
    )
