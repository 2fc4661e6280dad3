"""Tasks from where a configuration says they are: which records take part, under which task, with which ids.

`files` reads the records, `records` makes examples of them, and `mme` reads a benchmark that has its own layout.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from mixlora.common.errors import DataError
from mixlora.common.files import exists, is_folder
from mixlora.data.examples import Example
from mixlora.data.reading.files import read_records
from mixlora.data.reading.mme import read_mme
from mixlora.data.reading.problems import gathered
from mixlora.data.reading.records import Record, checked_text, read_example

_WANTED: Mapping[str, tuple[Any, str]] = {
    "where": (Mapping, "a mapping"),
    "fields": (Mapping, "a mapping"),
    "outside": (bool, "true or false"),
}
_LISTED_VALUES, _COMPARED_VALUES = 10, 1000


@dataclass(frozen=True)
class TaskSpec:
    """Where the examples of one task are, or those of several tasks that are kept together.

    Attributes:
        file: a .jsonl or .json file, a parquet file, or a directory written by `datasets`' `save_to_disk`.
        images: the folder that image names are relative to; the file's own folder if None. No image leaves it,
            unless `outside`.
        where: only records with these values, {field: value}.
        split: the split of a dataset directory that has several.
        fields: the file's own names of `id`, `prompt`, `response`, `image` and `references`, as in {prompt: question}.
        by: the field that names each record's task, where the file holds several.
        mme: the folder of the benchmark MME, in place of all the others: each of its subtasks is a task.
        outside: images may lie outside their folder: named by an absolute path or with "..", or behind a link.

    Raises:
        DataError: neither `file` nor `mme` is given, or `mme` and something else.
    """

    file: Path | None = None
    images: Path | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    by: str | None = None
    mme: Path | None = None
    outside: bool = False

    def __post_init__(self) -> None:
        _refuse_sources(vars(self), "A task")

    @classmethod
    def of(cls, given: Mapping[str, Any], task: str) -> "TaskSpec":
        """The spec that a configuration's entry describes.

        Raises:
            DataError: it has an unknown key, a value of another type than its key wants, or cannot be a spec.
        """
        allowed = [own.name for own in fields(cls)]
        if unknown := sorted(set(given) - set(allowed)):
            raise DataError(f"Task {task} has the unknown key {unknown[0]!r}; the keys are {', '.join(allowed)}.")
        chosen: dict[str, Any] = {key: value for key, value in given.items() if value is not None and value != ""}
        for key, value in chosen.items():
            wanted, named = _WANTED.get(key, ((str, Path), "text"))
            if not isinstance(value, wanted):
                raise DataError(f"Task {task} has {key}: {value!r:.60}, a {type(value).__name__}; write {named}.")
        _refuse_sources(chosen, f"Task {task}")
        return cls(**chosen | {key: Path(chosen[key]) for key in ("file", "images", "mme") if key in chosen})


def read_task(spec: TaskSpec | Mapping[str, Any], task: str, problems: list[DataError] | None = None) -> list[Example]:
    """The examples of one task, in the file's order, each checked; images exist but are not decoded yet.

    Records that share an id get a digest of their content appended to it, so that ids are unique and do not depend on
    the file's order.

    Args:
        spec: where they are.
        task: its name.
        problems: where the records that cannot be used are told; they are left out then, and reading goes on.

    Raises:
        DataError: the spec holds several tasks, the file or its image folder cannot be used, `where` keeps nothing, or
            without `problems` a record that it keeps, or the name of its image, cannot be used.
    """
    spec = spec if isinstance(spec, TaskSpec) else TaskSpec.of(spec, task)
    if spec.mme is not None or spec.by is not None:
        several = f"mme: {spec.mme}" if spec.mme is not None else f"by: {spec.by}"
        remedy = "give a `file`, with `where: {FIELD: TASK}` if it holds several"
        raise DataError(f"Task {task}: `{several}` gives several tasks where one is wanted; {remedy}.")
    file = _existing_file(spec, task)
    return _examples(_records(spec, file, task, problems), spec, file, task, problems)


def read_tasks(
    spec: TaskSpec | Mapping[str, Any], name: str, problems: list[DataError] | None = None
) -> dict[str, list[Example]]:
    """The examples of each task that a spec holds, by the task's name.

    With `by` the tasks are the values of that field, with `mme` the subtasks, in order of first appearance; otherwise
    it is one task, `name`. The rest is as in `read_task`; a task none of whose records can be used has no example.

    Raises:
        DataError: as in `read_task`; a record has no `by`; or as in `read_mme`.
    """
    spec = spec if isinstance(spec, TaskSpec) else TaskSpec.of(spec, name)
    if spec.mme is not None:
        return read_mme(spec.mme, problems, spec.outside)
    if spec.by is None:
        return {name: read_task(spec, name, problems)}
    file = _existing_file(spec, name)
    tasks: dict[str, list[Record]] = {}
    for record in _records(spec, file, name, problems):
        with gathered(problems):
            tasks.setdefault(_task_of(record, spec.by), []).append(record)
    return {task: _examples(records, spec, file, task, problems) for task, records in tasks.items()}


def _refuse_sources(given: Mapping[str, Any], who: str) -> None:
    """Refuse a task that has no source of examples, or MME's folder beside something else."""
    set_keys = [key for key, value in given.items() if value and key != "outside"]
    if not {"file", "mme"} & set(set_keys):
        raise DataError(f"{who} names no file; give `file: path/to/records.jsonl`.")
    if "mme" in set_keys and len(set_keys) > 1:
        others = ", ".join(key for key in set_keys if key != "mme")
        raise DataError(f"{who} has `mme: {given['mme']}` beside {others}; leave out the one or the other.")


