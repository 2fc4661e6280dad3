"""What the command line prints of advice, and of its trial: what to do, and how every arm came out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.text import Text

from interference.advice.advice import Advice
from interference.advice.arms import MIXLORA
from interference.advice.tried import Trial
from interference.cli import plans, printing
from interference.cli.validations import held_out
from interference.run.phrases import counted, interval, number, sentence
from mixlora.common.errors import plain

if TYPE_CHECKING:
    from interference.advice.cost import TrialCost

_SHOWN = {
    "loss": "held-out loss",
    "right": "exact",
    "against_random": "below random",
    "against_together": "below together",
}
"""Columns of a trial's table, as they are printed."""


def show(found: Advice, place: Path, console: Console) -> None:
    """Print what to do and why, and the trial where there is one."""
    console.print(Text(plain(f"by {found.matrix['words']}")))
    for place_, said in enumerate(found.sentences, 1):
        console.print(Text(plain(f"{place_}. {said}" if len(found.sentences) > 1 else said)))
    if found.groups:
        console.print(Text(plain(f"   {found.grouping.words}")))
    console.print(Text(plain(f"   {sentence(found.weighting)}")))
    if found.configurations:
        console.print(
            Text(plain(f"   configurations: {', '.join(str(place / name) for name in found.configurations)}"))
        )
    if found.unwritten:
        console.print(Text(plain(f"   no configuration is written: {found.unwritten}")))
    if found.trial is not None:
        trial(found.trial, console)


def trial(found: Trial, console: Console) -> None:
    """Print every arm of a trial, and what came of it."""
    meta = found.meta
    asked = ((meta.get("config") or {}).get("trial") or {}).get("held_out")
    console.print(
        Text(
            plain(
                f"trial ({meta['recipe']['of']}): every arm takes {counted(meta['steps'], 'step')} of "
                f"{meta['share'] * found.examples['task'].nunique()} examples in all, with {len(found.losses)} seeds "
                f"from {meta['seeds'][0]} on; {held_out(found.examples, asked)}"
            )
        )
    )
    table = found.table()
    console.print(printing.frame(_shown(table), "every arm: mean over tasks, nats per token, 95% intervals"))
    tasks = found.by_task().pivot(index="arm", columns="task", values="loss")
    order = list(dict.fromkeys(found.examples["task"]))
    console.print(printing.frame(tasks.loc[table["arm"], order].map(number), "held-out loss by task"))
    for line in notes(found):
        console.print(Text(plain(line)))


def notes(found: Trial) -> list[str]:
    """What came of a trial, in sentences."""
    said = [found.words]
    sizes = {str(arm["name"]): int(arm["parameters"]) for arm in found.meta["arms"]}
    factors = next((size for name, size in sizes.items() if "times the rank" in name), 0)
    said.append(
        f"The MixLoRA has {factors:,} parameters of factors, as many as the LoRA with more ranks, and "
        f"{sizes[MIXLORA] - factors:,} of routers besides."
    )
    return said


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table of a trial with intervals in brackets."""
    shown = {"adapters": table["adapters"].map(_count), "parameters": table["parameters"].map(_count)}
    for name, title in _SHOWN.items():
        ends = zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
        shown[title] = pd.Series([_cell(*each) for each in ends])
    return pd.DataFrame(shown).set_index(pd.Index(table["arm"], name="arm"))


def _count(value: float) -> str:
    return "" if pd.isna(value) else f"{int(value):,}"


def _cell(value: float, low: float, high: float) -> str:
    return "" if pd.isna(value) else f"{number(value)} {interval(low, high)}"


def cost(found: "TrialCost", console: Console) -> None:
    """Print what a trial takes."""
    console.print(
        f"trial: with two groups {found.arms} arms of {counted(found.steps, 'step')}, {counted(found.seeds, 'seed')}, "
        f"each step of {found.examples} examples; {found.readings} readings of {found.held_out} held-out examples"
    )
    if found.seconds is not None:
        console.print(f"trial's time: {plans.duration(found.seconds)}")


def to_json(found: Advice) -> str:
    """The advice, and every row of its trial, over tasks and by task."""
    told = json.loads(found.to_json())
    told.pop("seal")
    if found.trial is not None:
        rows = {"arms": found.trial.table(), "tasks": found.trial.by_task()}
        told["trial"] = {name: json.loads(printing.to_json(table)) for name, table in rows.items()}
        told["trial"]["words"] = notes(found.trial)
    return json.dumps(told, indent=2, ensure_ascii=False)
