"""The directory of an evaluation: predictions as they come, kept for the same model, examples and generation.

out/evaluation.json              whose predictions these are
out/predictions/TASK.jsonl       one answer a line, in the paper's format; .partial while it grows
out/judgements/TASK.jsonl        what the judge said of each
out/results.json                 the scores
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixlora.errors import CheckpointError
from mixlora.evaluation import predictions
from mixlora.evaluation.predictions import Prediction
from mixlora.files import file_name, write_json

IDENTITY = "evaluation.json"


class Folder:
    """An evaluation's directory, free or of the same evaluation.

    Args:
        path: the directory.
        identity: what answers depend on.

    Raises:
        CheckpointError: it holds something else, or cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        found = self._identity()
        if found is not None and found != json.loads(json.dumps(identity)):
            keys = [key for key in identity if found.get(key) != json.loads(json.dumps(identity[key]))]
            raise CheckpointError(
                f"{path} is of another evaluation (its {' and '.join(keys) or 'format'} differ); choose another --out, "
                "or delete it"
            )
        try:
            (path / "predictions").mkdir(parents=True, exist_ok=True)
            if found is None:
                write_json(path / IDENTITY, identity)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be written: {error.strerror or error}; choose another --out"
            ) from None

    def complete(self, task: str, ids: Sequence[str]) -> list[Prediction] | None:
        """The predictions of a task, if all are there."""
        file = self._file(task)
        if not file.exists():
            return None
        found = predictions.read(file)
        return found if [one.question_id for one in found] == list(ids) else None

    def partial(self, task: str) -> dict[str, Prediction]:
        """The predictions of a task that an interrupted evaluation left, by id."""
        file = self._partial(task)
        if not file.exists():
            return {}
        _cut(file)
        return {one.question_id: one for one in predictions.read(file)}

    def append(self, task: str, found: Iterable[Prediction]) -> None:
        """Add predictions to those that are there."""
        append_lines(self._partial(task), [one.to_record() for one in found])

    def finish(self, task: str, found: Sequence[Prediction]) -> None:
        """Put all predictions of a task in order in place of what has grown."""
        _write_lines(self._file(task), [one.to_record() for one in found])
        self._partial(task).unlink(missing_ok=True)

    def judgements(self, task: str) -> Path:
        """Where the judge's words on a task are kept."""
        folder = self.path / "judgements"
        folder.mkdir(exist_ok=True)
        return folder / f"{file_name(task)}.jsonl"

    def _identity(self) -> dict[str, Any] | None:
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return None
        try:
            return dict(json.loads((self.path / IDENTITY).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise CheckpointError(f"{self.path} holds something that is no evaluation; choose another --out") from None

    def _file(self, task: str) -> Path:
        return self.path / "predictions" / f"{file_name(task)}.jsonl"

    def _partial(self, task: str) -> Path:
        return self.path / "predictions" / f"{file_name(task)}.jsonl.partial"


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add records, one a line, to a file."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with path.open("a", encoding="utf-8") as file:
        file.write(lines)


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file that grows; one that was being written is cut off. None where there is no file."""
    if not path.exists():
        return []
    _cut(path)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _cut(path: Path) -> None:
    """Remove a last line that no newline ends."""
    whole = path.read_bytes()
    if (kept := whole.rfind(b"\n") + 1) < len(whole):
        os.truncate(path, kept)


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Records, one a line, whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
