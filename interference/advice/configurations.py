"""Configurations: what `mixlora train` takes to follow an advice, from the record of the training that was measured.

Not here: what is advised (`advice`).
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from interference.advice.advice import Advice
from interference.branching.recipe import home_of
from interference.run import Run
from mixlora.common import settings
from mixlora.common.files import file_name
from mixlora.common.sections import resolved
from mixlora.training import config as training
from mixlora.training.config import Method, Order, TrainConfig

_SAME = ("file", "split", "where", "fields")
"""Keys of a task that say which examples a file has."""


def configurations(found: Advice, run: Run, folder: Path) -> tuple[dict[str, str], str]:
    """The files that follow from an advice.

    Args:
        found: What is advised.
        run: Whose training is followed.
        folder: Where the files will be.

    Returns:
        {name: text}: YAML, and lists of ids that it leaves out; and why there is none, "" where there is one or nothing
        is advised.

    Raises:
        ConfigError: If the record of the training cannot be read.
    """
    if not found.groups and not found.weights and not found.examples:
        return {}, ""
    config = run.meta.get("config") or {}
    adapter = str((config.get("model") or {}).get("adapter") or "")
    home = home_of(adapter) if adapter else None
    if home is None:
        return {}, f"{adapter or 'the run'} is not of a `mixlora train`, whose record would tell how to train"
    whole = training.load(Path(home))
    if why := _unfit(whole, found.tasks, home):
        return {}, why
    made = {f"group-{k}": _of_group(whole, group) for k, group in enumerate(found.groups, 1)}
    if found.weights and whole.training.order != Order.TASK:  # a step has a single task, which nothing outweighs
        made["weights"] = _weighed(whole, found.weights)
    lists = _lists(found, whole, config.get("tasks") or {})
    if lists:
        made["without"] = _without(whole, {task: str(folder / name) for task, (name, _) in lists.items()})
    files = {f"{name}.yaml": settings.text({**values, "out": f"{home}-{name}"}) for name, values in made.items()}
    return files | dict(lists.values()), ""


def _unfit(whole: TrainConfig, tasks: Sequence[str], home: str) -> str:
    """Why no configuration of some tasks can be made of a training's; "" where it can."""
    if whole.method not in (Method.LORA, Method.MIXLORA):
        return f"{home} is a training of method {whole.method}, which has no adapter for several tasks"
    if entries := [name for name, task in whole.tasks.items() if task.by is not None or task.mme is not None]:
        return f"tasks.{entries[0]} of {home} stands for several tasks; give each an entry of its own to split them"
    if missing := [task for task in tasks if task not in whole.tasks]:
        return f"{home} has no task {missing[0]!r}"
    return ""


def _weighed(whole: TrainConfig, weights: Mapping[str, float]) -> dict[str, Any]:
    """The configuration of the whole training with weights of the tasks' losses."""
    values = resolved(whole)
    values["training"]["weights"] = dict(weights)
    return values


def _of_group(whole: TrainConfig, group: Sequence[str]) -> dict[str, Any]:
    """The configuration of a training on a group of tasks, which takes its share of the whole training's steps."""
    values = resolved(whole)
    values["tasks"] = {task: values["tasks"][task] for task in group}
    recipe = values["training"]
    if recipe["steps"] is not None:
        recipe["steps"] = steps_of(recipe["steps"], len(group), len(whole.tasks))
    recipe["snapshots"] = [step for step in recipe["snapshots"] if step <= (recipe["steps"] or step)]
    recipe["weights"] = {task: weight for task, weight in recipe["weights"].items() if task in group}
    if len(group) == 1:
        recipe |= {"weights": {}, "combine": "sum"}
    return values


def _lists(found: Advice, whole: TrainConfig, probed: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The examples to look at, {task: (a file's name, ids)}, of tasks that were trained on what was probed.

    Where other files were probed than trained on, the training has none of these examples.
    """
    listed: dict[str, list[str]] = {}
    for row in found.examples:
        task = str(row["task"])
        own, trained = probed.get(task, {}), resolved(whole)["tasks"].get(task, {})
        same = own.get("file") is not None and all(own.get(key) == trained.get(key) for key in _SAME)
        if same and trained.get("without") is None:
            listed.setdefault(task, []).append(str(row["ids"]))
    return {task: (f"without-{file_name(task)}.txt", "\n".join(ids) + "\n") for task, ids in listed.items()}


def _without(whole: TrainConfig, files: Mapping[str, str]) -> dict[str, Any]:
    """The configuration of the whole training without the examples that files name."""
    values = resolved(whole)
    for task, file in files.items():
        values["tasks"][task]["without"] = file
    return values


def steps_of(steps: int, size: int, count: int) -> int:
    """The steps of a group of `size` of `count` tasks where all groups together take `steps`: rounded, at least 1."""
    return max(round(Fraction(steps * size, count)), 1)
