"""Predictions of a model and their files: one JSON object a line, in the format of the paper's release."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixlora.common.errors import DataError, type_of
from mixlora.common.files import LARGEST_DATA, parse_json, read_bytes
from mixlora.common.sealed import SEAL, intact

_REQUIRED = ("question_id", "prompt", "predict", "target")


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one example.

    Attributes:
        question_id: the example's id, unique within its task.
        task: the task's name.
        prompt: the question.
        predict: the model's answer.
        target: the right answer.
        references: right answers of several people, if the task has them.
        image_path: the path of the example's image.
        group: what it shares with other examples of its group, as a picture; None if it is independent of all others.
    """

    question_id: str
    task: str
    prompt: str
    predict: str
    target: str
    references: tuple[str, ...] = ()
    image_path: str | None = None
    group: str | None = None

    @property
    def place(self) -> str:
        """The name of the example in messages."""
        return f"Example {self.question_id:.200} of task {self.task:.200}"

    def to_record(self) -> dict[str, Any]:
        """The record of this prediction, as `read` reads it."""
        record: dict[str, Any] = {
            "question_id": self.question_id,
            "prompt": self.prompt,
            "predict": self.predict,
            "target": self.target,
            "image_path": self.image_path,
            "task": self.task,
        }
        record |= {"references": list(self.references)} if self.references else {}
        return record | ({} if self.group is None else {"group": self.group})


def read(path: Path | str, task: str | None = None, whole: bool = False) -> list[Prediction]:
    """The predictions of a file, in its order; unknown keys of a record are ignored.

    Args:
        path: a file with one JSON object a line: `question_id`, `prompt`, `predict`, `target`, and optionally
            `image_path`, `task`, `references` and `group`.
        task: the task of records that name none; the file's name without its suffix if None.
        whole: whether every line must carry its checksum, as those that an evaluation writes do.

    Raises:
        DataError: the file or one of its lines cannot be used.
    """
    path = Path(path)
    try:
        data = read_bytes(path, LARGEST_DATA)
    except OSError as error:
        raise DataError(f"The predictions {path} cannot be read: {error.strerror or error}; check the path.") from None
    found: dict[str, tuple[Prediction, str]] = {}
    for place, record in _records(data, path.name):
        if (whole or SEAL in record) and not intact(record):
            raise DataError(
                f"{place}: the line is damaged: its checksum is another; delete {path}, and the same evaluation "
                "answers again."
            )
        prediction = _prediction(record, place, task or path.stem)
        if (twin := found.get(prediction.question_id)) is not None:
            raise DataError(
                f"{place}: the question_id {prediction.question_id!r:.200} already appears at {twin[1]}; "
                "remove one of them."
            )
        found[prediction.question_id] = prediction, place
    return [prediction for prediction, _ in found.values()]


def _records(data: bytes, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each record and its place; a truncated last line gets another error than a wrong line."""
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{name}:{number}"
        try:
            record = parse_json(line.decode("utf-8"))
        except ValueError as error:
            if number == len(lines):
                raise DataError(
                    f"{place}: the last line is unfinished, as a killed writer leaves it; remove it, or continue."
                ) from error
            said = getattr(error, "msg", None) or error
            raise DataError(f"{place}: invalid JSON ({said}); write one object per line, in UTF-8.") from error
        if not isinstance(record, Mapping):
            raise DataError(
                f"{place}: found {type_of(record)}, but a line must be an object with {', '.join(_REQUIRED)}."
            )
        yield place, record


def _prediction(record: Mapping[str, Any], place: str, task: str) -> Prediction:
    if missing := [key for key in _REQUIRED if record.get(key) is None]:
        raise DataError(f"{place}: no {missing[0]!r}; a prediction has {', '.join(_REQUIRED)}.")
    references, image, group = record.get("references") or [], record.get("image_path"), record.get("group")
    if not isinstance(references, list):
        raise DataError(f"{place}: the references are {references!r:.60}, but must be a list of answers.")
    return Prediction(
        question_id=_text(record["question_id"], "question_id", place),
        task=_text(record.get("task") or task, "task", place),
        prompt=_text(record["prompt"], "prompt", place),
        predict=_text(record["predict"], "predict", place),
        target=_text(record["target"], "target", place),
        references=tuple(_text(answer, "references", place) for answer in references),
        image_path=None if image is None else _text(image, "image_path", place),
        group=None if group is None else _text(group, "group", place),
    )


def _text(value: Any, key: str, place: str) -> str:
    """The value, a string or a number, as a string."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{place}: {key} is {value!r:.60}, but must be a string or a number.")
    return str(value)