def _existing_file(spec: TaskSpec, task: str) -> Path:
    if spec.file is None or not exists(spec.file):
        raise DataError(f"Task {task}: {spec.file} does not exist; check the path in `file`.")
    if spec.images is not None and not is_folder(spec.images):
        raise DataError(f"Task {task}: the image folder {spec.images} does not exist; check the path in `images`.")
    return spec.file


def _records(spec: TaskSpec, file: Path, task: str, problems: list[DataError] | None) -> list[Record]:
    """The records that take part; none only where all that the file holds are among `problems`."""
    before = len(problems or ())
    records = read_records(file, spec.split, problems)
    if records:
        return _matching(records, spec, problems)
    if len(problems or ()) == before:
        raise DataError(f"Task {task}: {file} holds no record; give a file with at least one.")
    return []


def _examples(
    records: Sequence[Record], spec: TaskSpec, file: Path, task: str, problems: list[DataError] | None
) -> list[Example]:
    root = (spec.images or (file if file.is_dir() else file.parent)).resolve()
    found = []
    for record in records:
        with gathered(problems):
            found.append(read_example(record, spec.fields, root, task, spec.outside))
    return _with_unique_ids(found)


def _task_of(record: Record, by: str) -> str:
    """The task that a record's own field names."""
    if by not in record.values:
        raise record.error(f"no field {by!r}, which `by` names as the task; it has {record.keys}.")
    value = record.values[by]
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise record.error(f"{by}, which `by` names as the task, is {value!r:.60}; write the name of a task.")
    return checked_text(str(value), by, record)


def _matching(records: Sequence[Record], spec: TaskSpec, problems: list[DataError] | None) -> list[Record]:
    """The records with all values of `spec.where`, which a configuration may write as another type ("3" for 3)."""
    kept, shown = [], []
    for record in records:
        with gathered(problems):
            own = {name: _shown(record, name) for name in spec.where if name in record.values}
            shown.append(own)
            if all(own.get(name) == str(spec.where[name]) for name in spec.where):
                kept.append(record)
    if kept or not shown:
        return kept
    missed = [name for name in spec.where if not any(own.get(name) == str(spec.where[name]) for own in shown)]
    if not missed:
        raise DataError(f"No record of {spec.file} has all of {dict(spec.where)} at once; ask for fewer.")
    name, wanted = missed[0], spec.where[missed[0]]
    values = {own[name][:60] for own in shown if name in own}
    if not values:
        first = records[0].keys
        raise DataError(f"No record of {spec.file} has the field {name!r} of `where`; the first has {first}.")
    alike = {value: SequenceMatcher(None, value, str(wanted)).ratio() for value in sorted(values)[:_COMPARED_VALUES]}
    near = sorted(values, key=lambda value: (-alike.get(value, 0.0), value))
    more = f" and {len(near) - _LISTED_VALUES} more" if len(near) > _LISTED_VALUES else ""
    listed = ", ".join(near[:_LISTED_VALUES]) + more
    raise DataError(f"No record of {spec.file} has {name} = {wanted!r}; its values are {listed}.")


def _shown(record: Record, name: str) -> str:
    """A value as text."""
    try:
        return str(record.values[name])
    except RecursionError:
        raise record.error(f"{name} is nested too deeply; simplify it.") from None


def _with_unique_ids(examples: list[Example]) -> list[Example]:
    """The examples; those that share an id are told apart by their content, and copies by counting them."""
    often = Counter(example.id for example in examples)
    taken: Counter[str] = Counter()
    unique = []
    for example in examples:
        name = example.id
        if often[name] > 1:
            image = example.image.name if isinstance(example.image, Path) else ""
            content = json.dumps([image, *((turn.role, turn.text) for turn in example.turns)])
            name = f"{name}~{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        taken[name] += 1
        unique.append(replace(example, id=f"{name}~{taken[name]}" if taken[name] > 1 else name))
    return unique
