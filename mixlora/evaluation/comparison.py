"""Comparison: how much two evaluations of the same examples differ, with paired intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixlora.common.errors import DataError, ToolError
from mixlora.common.files import LARGEST_DATA, file_name, read_bytes
from mixlora.common.sealed import checksum
from mixlora.common.settings import build
from mixlora.data.groups import connected
from mixlora.evaluation import predictions, results
from mixlora.evaluation.config import JUDGE, RECORD, JudgeSection, MetaSection
from mixlora.evaluation.folder import JUDGEMENTS, PREDICTIONS
from mixlora.evaluation.judging.verdicts import verdicts
from mixlora.evaluation.predictions import Prediction
from mixlora.evaluation.scoring.intervals import Sample, Share, differences
from mixlora.evaluation.scoring.metrics import Difference, difference, matched, number, shared


@dataclass(frozen=True)
class Comparison:
    """The differences of two models, second minus first.

    Attributes:
        first: the label of the first.
        second: the label of the second.
        differences: {task: difference}, for tasks that both were evaluated on.
        left_out: tasks that only one was evaluated on, or that are scored differently.
        dependent: sets of tasks with examples of the same groups, in either evaluation.
        ungrouped: tasks whose answers are taken as independent because neither evaluation has stored their groups.
        unchecked: labels of evaluations of an earlier version, which have no checksums of their answers.
    """

    first: str
    second: str
    differences: dict[str, Difference]
    left_out: list[str]
    dependent: list[list[str]]
    ungrouped: list[str]
    unchecked: list[str]


class _Side:
    """One of the two evaluations.

    Args:
        path: its directory.

    Raises:
        ToolError: it holds no results, or their metadata cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.results = path, results.load(path)
        self.meta = build(MetaSection, self.results.meta, f"{path / RECORD}, meta")

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """The scores, {task: entry}."""
        return self.results.tasks

    @property
    def judge(self) -> JudgeSection:
        """The judge's section in the configuration."""
        if self.meta.config.judge is None:
            raise DataError(f"{self.path / RECORD} is damaged: it names no judge; run the evaluation again.")
        return self.meta.config.judge

    def scored(self, task: str) -> tuple[str, list[str] | None]:
        """The metric of a task, and its labels."""
        return self.tasks[task]["metric"], self.meta.labels.get(task)

    @property
    def judged_by(self) -> list[str]:
        """What the verdicts depend on besides the texts; in earlier versions, instead of content, the judge's path."""
        return self.meta.judge or [self.judge.model, self.judge.by, self.judge.dtype]

    @property
    def unchecked(self) -> bool:
        """Whether its answers have no checksums, as in earlier versions."""
        return self.meta.answers is None

    def predictions(self, task: str) -> list[Prediction]:
        """The answers to a task, which are those that were scored."""
        path = self.path / PREDICTIONS / f"{file_name(task)}.jsonl"
        found = predictions.read(path, whole=not self.unchecked)
        known = self.meta.answers
        if known is not None and known.get(task) != checksum(read_bytes(path, LARGEST_DATA)):
            raise DataError(f"{path} holds other answers than {RECORD} scores; run the evaluation again.")
        return found

    def judgements(self, task: str) -> Path:
        """The file of the judge's judgements of a task."""
        return self.path / JUDGEMENTS / f"{file_name(task)}.jsonl"


def compare(first: Path, second: Path) -> Comparison:
    """The difference of two evaluations, second minus first, task by task, with paired intervals.

    Nothing in their directories is changed.

    Raises:
        ToolError: one is not an evaluation, they share no task, or they differ in a task's examples or in their judges.
    """
    one, other = _Side(first), _Side(second)
    shared = [task for task in one.tasks if task in other.tasks and one.scored(task) == other.scored(task)]
    if not shared:
        raise DataError(
            f"{first} and {second} have no task in common with the same score; evaluate both with the same tasks and "
            "scores."
        )
    if any(one.tasks[task]["metric"] == JUDGE for task in shared):
        _refuse_other_judge(one, other)
    found = {task: _difference(one, other, task) for task in shared}
    left = [task for task in dict.fromkeys([*one.tasks, *other.tasks]) if task not in found]
    dependent = [*one.results.dependent, *(own for own in other.results.dependent if own not in one.results.dependent)]
    ungrouped = [task for task in found if all(side.tasks[task]["groups"] is None for side in (one, other))]
    unchecked = list(dict.fromkeys(side.results.label for side in (one, other) if side.unchecked))
    return Comparison(one.results.label, other.results.label, found, left, dependent, ungrouped, unchecked)


def _refuse_other_judge(one: _Side, other: _Side) -> None:
    said = [f"{side.judge.model:.200} (by {side.judge.by}, in {side.judge.dtype})" for side in (one, other)]
    if one.judged_by != other.judged_by:
        raise DataError(
            f"{one.path} was judged by {said[0]} and {other.path} by {said[1]}"
            + (", whose files differ" if said[0] == said[1] else "")
            + "; evaluate both with the same judge."
        )


def _difference(one: _Side, other: _Side, task: str) -> Difference:
    metric, labels = one.scored(task)
    draws, seed = one.meta.config.draws, one.meta.config.seed
    first, second = one.predictions(task), other.predictions(task)
    try:
        if metric == JUDGE:
            first, second = _same_questions(first, second)
            answered = ((one, first), (other, second))
            said = [verdicts(side.judgements(task), side.judged_by, own, side.unchecked) for side, own in answered]
            return judged_difference(first, second, said, draws, seed)
        return difference(first, second, metric, labels, draws, seed)
    except ToolError as error:
        raise type(error)(f"Task {task:.200}: {error}") from None


def _same_questions(
    first: Sequence[Prediction], second: Sequence[Prediction]
) -> tuple[list[Prediction], list[Prediction]]:
    """Both in the same order, matched by question_id."""
    first, second = matched(first, second)
    if reworded := [one for one, own in zip(first, second, strict=True) if one.prompt != own.prompt]:
        raise DataError(
            f"{reworded[0].place} has a different prompt on the second side; evaluate both on the same data."
        )
    return first, second


def judged_difference(
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    said: Sequence[Sequence[bool | None]],
    draws: int,
    seed: int,
) -> Difference:
    """The share of the second model's answers that a judge calls correct, minus the first's.

    Examples of one group on either side are resampled together.

    Args:
        first: one model's answers.
        second: the other's to the same questions, in the same order.
        said: the verdicts on both, in their order.
        draws: resamples.
        seed: seed of the resamples.
    """
    one, other = (np.array([verdict is True for verdict in side], dtype=float) for side in said)
    whole = np.ones_like(one)
    groups = np.array(connected(shared(*pair) for pair in zip(first, second, strict=True)))
    paired = Sample(np.stack([whole, one, whole, other], axis=1), groups)
    values = differences(paired, {"accuracy": Share(1, 0)}, draws, seed)
    return Difference(JUDGE, len(one), number(groups), int((one != other).sum()), "accuracy", values)
