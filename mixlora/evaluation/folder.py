"""The directory of an evaluation: predictions, reused for the same model, examples and generation.

out/evaluation.json              what the predictions depend on
out/predictions/TASK.jsonl       one answer a line, in the paper's format; .partial until all are there
out/judgements/TASK.jsonl        judgements of the answers
out/results.json                 the scores
out/.lock                        held by the process that works in the directory
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import Any

from mixlora.common.errors import CheckpointError, unwritable
from mixlora.common.files import LARGEST_DATA, exists, file_name, read_bytes, read_json
from mixlora.common.identity import differences
from mixlora.common.locks import LOCK, locked
from mixlora.common.sealed import checksum
from mixlora.common.writing import growing, write_json
from mixlora.evaluation import predictions
from mixlora.evaluation.lines import append_lines, cut, write_lines, written
from mixlora.evaluation.predictions import Prediction

IDENTITY = "evaluation.json"
PREDICTIONS, JUDGEMENTS = "predictions", "judgements"
HASH = 32
"""Characters of a hash that stands for something too long for a message."""


class Folder:
    """An evaluation's directory: free, or of any evaluation.

    Args:
        path: the directory.

    Raises:
        CheckpointError: it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity()

    def alone(self) -> AbstractContextManager[None]:
        """Hold the directory's lock: inside the block no other process evaluates there.

        Raises:
            RunError: another process evaluates there, or the lock cannot be written.
        """
        return locked(self.path / LOCK, f"evaluating {self.path}")

    def claim(self, identity: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> None:
        """Make it the directory of this evaluation, unless it is already.

        Args:
            identity: what the answers to all tasks depend on.
            tasks: {task: what its answers depend on}. Tasks with answers in the directory are kept.

        Raises:
            CheckpointError: it holds answers of another evaluation or version, or cannot be written.
            WriteError: the disk is full.
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
            growing(path / IDENTITY).unlink(missing_ok=True)
            (path / PREDICTIONS).mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(f"{path} cannot be written", error, CheckpointError) from None

    @property
    def day(self) -> str | None:
        """The day that the answers in it took for today; None where there are none, or their template writes none."""
        try:
            return date.fromisoformat((self._identity() or {})["model"]["date"]).isoformat()
        except (ValueError, LookupError, TypeError):  # free, or of an earlier version
            return None

    def complete(self, task: str, ids: Sequence[str]) -> list[Prediction] | None:
        """The predictions of a task if all exist, else None.

        Raises:
            DataError: the file is damaged.
        """
        file = self._file(task)
        if not exists(file):
            return None
        found = predictions.read(file, whole=True)
        if [one.question_id for one in found] != list(ids):
            return None
        with written(self.path):
            self._partial(task).unlink(missing_ok=True)  # a killed process may have left it
        return found

    def partial(self, task: str) -> dict[str, Prediction]:
        """The predictions that an interrupted evaluation left for a task, by id.

        Raises:
            DataError: the file is damaged.
        """
        file = self._partial(task)
        if not exists(file):
            return {}
        cut(file)
        return {one.question_id: one for one in predictions.read(file, whole=True)}

    def append(self, task: str, found: Iterable[Prediction]) -> None:
        """Append predictions to the task's partial file."""
        append_lines(self._partial(task), [one.to_record() for one in found])

    def finish(self, task: str, found: Sequence[Prediction]) -> None:
        """Write all predictions of a task, in order, and remove its partial file."""
        with written(self.path):
            write_lines(self._file(task), [one.to_record() for one in found])
            self._partial(task).unlink(missing_ok=True)

    def checksum(self, task: str) -> str:
        """The checksum of a task's predictions, all of which are there.

        Raises:
            TrainingError: they cannot be read.
        """
        with written(self.path):
            return checksum(read_bytes(self._file(task), LARGEST_DATA))

    def judgements(self, task: str) -> Path:
        """The file of a task's judgements."""
        folder = self.path / JUDGEMENTS
        with written(self.path):
            folder.mkdir(exist_ok=True)
        return folder / f"{file_name(task)}.jsonl"

    def _identity(self) -> dict[str, Any] | None:
        """What the answers in the directory depend on; None if it is free."""
        try:
            if not exists(self.path) or (self.path.is_dir() and all(map(_is_unfinished, self.path.iterdir()))):
                return None
            found = read_json(self.path / IDENTITY)
            return found | {"tasks": {task: dict(own) for task, own in found["tasks"].items()}}
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            raise CheckpointError(f"{self.path} exists, but is not an evaluation; choose another --out") from None

    def _refuse_other(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        common = found["tasks"].keys() & wanted["tasks"].keys()
        there, here = (
            {**side, "tasks": {task: own for task, own in side["tasks"].items() if task in common}}
            for side in (found, wanted)
        )
        if (layout := found.get("format")) != wanted["format"]:
            raise CheckpointError(
                f"{self.path} has answers from another version (format {layout!r:.20}, not {wanted['format']}), which "
                "cannot be completed; evaluate again into another --out"
            )
        if other := differences(there, here):
            raise CheckpointError(
                f"{self.path} is from a different evaluation: {other}; choose another --out, or delete it"
            )

    def _begun(self, task: str) -> bool:
        return exists(self._file(task)) or exists(self._partial(task))

    def _file(self, task: str) -> Path:
        return self.path / PREDICTIONS / f"{file_name(task)}.jsonl"

    def _partial(self, task: str) -> Path:
        return self.path / PREDICTIONS / f"{file_name(task)}.jsonl.partial"


def _is_unfinished(path: Path) -> bool:
    """Whether a file is what a process leaves if it is killed before it has claimed the directory."""
    return path.name in (growing(Path(IDENTITY)).name, LOCK)
