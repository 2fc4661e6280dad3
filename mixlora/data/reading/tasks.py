"""A configuration's task to examples: which records take part, in which task, with which ids.

Not here: reading files (`files`), turning a record into an example (`records`), MME's own layout (`mme`).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from mixlora.common.errors import DataError
from mixlora.common.files import is_folder
from mixlora.common.sections import HELDOUT, TaskGroupSection, TaskSection
from mixlora.data.examples import Example, Form, LossOn
from mixlora.data.groups import IMAGE, NONE
from mixlora.data.reading.files import folder_of, is_there, read_records
from mixlora.data.reading.mme import read_mme
from mixlora.data.reading.problems import Noted, collecting
from mixlora.data.reading.records import Reading, read_example
from mixlora.data.reading.values import Record, as_text
from mixlora.data.reading.without import part_of, without

_LISTED_VALUES, _COMPARED_VALUES = 10, 1000
"""How many values a message lists, and how many it sorts by similarity."""


def read_task(
    task: TaskSection, name: str, problems: list[DataError] | None = None, noted: Noted | None = None
) -> list[Example]:
    """The examples of one task, in the file's order, each checked; images exist but are not decoded yet.

    Records that share an id get a digest of their content appended to it, so that ids are unique and do not depend on
    the file's order.

    Args:
        task: the file, and how it is read.
        name: the task's name.
        problems: collects the errors of unusable records, which are then skipped; None to raise the first.
        noted: collects the keys that are not read.

    Raises:
        DataError: the section holds several tasks, its file or image folder cannot be used, `where` matches nothing,
            `without` names no record, `holdout` leaves no example, or (without `problems`) a matching record cannot be
            used.
    """
    if isinstance(task, TaskGroupSection) and (task.mme or task.by):
        several = f"mme: {task.mme}" if task.mme else f"by: {task.by}"
        remedy = "give a `file`, with `where: {FIELD: TASK}` if it holds several"
        raise DataError(f"Task {name}: `{several}` stands for several tasks, but one is needed; {remedy}.")
    file = _existing_file(task, name)
    found = _examples(_records(task, file, name, problems), task, file, name, problems, noted)
    return _kept({name: found}, task, name, problems)[name]


def read_tasks(
    task: TaskGroupSection, name: str, problems: list[DataError] | None = None, noted: Noted | None = None
) -> dict[str, list[Example]]:
    """The examples of each task that a section holds, by the task's name.

    With `by` the tasks are the values of that field, with `mme` the subtasks, in order of first appearance; otherwise
    there is one task, `name`. Everything else is as in `read_task`; a task without a usable record has no example.

    Raises:
        DataError: as in `read_task` or `read_mme`, or a record has no `by`.
    """
    if task.mme:
        if others := [key for key in task.given_of_file if key != "outside"]:
            beside = ", ".join(others)
            raise DataError(f"Task {name} has `mme: {task.mme}` beside {beside}; leave out one of them.")
        return read_mme(Path(task.mme), problems, task.outside)
    if not task.by:
        return {name: read_task(task, name, problems, noted)}
    file = _existing_file(task, name)
    tasks: dict[str, list[Record]] = {}
    for record in _records(task, file, name, problems):
        with collecting(problems):
            tasks.setdefault(_task_of(record, task.by), []).append(record)
    found = {own: _examples(records, task, file, own, problems, noted) for own, records in tasks.items()}
    return _kept(found, task, name, problems)


def _kept(
    found: dict[str, list[Example]], task: TaskSection, name: str, problems: list[DataError] | None
) -> dict[str, list[Example]]:
    """The examples without those that the task leaves out."""
    if task.without is not None:
        found = without(found, Path(task.without), name, whole=not problems)
    return found if task.holdout is None else part_of(found, task.holdout, task.part == HELDOUT)


def _existing_file(task: TaskSection, name: str) -> Path:
    if not task.file:
        raise DataError(f"Task {name} names no file; give `file: path/to/records.jsonl`.")
    file, images = Path(task.file), Path(task.images) if task.images else None
    if not is_there(file):
        raise DataError(f"Task {name}: {file} does not exist; check the path in `file`.")
    if images is not None and not is_folder(images):
        raise DataError(f"Task {name}: the image folder {images} does not exist; check the path in `images`.")
    return file


def _records(task: TaskSection, file: Path, name: str, problems: list[DataError] | None) -> list[Record]:
    """The matching records; an empty list only if every record of the file is among `problems`."""
    before = len(problems or ())
    records = list(read_records(file, task.split or None, problems))
    if records:
        return _matching(records, task.where, file, problems)
    if len(problems or ()) == before:
        raise DataError(f"Task {name}: {file} has no record; give a file with at least one.")
    return []


def _examples(
    records: Sequence[Record],
    task: TaskSection,
    file: Path,
    name: str,
    problems: list[DataError] | None,
    noted: Noted | None,
) -> list[Example]:
    by, group = getattr(task, "by", None), getattr(task, "group", NONE)
    key = None if group in (IMAGE, NONE) else group
    reading = Reading(
        name,
        Path(task.images or folder_of(file)).resolve(),
        task.fields,
        frozenset(task.ignore),
        frozenset({*task.where, *([by] if by else []), *([key] if key else [])}),
        task.outside,
        LossOn(task.loss_on),
        key,
    )
    unread = None if noted is None else noted.unread
    found: list[Example] = []
    for record in records:
        with collecting(problems):
            example = read_example(record, reading, unread)
            _check_form(example, found[0] if found else example)
            found.append(example)
    return _with_unique_ids(found)


def _check_form(example: Example, first: Example) -> None:
    """Raise a DataError for an example that a trainer writes otherwise than the first of its task."""
    own, others = (Form.MESSAGES if one.form is Form.QUESTION else one.form for one in (example, first))
    if own is not others:
        raise DataError(
            f"{example.source}: the record is {example.form.value}, but the first ({first.source}) is "
            f"{first.form.value}, which trainers write differently; give each form its own task and file."
        )


def _task_of(record: Record, by: str) -> str:
    """The task that the record names in the field `by`."""
    if by not in record.values:
        raise record.error(f"the record has no field {by!r}, which `by` names as the task; it has {record.keys}.")
    value = record.values[by]
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise record.error(f"{by}, which `by` names as the task, is {value!r:.60}; write the name of a task.")
    return as_text(str(value), by, record)


def _matching(
    records: Sequence[Record], where: Mapping[str, Any], file: Path, problems: list[DataError] | None
) -> list[Record]:
    """The records with all values of `where`, which a configuration may write as another type ("3" for 3)."""
    kept, shown = [], []
    for record in records:
        with collecting(problems):
            own = {name: _shown(record, name) for name in where if name in record.values}
            shown.append(own)
            if all(own.get(name) == str(where[name]) for name in where):
                kept.append(record)
    if kept or not shown:
        return kept
    missed = [name for name in where if not any(own.get(name) == str(where[name]) for own in shown)]
    if not missed:
        raise DataError(f"No record of {file} has all of {dict(where)} at once; ask for fewer.")
    name, wanted = missed[0], where[missed[0]]
    values = {own[name][:60] for own in shown if name in own}
    if not values:
        first = records[0].keys
        raise DataError(f"No record of {file} has the field {name!r} of `where`; the first has {first}.")
    alike = {value: SequenceMatcher(None, value, str(wanted)).ratio() for value in sorted(values)[:_COMPARED_VALUES]}
    near = sorted(values, key=lambda value: (-alike.get(value, 0.0), value))
    more = f" and {len(near) - _LISTED_VALUES} more" if len(near) > _LISTED_VALUES else ""
    listed = ", ".join(near[:_LISTED_VALUES]) + more
    raise DataError(f"No record of {file} has {name} = {wanted!r}; its values are {listed}.")


def _shown(record: Record, name: str) -> str:
    """The value of a field as text."""
    try:
        return str(record.values[name])
    except RecursionError:
        raise record.error(f"{name} is nested too deeply; simplify it.") from None


def _with_unique_ids(examples: list[Example]) -> list[Example]:
    """The examples with unique ids: a digest of the content distinguishes those that share an id, a number copies."""
    often = Counter(example.id for example in examples)
    taken: Counter[str] = Counter()
    unique = []
    for example in examples:
        name = example.id
        if often[name] > 1:
            images = [image.name if isinstance(image, Path) else "" for image in example.images] or [""]
            content = json.dumps([*images, *((turn.role, turn.text) for turn in example.turns)])
            name = f"{name}~{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        taken[name] += 1
        name = f"{name}~{taken[name]}" if taken[name] > 1 else name
        unique.append(example if name == example.id else replace(example, id=name))
    return unique
