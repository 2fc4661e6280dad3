"""The directory of an evaluation: predictions as they come, kept for the same model, examples and generation.

out/evaluation.json              whose predictions these are
out/predictions/TASK.jsonl       one answer a line, in the paper's format; .partial while it grows
out/judgements/TASK.jsonl        what judges said of each
out/results.json                 the scores
out/.lock                        held by the process that works on it
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from mixlora.common.errors import CheckpointError, TrainingError
from mixlora.common.files import LARGEST_DATA, again, exists, file_name, parsed, read_bytes, read_json, write_json
from mixlora.common.locks import LOCK, locked
from mixlora.evaluation import predictions
from mixlora.evaluation.config import JudgeSection
from mixlora.evaluation.predictions import Prediction

IDENTITY = "evaluation.json"
PREDICTIONS, JUDGEMENTS = "predictions", "judgements"
HASH = 32
"""Characters of a hash of what is too long to tell."""
_GROWING = f".{IDENTITY}.new"
_NAMED = 3
"""How many differences of two evaluations a message names."""


class Folder:
    """An evaluation's directory, free or of some evaluation.

    Args:
        path: the directory.

    Raises:
        CheckpointError: it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity()

    def alone(self) -> AbstractContextManager[None]:
        """Inside, no other process works on it.

        Raises:
            CheckpointError: another does, or it cannot be written.
        """
        return locked(self.path / LOCK, f"evaluating {self.path}")

    def claim(self, identity: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> None:
        """Make it the directory of this evaluation, which it may be already.

        Args:
            identity: what the answers to all tasks depend on.
            tasks: {task: what the answers to it depend on}. Tasks without an answer there join those with some.

        Raises:
            CheckpointError: it holds answers of another evaluation, or cannot be written.
        """
        path, found = self.path, self._identity()
        wanted = json.loads(json.dumps({**identity, "tasks": tasks}))
        if found is not None and (begun := {task: own for task, own in found["tasks"].items() if self._begun(task)}):
            self._refuse_other({**found, "tasks": begun}, wanted)
            wanted["tasks"] = begun | wanted["tasks"]
        try:
            path.mkdir(parents=True, exist_ok=True)
            if found != wanted:
                write_json(path / IDENTITY, wanted)
            (path / _GROWING).unlink(missing_ok=True)
            (path / PREDICTIONS).mkdir(exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be written: {error.strerror or error}; choose another --out"
            ) from None

    def complete(self, task: str, ids: Sequence[str]) -> list[Prediction] | None:
        """The predictions of a task, if all are there."""
        file = self._file(task)
        if not exists(file):
            return None
        found = predictions.read(file)
        if [one.question_id for one in found] != list(ids):
            return None
        with _written(self.path):
            self._partial(task).unlink(missing_ok=True)  # of a process that was killed before it could
        return found

    def partial(self, task: str) -> dict[str, Prediction]:
        """The predictions of a task that an interrupted evaluation left, by id."""
        file = self._partial(task)
        if not exists(file):
            return {}
        cut(file)
        return {one.question_id: one for one in predictions.read(file)}

    def append(self, task: str, found: Iterable[Prediction]) -> None:
        """Add predictions to those that are there."""
        append_lines(self._partial(task), [one.to_record() for one in found])

    def finish(self, task: str, found: Sequence[Prediction]) -> None:
        """Put all predictions of a task in order in place of what has grown."""
        with _written(self.path):
            _write_lines(self._file(task), [one.to_record() for one in found])
            self._partial(task).unlink(missing_ok=True)

    def judgements(self, task: str) -> Path:
        """Where judges' words on a task are kept."""
        folder = self.path / JUDGEMENTS
        with _written(self.path):
            folder.mkdir(exist_ok=True)
        return folder / f"{file_name(task)}.jsonl"

    def _identity(self) -> dict[str, Any] | None:
        """Whose directory it is; None if it is free."""
        try:
            if not exists(self.path) or (self.path.is_dir() and all(map(_is_unfinished, self.path.iterdir()))):
                return None
            found = read_json(self.path / IDENTITY)
            return found | {"tasks": {task: dict(own) for task, own in found["tasks"].items()}}
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            raise CheckpointError(f"{self.path} holds something that is no evaluation; choose another --out") from None

    def _refuse_other(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        common = found["tasks"].keys() & wanted["tasks"].keys()
        there, here = (
            dict(_leaves({**side, "tasks": {task: own for task, own in side["tasks"].items() if task in common}}))
            for side in (found, wanted)
        )
        other = [_told(key, there.get(key), here.get(key)) for key in here | there if there.get(key) != here.get(key)]
        if other:
            more = [f"{len(other) - _NAMED} more"] * (len(other) > _NAMED)
            raise CheckpointError(
                f"{self.path} is of another evaluation: {', '.join(other[:_NAMED] + more)}; choose another --out, or "
                "delete it"
            )

    def _begun(self, task: str) -> bool:
        return exists(self._file(task)) or exists(self._partial(task))

    def _file(self, task: str) -> Path:
        return self.path / PREDICTIONS / f"{file_name(task)}.jsonl"

    def _partial(self, task: str) -> Path:
        return self.path / PREDICTIONS / f"{file_name(task)}.jsonl.partial"


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add records, one a line, to a file.

    Raises:
        TrainingError: they cannot be written; what was there stays, and `cut` removes what they left.
    """
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with _written(path), path.open("a", encoding="utf-8") as file:
        file.write(lines)


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file that grows, without one that is being written; none where there is no file.

    Raises:
        CheckpointError: a line is no record, or the file cannot be read.
    """
    if not exists(path):
        return []
    try:
        data = read_bytes(path, LARGEST_DATA)
        found = [parsed(line.decode("utf-8")) for line in data[: data.rfind(b"\n") + 1].split(b"\n") if line]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError:
        found = [None]
    if not all(isinstance(record, dict) for record in found):
        raise CheckpointError(f"{path} has a line that is no JSON object; delete the file")
    return found


def cut(path: Path) -> None:
    """Remove from a file that this process alone writes a last line that no newline ends, as a killed one leaves it.

    Raises:
        CheckpointError: the file cannot be read or changed.
    """
    if not exists(path):
        return
    try:
        whole = read_bytes(path, LARGEST_DATA)
        if (kept := whole.rfind(b"\n") + 1) < len(whole):
            os.truncate(path, kept)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read, or cut after its last line: {error.strerror or error}") from None


def asked(section: JudgeSection, one: Prediction) -> str:
    """A hash of all that a judgement depends on."""
    words = [*section.identity, one.question_id, one.prompt, one.predict, one.target, *one.references]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:HASH]


def verdicts(file: Path, section: JudgeSection, found: Sequence[Prediction]) -> list[bool | None]:
    """What the judge said of each prediction, out of a file of judgements.

    Raises:
        CheckpointError: it did not judge all of them.
    """
    known = {str(record.get("asked")): record.get("verdict") for record in whole_lines(file)}
    keys = [asked(section, one) for one in found]
    if missing := sum(key not in known for key in keys):
        raise CheckpointError(
            f"{file} lacks {missing} of {len(keys)} judgements by {section.model:.200}; evaluate again"
        )
    return [known[key] for key in keys]


def _is_unfinished(path: Path) -> bool:
    """Whether it is what a first process leaves that is killed before it has claimed the directory."""
    return path.name in (_GROWING, LOCK)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Inside, a file or files of an evaluation's directory are changed.

    Raises:
        TrainingError: one cannot be.
    """
    try:
        yield
    except OSError as error:
        remedy = again(error.errno, "the same command continues with those that are kept")
        raise TrainingError(f"answers cannot be written to {path}: {error.strerror or error}; {remedy}") from None


def _leaves(nested: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """("generation.num_beams", 1) and so on."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _told(key: str, there: Any, here: Any) -> str:
    """How two evaluations differ."""
    if isinstance(there, str) and isinstance(here, str) and len(there) == len(here) == HASH:
        return f"{key:.200} has changed"
    return f"{key:.200} is {there!r:.200} there and {here!r:.200} here"


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Records, one a line, whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
