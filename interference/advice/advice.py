"""Advice: what runs say can be done about interference, as an artifact on disk. No model.

On disk it is a directory: `advice.json` (what is advised, why, and of which runs) and the configurations of `mixlora
train` that follow from it.

Not here: whether it helps (`trial`, `tried`), and what the page says of runs besides (`report.conclusions`).
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from interference.advice.arms import ADVISED, WEIGHED
from interference.advice.dropping import against
from interference.advice.evidence import evidence
from interference.advice.grouping import Grouping, group
from interference.advice.tried import Trial
from interference.advice.weighting import weighting
from interference.errors import RunError, ScopeError
from interference.prediction.holding import measured
from interference.run import Run, record
from interference.run.comparison import other_examples
from interference.run.phrases import several
from mixlora.common.files import expanded
from mixlora.common.sealed import sealed

SCHEMA = 1
MARKER = "advice.json"
"""The file by which such a directory is recognised."""


@dataclass(frozen=True)
class Advice:
    """What runs say can be done.

    Attributes:
        tasks: The tasks, in the order of the runs.
        matrix: By which matrix tasks are grouped: its name, whether a validation found that training follows it, and
            words.
        grouping: The groups that it supports; a single one where no split is supported.
        weights: {task: weight of its loss}; none where a step on the sum of the losses surely raises none.
        weighting: Why, or why not.
        examples: Those that surely work against their own task and the others, to be looked at: task, ids, source, q.
        runs: What each run measured, by content.
        configurations: Names of the files beside the advice that `mixlora train` takes.
        unwritten: Why there is no configuration; "" where there is one, or nothing is advised.
        trial: What came of it by training, where it was tried.
    """

    tasks: list[str]
    matrix: Mapping[str, Any]
    grouping: Grouping
    weights: dict[str, float]
    weighting: str
    examples: list[dict[str, Any]]
    runs: list[list[Any]]
    configurations: list[str]
    unwritten: str = ""
    trial: Trial | None = None

    def __repr__(self) -> str:
        groups = "; ".join(several(names) for names in self.groups)
        return f"Advice({len(self.tasks)} tasks; {groups if self.groups else 'no split'})"

    @property
    def groups(self) -> list[list[str]]:
        """The groups of tasks that are advised, each with an adapter of its own; none where no split is supported."""
        return self.grouping.split if len(self.grouping.split) > 1 else []

    @property
    def sentences(self) -> list[str]:
        """What to do, in sentences. After a trial, what lowered the loss most comes first."""
        cures = {}
        if self.groups:
            cures[ADVISED] = (
                f"Split the tasks, with one adapter for each group: {'; '.join(map(several, self.groups))}."
            )
        if self.weights:
            listed = ", ".join(f"{task} {weight:g}" for task, weight in self.weights.items())
            cures[WEIGHED] = f"Weigh the losses of the tasks (training.weights): {listed}."
        if self.trial is not None:
            gains = self.trial.table().set_index("arm")["against_together"].to_dict()
            cures = dict(sorted(cures.items(), key=lambda cure: -gains.get(cure[0], -math.inf)))
            if self.trial.outcome is not None and not self.trial.outcome.helps:
                cures[ADVISED] = self.trial.words
            if withdrawn := self.trial.weights_withdrawn:
                cures[WEIGHED] = withdrawn
        return [*([] if self.groups else [self.grouping.words]), *cures.values(), *self._looks()]

    def _looks(self) -> Iterator[str]:
        """Which examples to look at, a sentence a task."""
        for task in dict.fromkeys(row["task"] for row in self.examples):
            own = [str(row["ids"]) for row in self.examples if row["task"] == task]
            yield f"Look at {several(own)} of {task}: each works against its own task and against the others."

    def to_json(self) -> str:
        """All of it but the trial as JSON, with a checksum of itself.

        Returns:
            What `advice.json` holds.
        """
        whole = {"schema": SCHEMA, **asdict(replace(self, trial=None)), "sentences": self.sentences}
        del whole["trial"]
        return json.dumps(sealed(whole), indent=2, ensure_ascii=False) + "\n"


def of_runs(runs: Sequence[Run], places: Sequence[Path]) -> Advice:
    """What runs say can be done, without configurations.

    Args:
        runs: Checkpoints along one training, or a single one.
        places: Their directories.

    Returns:
        The advice.

    Raises:
        ScopeError: If there is no run, one twice, one task alone, or runs are of different tasks or examples.
    """
    _check_together(runs, places)
    matrix = evidence(runs, places)
    grouping = group(matrix.table, matrix.draws)
    assert grouping is not None  # there are two tasks
    weighed, examples = weighting(runs[-1]), against(runs[-1]).to_dict("records")
    return Advice(
        tasks=runs[0].tasks,
        matrix={"name": matrix.name, "validated": matrix.validated, "words": matrix.words},
        grouping=grouping,
        weights=weighed.weights,
        weighting=weighed.words,
        examples=[{str(name): value for name, value in row.items()} for row in examples],
        runs=[list(measured(run.meta)) for run in runs],
        configurations=[],
    )


def _check_together(runs: Sequence[Run], places: Sequence[Path]) -> None:
    """Raise a ScopeError if there is no run, one twice, one task alone, or runs are of different tasks or examples."""
    if not runs:
        raise ScopeError("there is no run to advise on; name at least one")
    if twice := [place for k, place in enumerate(places) if place in places[:k]]:
        raise ScopeError(f"{twice[0]} is named twice; name each run once, so that it counts once in the mean")
    first = runs[0]
    if len(first.tasks) < 2:
        raise ScopeError(f"{places[0]} has one task ({first.tasks[0]}), so there is nothing to split; measure two")
    for run, place in zip(runs[1:], places[1:], strict=True):
        if run.tasks != first.tasks:
            raise ScopeError(
                f"{place} has the tasks {several(run.tasks)}, but {places[0]} has {several(first.tasks)}; name runs of "
                "the same tasks"
            )
        if told := other_examples(first, run):
            raise ScopeError(f"{places[0]} and {place} cannot be averaged: {told}")


def load(path: Path | str) -> Advice:
    """The advice that was written to a directory; neither a model nor torch is needed.

    Args:
        path: The directory, as `interference advise` wrote it.

    Returns:
        What was advised.

    Raises:
        RunError: If the directory holds no advice, is damaged, or has another version.
    """
    folder = expanded(path)
    if not (folder / MARKER).is_file():
        raise RunError(f"{folder} holds no advice: it has no {MARKER}")
    meta = record.read_meta(folder / MARKER, SCHEMA, "advice")
    try:
        own = dict(meta["grouping"])
        own["stability"] = {int(count): float(value) for count, value in own["stability"].items()}
        names = ("tasks", "matrix", "weights", "weighting", "examples", "runs", "configurations", "unwritten")
        return Advice(grouping=Grouping(**own), **{name: meta[name] for name in names})
    except (LookupError, TypeError, ValueError, AttributeError):
        raise RunError(f"{folder / MARKER} is damaged: it is not whole; advise again") from None
