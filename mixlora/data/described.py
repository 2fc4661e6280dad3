"""What a job records of its data (template, skipped records, cut answers), and the sentences that tell it.

Both are of plain values, so that a run is read and printed without a model. Not here: the examples themselves
(`preview`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mixlora.data.examples import Example, Form, LossOn
from mixlora.data.reading.problems import Noted

_TEXTUAL = (Form.PLAIN.value, Form.TEXT.value)
"""Forms that no chat template writes."""


def of_task(examples: Sequence[Example], cut: int, noted: Noted, marked: int = 0) -> dict[str, Any]:
    """What a job records of a task's data.

    Args:
        examples: those that are used.
        cut: how many of them have an answer that max_length cuts.
        noted: what of its data is not used.
        marked: how many of them contain special tokens of the model, which are read as text.
    """
    return {
        "examples": len(examples),
        "with_picture": sum(example.has_image for example in examples),
        "cut": cut,
        "special_as_text": marked,
        "several_answers": sum(_is_one_of_several(example) for example in examples),
        "forms": sorted({example.form.value for example in examples}),
        "loss_on": sorted({str(example.loss_on) for example in examples}),
        **noted.json(),
    }


def _is_one_of_several(example: Example) -> bool:
    """Whether a record lists several answers, and its last turn is one of them."""
    return len(set(example.references)) > 1 and example.turns[-1].text in example.references


def sentences(data: Mapping[str, Any]) -> list[str]:
    """What a reader should know of a job's data, in clauses without capital and full stop.

    Args:
        data: what the job records: "template" and, for each of its "tasks", `of_task`. What is missing is not told: it
            may be of an earlier version, or damaged.
    """
    template = _mapping(data.get("template"))
    found = list(_of_template(template))
    for task, own in _mapping(data.get("tasks")).items():
        found += _of_task(str(task), _mapping(own), template)
    return found


def _of_template(template: Mapping[str, Any]) -> Iterator[str]:
    if source := template.get("source"):
        dated = f"; it writes a date, which is {day}" if (day := template.get("day")) else ""
        yield f"chat template: {source}{dated}"


def _of_task(task: str, own: Mapping[str, Any], template: Mapping[str, Any]) -> Iterator[str]:
    yield from Noted(_counts(own.get("skipped")), set(_texts(own.get("unread_keys")))).sentences(task)
    count, cut, seeing = (_number(own.get(key)) for key in ("examples", "cut", "with_picture"))
    if cut:
        yield f"task {task!r}: max_length cuts the answers of {cut} of {count} examples"
    if marked := _number(own.get("special_as_text")):
        yield (
            f"task {task!r}: messages of {marked} of {count} examples contain special tokens of the model, which are "
            f"read as text here; SFTTrainer reads them as the tokens"
        )
    if several := _number(own.get("several_answers")):
        yield (
            f"task {task!r}: {several} of {count} examples list several answers; the conversation ends with one of them"
        )
    if 0 < seeing < count:
        yield f"task {task!r}: {count - seeing} of {count} examples have no picture"
    if template.get("text") and (forms := [form for form in _texts(own.get("forms")) if form in _TEXTUAL]):
        yield f"task {task!r}: records are {' and '.join(forms)}, used as they are, without the chat template"
    if loss_on := [which for which in _texts(own.get("loss_on")) if which != LossOn.ANSWERS]:
        yield f"task {task!r}: the loss is on {' and '.join(loss_on)} (loss_on), not on the answers of all turns"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _counts(value: Any) -> Counter[str]:
    return Counter({str(key): _number(count) for key, count in _mapping(value).items()})


def by_task(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """The examples of each task, in order."""
    found: dict[str, list[Example]] = {}
    for example in examples:
        found.setdefault(example.task, []).append(example)
    return found
