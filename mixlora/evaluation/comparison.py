"""Two evaluations of the same examples: how much they differ, and whether that is more than chance."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixlora.errors import DataError
from mixlora.evaluation import judging, predictions, results
from mixlora.evaluation.config import JUDGE
from mixlora.evaluation.intervals import Sample, Share, differences
from mixlora.evaluation.judge import Judgement
from mixlora.evaluation.scoring import Difference, difference
from mixlora.files import file_name


@dataclass(frozen=True)
class Comparison:
    """The differences of two models, second minus first.

    Attributes:
        first: what tables call the first.
        second: what they call the second.
        differences: of each task that both were evaluated on.
        left_out: tasks that only one was evaluated on, or scored otherwise.
    """

    first: str
    second: str
    differences: dict[str, Difference]
    left_out: list[str]


def compare(first: Path, second: Path) -> Comparison:
    """How the second of two evaluations differs from the first, task by task, with paired intervals.

    Raises:
        DataError: one of them is none, they share no task, or a task's examples differ.
    """
    one, other = results.load(first), results.load(second)
    shared = [
        task for task, own in one.tasks.items() if task in other.tasks and other.tasks[task]["metric"] == own["metric"]
    ]
    if not shared:
        raise DataError(f"{first} and {second} share no task scored alike; evaluate both on the same tasks.")
    config = one.meta["config"]
    if any(one.tasks[task]["metric"] == JUDGE for task in shared) and config["judge"] != other.meta["config"]["judge"]:
        raise DataError(f"{first} and {second} were judged by different judges; evaluate both with the same.")
    found = {task: _difference(first, second, task, one.tasks[task]["metric"], config) for task in shared}
    left = [task for task in dict.fromkeys([*one.tasks, *other.tasks]) if task not in found]
    return Comparison(one.label, other.label, found, left)


def _difference(first: Path, second: Path, task: str, metric: str, config: Mapping[str, Any]) -> Difference:
    draws, seed = config["draws"], config["seed"]
    if metric == JUDGE:
        said = [judging.read(path / "judgements" / f"{file_name(task)}.jsonl") for path in (first, second)]
        return judged_difference(said[0], said[1], draws, seed)
    labels = config["tasks"].get(task, {}).get("labels")
    pair = [predictions.read(path / "predictions" / f"{file_name(task)}.jsonl") for path in (first, second)]
    return difference(pair[0], pair[1], metric, labels, draws, seed)


def judged_difference(
    first: Mapping[str, Judgement], second: Mapping[str, Judgement], draws: int, seed: int
) -> Difference:
    """The share that a judge calls correct of the second model's answers minus that of the first's.

    Raises:
        DataError: they are not about the same examples.
    """
    if first.keys() != second.keys():
        raise DataError("The two sides were judged on different examples; evaluate both on the same tasks.")
    one, other = (np.array([said[key].verdict is True for key in first], dtype=float) for said in (first, second))
    whole = np.ones_like(one)
    paired = Sample(np.stack([whole, one, whole, other], axis=1))
    values = differences(paired, {"accuracy": Share(1, 0)}, draws, seed)
    return Difference(JUDGE, len(one), int((one != other).sum()), "accuracy", values)
