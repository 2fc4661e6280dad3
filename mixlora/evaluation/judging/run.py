"""Judging all tasks of an evaluation: judgements are appended to files, and reused.

Not here: how a judge judges (`judge`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from transformers.utils import cached_file

from mixlora.checkpoints import loading
from mixlora.checkpoints.fingerprints import of_checkpoint, of_generation
from mixlora.common.errors import CheckpointError, TrainingError, plain
from mixlora.common.files import exists
from mixlora.common.progress import Progress
from mixlora.evaluation.config import JudgeSection
from mixlora.evaluation.judging.judge import Judge, Judgement, read_prompt
from mixlora.evaluation.judging.verdicts import question_key
from mixlora.evaluation.lines import append_lines, cut, whole_lines
from mixlora.evaluation.predictions import Prediction

_TOGETHER = 8
"""The number of batches whose judgements are written together."""


def identity(section: JudgeSection) -> list[str]:
    """What verdicts depend on besides the texts: the content of the judge's files, and how it is asked.

    Raises:
        ConfigError: the prompt's file cannot be used.
    """
    name = section.model
    asked: list[str] = [section.by, section.dtype]
    if section.prompt is not None:
        asked.append(hashlib.sha256(read_prompt(section.prompt).encode()).hexdigest())
    try:
        if not exists(Path(name)):
            cached_file(name, "config.json")  # so that the commit of a hub id is known before the first verdict
        return [of_checkpoint(name), of_generation(name), *asked]
    except (OSError, ValueError):  # loading it says why
        return [name, *asked]


def judge_all(
    section: JudgeSection,
    asked: Sequence[str],
    tasks: Mapping[str, Sequence[Prediction]],
    files: Mapping[str, Path],
    progress: Progress,
) -> dict[str, list[Judgement]]:
    """The judgement of every prediction; stored judgements of the same texts are reused.

    Predictions are judged in fixed chunks of a few batches. If one in a chunk is new, the judge reads the whole chunk
    again, so that its judgement does not depend on what was judged before. No other process may write `files`.

    Args:
        section: the judge.
        asked: its identity.
        tasks: {task: predictions}.
        files: {task: the file of its judgements}.
        progress: called after predictions.

    Raises:
        CheckpointError: the judge cannot be loaded, or stored judgements cannot be read.
        TrainingError: memory ran out, or judgements cannot be written.
    """
    known = {task: _known(files[task]) for task in tasks}
    judge = None
    found = {}
    for task, predictions in tasks.items():
        keys = {one.question_id: question_key(asked, one) for one in predictions}
        size = _TOGETHER * section.batch_size
        for start in range(0, len(predictions), size):
            chunk = predictions[start : start + size]  # fixed, so that an interruption does not change its batches
            if any(keys[one.question_id] not in known[task] for one in chunk):
                judge = judge or _load(section)
                said = [one for one in _judged(judge, chunk) if keys[one.question_id] not in known[task]]
                append_lines(files[task], [asdict(one) | {"asked": keys[one.question_id]} for one in said])
                known[task] |= {keys[one.question_id]: one for one in said}
            progress(f"judge: {plain(task)}", min(start + size, len(predictions)), len(predictions))
        found[task] = [known[task][keys[one.question_id]] for one in predictions]
    return found


def _judged(judge: Judge, predictions: Sequence[Prediction]) -> list[Judgement]:
    try:
        return judge.judge(predictions)
    except torch.OutOfMemoryError:
        raise TrainingError(
            f"memory ran out with {judge.batch_size} predictions to judge: lower judge.batch_size or choose a smaller "
            "judge.dtype, and the same command continues"
        ) from None


def _known(file: Path) -> dict[str, Judgement]:
    """The stored judgements, by `question_key`."""
    cut(file)
    found = {}
    for record in whole_lines(file):
        try:
            key = record.pop("asked")
            found[key] = Judgement(**record)
        except (KeyError, TypeError):
            raise CheckpointError(f"{file} has a line that is not a judgement; delete the file") from None
    return found


def _load(section: JudgeSection) -> Judge:
    device = str(loading.device_of(section.device))
    prompt = read_prompt(section.prompt)
    return Judge.load(section.model, section.dtype, device, section.by, batch_size=section.batch_size, prompt=prompt)
