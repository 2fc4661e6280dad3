"""One record of a data file, recognised by its content, as an example. Files and tasks are read by `tasks`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mixlora.data.examples import Example, Form, LossOn, Turn
from mixlora.data.groups import label_of
from mixlora.data.reading.pictures import PICTURE_KEYS, placed, read_pictures
from mixlora.data.reading.shapes import read_content
from mixlora.data.reading.values import Record, as_text, is_missing

_IDS = ("id", "unique_id")


@dataclass(frozen=True)
class Reading:
    """How the records of a task are read.

    Attributes:
        task: its name.
        root: the folder that names of pictures are relative to, resolved.
        fields: the file's own names of what is read, {name: own name}.
        ignore: keys that are not read.
        known: keys that something else reads, as `where` and `by`.
        outside: pictures may lie outside of `root`.
        loss_on: which tokens are supervised.
        group: the key whose value an example's group is named by; None for no group.
    """

    task: str
    root: Path
    fields: Mapping[str, str]
    ignore: Collection[str] = ()
    known: Collection[str] = ()
    outside: bool = False
    loss_on: LossOn = LossOn.ANSWERS
    group: str | None = None


def read_example(record: Record, reading: Reading, unread: set[str] | None = None) -> Example:
    """The example that a record stands for; its pictures exist, but are not decoded yet.

    Args:
        record: as its file has it.
        reading: how it is read.
        unread: gets the keys that are of no known meaning, and are not read.

    Raises:
        DataError: the record is of no known shape, or something in it cannot be used or would be dropped.
    """
    try:
        return _example(record, reading, unread)
    except RecursionError:
        raise record.error("something in it is nested too deeply; simplify it.") from None


def _example(record: Record, reading: Reading, unread: set[str] | None) -> Example:
    group = None if reading.group is None else _group_of(record, reading.group)
    record = _renamed(record, reading) if reading.fields or reading.ignore else record
    values = record.values
    content = read_content(record)
    images = read_pictures(record, content.pictures, reading.root, reading.outside)
    turns = placed(content.turns, len(images), record)
    _check_turns(turns, content.form, record)
    own_id = next((values[key] for key in _IDS if not is_missing(values.get(key))), record.position)
    if unread is not None:
        other = values.keys() - content.used - {*PICTURE_KEYS, *_IDS, *reading.known}
        unread |= {str(key) for key in other if not is_missing(values[key])} | content.unread
    return Example(
        as_text(own_id if isinstance(own_id, str) else str(own_id), "id", record),
        reading.task,
        turns,
        images,
        record.source,
        content.references,
        content.form,
        content.prompt_turns,
        content.tools,
        reading.loss_on,
        group,
    )


def _group_of(record: Record, key: str) -> str:
    """The group that a record names."""
    value = record.values.get(key)
    label = None if is_missing(value) else label_of(as_text(value, f"{key}, which `group` names,", record))
    if label is None:
        remedy = f"it has {record.keys}; name a key that every record has, or write `group: none`."
        raise record.error(f"no value of {key!r}, which `group` names; {remedy}")
    return str(label)


def _renamed(record: Record, reading: Reading) -> Record:
    """The record without what is ignored, and with the usual names."""
    values = {key: value for key, value in record.values.items() if key not in reading.ignore}
    for name, own in reading.fields.items():
        if own not in values:
            raise record.error(
                f"the record has no field {own!r}, which `fields` names as the {name}; it has {record.keys}."
            )
        values[name] = values.pop(own)
    return replace(record, values=values, ignored=frozenset(reading.ignore))


def _check_turns(turns: Sequence[Turn], form: Form, record: Record) -> None:
    if form is Form.TEXT:
        if not turns[0].text.strip():
            raise record.error("the text is empty, so there is nothing to learn; fill it or drop the record.")
        return
    if next((turn.role for turn in turns if turn.role != "system"), None) != "user":
        raise record.error("the conversation does not begin with a user turn; add the question.")
    if turns[-1].role != "assistant":
        raise record.error(f"the conversation ends with a {turns[-1].role} turn; end it with the assistant's answer.")
    if any(turn.role == "assistant" and not turn.text.strip() and not turn.more.get("tool_calls") for turn in turns):
        raise record.error("an answer is empty, so there is nothing to learn; fill it or drop the record.")
