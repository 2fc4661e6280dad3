"""Two evaluations of the same examples: how much they differ, and whether that is more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixlora.errors import DataError, MixLoraError
from mixlora.evaluation import predictions, results
from mixlora.evaluation.config import JUDGE, JudgeSection
from mixlora.evaluation.folder import JUDGEMENTS, PREDICTIONS, verdicts
from mixlora.evaluation.intervals import Sample, Share, differences
from mixlora.evaluation.predictions import Prediction
from mixlora.evaluation.results import Results
from mixlora.evaluation.scoring import Difference, difference
from mixlora.files import file_name
from mixlora.settings import build


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
        MixLoraError: one of them is none, they share no task, or differ in a task's examples or in their judges.
    """
    one, other = results.load(first), results.load(second)
    shared = [task for task in one.tasks if task in other.tasks and _scored(one, task) == _scored(other, task)]
    if not shared:
        raise DataError(
            f"{first} and {second} share no task that is scored alike; evaluate both with the same tasks and scores."
        )
    if any(one.tasks[task]["metric"] == JUDGE for task in shared):
        _refuse_other_judge((first, second), (_judge(one), _judge(other)))
    found = {task: _difference((first, second), task, one) for task in shared}
    left = [task for task in dict.fromkeys([*one.tasks, *other.tasks]) if task not in found]
    return Comparison(one.label, other.label, found, left)


def _scored(found: Results, task: str) -> tuple[str, Any]:
    """How the task is scored: by which metric, among which labels."""
    return found.tasks[task]["metric"], found.meta.get("labels", {}).get(task)


def _judge(found: Results) -> JudgeSection:
    return build(JudgeSection, _config(found).get("judge") or {}, f"the judge of {found.label}")


def _config(found: Results) -> dict[str, Any]:
    return dict(found.meta.get("config") or {})


def _refuse_other_judge(paths: tuple[Path, Path], judges: tuple[JudgeSection, JudgeSection]) -> None:
    said = [f"{judge.model} (by {judge.by}, in {judge.dtype})" for judge in judges]
    if said[0] != said[1]:
        raise DataError(
            f"{paths[0]} was judged by {said[0]} and {paths[1]} by {said[1]}; evaluate both with the same judge."
        )


def _difference(paths: tuple[Path, Path], task: str, one: Results) -> Difference:
    metric, labels = _scored(one, task)
    config, file = _config(one), f"{file_name(task)}.jsonl"
    draws, seed = config.get("draws", 1000), config.get("seed", 0)
    first, second = (predictions.read(path / PREDICTIONS / file) for path in paths)
    try:
        if metric == JUDGE:
            files = [path / JUDGEMENTS / file for path in paths]
            return judged_difference(first, second, files, _judge(one), draws, seed)
        return difference(first, second, metric, labels, draws, seed)
    except MixLoraError as error:
        raise type(error)(f"Task {task}: {error}") from None


def judged_difference(
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    files: Sequence[Path],
    judge: JudgeSection,
    draws: int,
    seed: int,
) -> Difference:
    """The share that a judge calls correct of the second model's answers minus that of the first's.

    Args:
        first: one model's answers.
        second: the other's.
        files: what the judge said of the ones and of the others.
        judge: which judge's word counts.
        draws: resamples.
        seed: of the resamples.

    Raises:
        DataError: they are not answers to the same examples.
        CheckpointError: the judge did not judge them all.
    """
    asked = [[(one.question_id, one.prompt, one.target, one.references) for one in side] for side in (first, second)]
    if asked[0] != asked[1]:
        raise DataError("the two sides answer different examples; evaluate both on the same data.")
    said = [verdicts(file, judge, side) for file, side in zip(files, (first, second), strict=True)]
    one, other = (np.array([verdict is True for verdict in side], dtype=float) for side in said)
    whole = np.ones_like(one)
    paired = Sample(np.stack([whole, one, whole, other], axis=1))
    values = differences(paired, {"accuracy": Share(1, 0)}, draws, seed)
    return Difference(JUDGE, len(one), int((one != other).sum()), "accuracy", values)
