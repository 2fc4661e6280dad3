"""What the command line prints of a lookahead: a matrix for every number of steps, and by which recipe they came."""

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from interference.cli import plans, printing
from interference.prediction import Lookahead
from mixlora.common.errors import plain

if TYPE_CHECKING:
    from interference.prediction.cost import Cost


def show(found: Lookahead, console: Console) -> None:
    """Print the recipe, a matrix of interference for every number of steps, and what a reader must know."""
    console.print(Text(plain(followed(found))))
    for steps in found.steps:
        table = found.table("interference", steps)
        title = f"interference after {steps} real step{'s' * (steps > 1)}"
        shown = printing.matrix if printing.fits(table, console) else printing.extremes
        console.print(shown(table, title))
        console.print(printing.headline(table))
    for line in notes(found):
        console.print(Text(f"note: {plain(line)}"))


def followed(found: Lookahead) -> str:
    """The recipe of the branches, in a line."""
    recipe = dict(found.meta.get("recipe") or {})
    clipped = f", gradients clipped to {recipe.get('max_grad_norm'):g}" if recipe.get("max_grad_norm") else ""
    return (
        f"recipe ({recipe.get('of')}): {recipe.get('optimizer', 'AdamW')}, a constant rate of "
        f"{recipe.get('learning_rate'):g}, batches of {recipe.get('batch_size')} examples, weight decay "
        f"{recipe.get('weight_decay'):g}{clipped}; "
        f"{len(found.seeds)} seeds"
    )


def notes(found: Lookahead) -> list[str]:
    """What a reader of the matrices must know."""
    trained = dict(found.meta.get("trained_on") or {})
    said = [
        f"task {task!r} was trained on {own['examples']} examples of {own['from']}; {own['left_out']} others are held "
        "out, or share a group with one that is"
        for task, own in trained.items()
        if own["left_out"]
    ]
    fewest = min(found.examples.groupby("task")["group"].nunique())
    if fewest < 20:
        said.append(
            f"a task has {fewest} groups of held-out examples: its intervals are wide; raise lookahead.held_out"
        )
    return said


def cost(found: "Cost", console: Console) -> None:
    """Print what a lookahead takes."""
    steps = f"{found.branches} branches of {found.steps} steps, each {found.passes} forward and backward pass"
    read = f"{found.readings} readings of {found.examples} held-out examples, each {found.forwards} forward pass"
    console.print(
        f"lookahead: {steps}{'es' * (found.passes > 1)} of {found.rows} examples; {read}{'es' * (found.forwards > 1)}"
    )
    if found.seconds is not None:
        parts = f"a step takes {found.step_seconds:.2g} s, a reading {found.reading_seconds:.2g} s"
        console.print(f"lookahead's time: {plans.duration(found.seconds)} ({parts}{at_once(found.processes)})")


def at_once(processes: int) -> str:
    """That several processes train, as the end of a clause."""
    return f", in {processes} processes at once" if processes > 1 else ""


def to_json(found: Lookahead) -> str:
    """The cells of both metrics after every number of steps, a row each."""
    rows: list[dict[str, Any]] = []
    for metric in ("interference", "delta"):
        rows += json.loads(printing.to_json(found.table(metric).assign(metric=metric)))
    return json.dumps(rows, indent=2)
