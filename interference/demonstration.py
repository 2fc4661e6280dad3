"""The demo: a LoRA on the six tasks of the mini suite, measured along its training.

What is finished is kept in the output directory and reused by the next call.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console

from interference import figures, printing
from interference import run as runs
from interference.computation import compute_config
from interference.config import build
from interference.run import Run
from mixlora import console as terminal
from mixlora.data import mini
from mixlora.sections import resolved

SEED = 0
RANK = 8
TRAINED = 800
SCORED = 200
PROBED = 100
STROOP = ("read_word", "name_ink")
REDUCE = "ratio-of-means"


def demo(out: Path, console: Console) -> None:
    """Train, measure three checkpoints, print and draw what is found; everything is under `out`.

    Args:
        out: directory of checkpoints, runs and pictures.
        console: where results go; progress goes to stderr.
    """
    steps = (0, mini.LORA.steps // 10, mini.LORA.steps)
    scores = _trained(out / "checkpoints", steps, console)
    measured = {f"step {step}": _measured(out, step) for step in steps}
    last = measured[f"step {steps[-1]}"]
    console.print(printing.frame(scores, f"accuracy on {SCORED} held-out examples a task, greedy decoding"))
    for title, run in measured.items():
        console.print(f"\n=== {title} ===")
        printing.show(run, "interference", console, reduce=REDUCE)
    early = measured[f"step {steps[1]}"]
    moved = runs.compare(early, last, "interference", reduce=REDUCE)
    console.print(printing.comparison(moved, f"how the matrix moved from step {steps[1]} to step {steps[-1]}"))
    for line in _controls(measured):
        console.print(line)
    paths = _draw(measured, out / "figures")
    console.print(f"\nruns: {', '.join(str(out / f'step-{step}') for step in steps)}\npictures: {paths[0].parent}")
    console.print(f"next: interference show {out / f'step-{steps[-1]}'} --layers 2,3 --modules mlp")
    console.print(f"      interference verify {out / f'step-{steps[-1]}'}", markup=False)


def _trained(folder: Path, steps: tuple[int, ...], console: Console) -> pd.DataFrame:
    """Checkpoints in `folder`, trained if they are not there; accuracies of the base and of the last, by task."""
    kept = folder / "scores.json"
    identity = {"recipe": [SEED, RANK, TRAINED, SCORED, repr(mini.LORA), _hash_of_base()]}
    if kept.exists() and (found := json.loads(kept.read_text(encoding="utf-8")))["identity"] == identity:
        return pd.DataFrame(found["scores"])
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(SEED)
    base, processor = mini.load_base()
    heldout = {task: mini.examples(task, "heldout", SCORED, SEED) for task in mini.TASKS}
    with terminal.progress(terminal.console(stderr=True)) as report:
        before = _accuracies(base, processor, heldout, "accuracy of the base", report)
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=mini.LORA_TARGETS)
        model: Any = get_peft_model(base, config)
        model.save_pretrained(str(folder / "step-0"))
        examples = [e for task in mini.TASKS for e in mini.examples(task, "train", TRAINED, SEED)]
        mini.fit(
            model,
            processor,
            examples,
            schedule=mini.LORA,
            seed=SEED,
            report=lambda step, loss: report("training", step, mini.LORA.steps),
            checkpoints=steps,
            save=lambda step: model.save_pretrained(str(folder / f"step-{step}")),
        )
        after = _accuracies(model, processor, heldout, "accuracy of the LoRA", report)
    scores = [
        {"task": name, "capability": task.capability, "chance": task.chance, "base": before[name], "LoRA": after[name]}
        for name, task in mini.TASKS.items()
    ]
    kept.write_text(json.dumps({"identity": identity, "scores": scores}, indent=2), encoding="utf-8")
    return pd.DataFrame(scores)


def _measured(out: Path, step: int) -> Run:
    """The run of a checkpoint, computed if it is not there."""
    folder = out / f"step-{step}"
    config = build(
        {
            "model": {"base": "mini", "adapter": str(out / "checkpoints" / f"step-{step}")},
            "tasks": {name: {"mini": "heldout"} for name in mini.TASKS},
            "probe": {"samples": PROBED, "seed": SEED, "batch_size": 32},
            "out": str(folder),
        },
        "the demo",
    )
    if folder.exists():
        found = runs.load(folder)
        if found.meta["config"] == resolved(config) and _newer(folder, out / "checkpoints"):
            return found
        shutil.rmtree(folder)
    with terminal.progress(terminal.console(stderr=True)) as report:
        return compute_config(config, lambda stage, done, total: report(f"step {step}: {stage}", done, total))


def _accuracies(model: Any, processor: Any, heldout: dict[str, list[Any]], stage: str, report: Any) -> dict[str, float]:
    found = {}
    for done, (task, examples) in enumerate(heldout.items()):
        found[task] = mini.accuracy(model, processor, examples)
        report(stage, done + 1, len(heldout))
    return found


def _controls(measured: dict[str, Run]) -> Iterable[str]:
    """What the positive control says at each checkpoint: the same pictures, two answers."""
    yield "\nThe Stroop pair (the same pictures; one task reads the word, the other names its ink):"
    for title, run in measured.items():
        table = run.table("interference", reduce=REDUCE)
        for affected, stepped in (STROOP, STROOP[::-1]):
            cell = table[(table["affected"] == affected) & (table["stepped"] == stepped)].iloc[0]
            interval = f"[{printing.number(cell['low'])}, {printing.number(cell['high'])}]"
            value = printing.number(cell["value"])
            yield f"  {title}: a step of {stepped} on {affected}: I = {value} {interval}: {cell['verdict']}"


def _draw(measured: dict[str, Run], folder: Path) -> list[Path]:
    paths = figures.save(figures.series(measured, reduce=REDUCE), folder, "series")
    for title, run in measured.items():
        name = title.replace(" ", "-")
        paths += figures.save(figures.heatmap(run, reduce=REDUCE), folder, f"{name}-interference")
        paths += figures.save(figures.panels(run, reduce=REDUCE), folder, f"{name}-layers")
    return paths


def _newer(folder: Path, than: Path) -> bool:
    return (folder / "run.json").stat().st_mtime >= (than / "scores.json").stat().st_mtime


def _hash_of_base() -> str:
    return hashlib.sha256((mini.base_path() / "model.safetensors").read_bytes()).hexdigest()[:16]
