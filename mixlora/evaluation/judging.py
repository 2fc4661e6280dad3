"""The judge's words on a task, kept as they come, and what they add up to. How it judges is in `judge`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixlora import checkpoint
from mixlora.errors import DataError
from mixlora.evaluation.config import JudgeSection
from mixlora.evaluation.folder import append_lines, whole_lines
from mixlora.evaluation.judge import Judge, Judgement
from mixlora.evaluation.predictions import Prediction
from mixlora.progress import Progress

_TOGETHER = 8
"""Batches whose judgements are written at once."""


def judge_all(
    section: JudgeSection, tasks: Mapping[str, Sequence[Prediction]], files: Mapping[str, Path], progress: Progress
) -> dict[str, list[Judgement]]:
    """What the judge says of every prediction; what it said of the same words before is not asked again.

    Args:
        section: which judge.
        tasks: {task: predictions}.
        files: {task: where judgements are kept}.
        progress: told of predictions.

    Raises:
        CheckpointError: the judge cannot be loaded.
    """
    known = {task: _known(files[task]) for task in tasks}
    judge = None
    found = {}
    for task, predictions in tasks.items():
        keys = {one.question_id: _asked(section, one) for one in predictions}
        todo = [one for one in predictions if keys[one.question_id] not in known[task]]
        if todo and judge is None:
            judge = _load(section)
        size = _TOGETHER * section.batch_size
        for start in range(0, len(todo), size):
            said = judge.judge(todo[start : start + size]) if judge else []
            append_lines(files[task], [asdict(one) | {"asked": keys[one.question_id]} for one in said])
            known[task] |= {keys[one.question_id]: one for one in said}
            progress(f"judge: {task}", min(start + size, len(todo)), len(todo))
        found[task] = [known[task][keys[one.question_id]] for one in predictions]
    return found


def read(file: Path) -> dict[str, Judgement]:
    """The newest judgements of a task, by question_id.

    Raises:
        DataError: there are none.
    """
    found = {one.question_id: one for one in _known(file).values()}
    if not found:
        raise DataError(f"{file} holds no judgements; evaluate that task with score: judge.")
    return found


def _known(file: Path) -> dict[str, Judgement]:
    """{what was asked: the answer}."""
    found = {}
    for record in whole_lines(file):
        asked = record.pop("asked")
        found[asked] = Judgement(**record)
    return found


def _asked(section: JudgeSection, one: Prediction) -> str:
    """A hash of all that a judgement depends on."""
    words: Any = (section.model, section.by, section.dtype, one.question_id, one.prompt, one.predict, one.target)
    return hashlib.sha256(json.dumps([*words, *one.references]).encode()).hexdigest()[:32]


def _load(section: JudgeSection) -> Judge:
    device = str(checkpoint.device_of(section.device))
    return Judge.load(section.model, section.dtype, device, section.by, batch_size=section.batch_size)
