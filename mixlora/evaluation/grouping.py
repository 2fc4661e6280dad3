"""Which answers of a task are of one group: a label each, which predictions keep; and which tasks share groups.

Not here: what examples share (`mixlora.data.groups`), intervals of groups (`scoring`).
"""

from collections.abc import Iterable, Mapping, Sequence

from mixlora.common.errors import DataError
from mixlora.data.examples import Example
from mixlora.data.groups import connected, shared_by
from mixlora.evaluation.folder import HASH


def groups_of(examples: Sequence[Example], group: str) -> dict[str, str | None]:
    """The label of each example's group, by the example's id; None for one that shares nothing it could.

    A group's label is the smallest of what its examples share, at most `HASH` characters of a picture's hash.

    Args:
        examples: of one task.
        group: what they share, as in `shared_by`.

    Raises:
        DataError: a picture can no longer be read.
    """
    keys = [_keys(example, group) for example in examples]
    numbers = connected(keys)
    labels: dict[int, str] = {}
    for number, own in zip(numbers, keys, strict=True):
        for key in own:
            labels[number] = min(key, labels.get(number, key))
    return {example.id: labels.get(number) for example, number in zip(examples, numbers, strict=True)}


def dependent(tasks: Mapping[str, tuple[str, Iterable[str | None]]]) -> list[list[str]]:
    """The sets of tasks that share groups, also through others; without tasks that share none.

    Args:
        tasks: {task: (what its examples share, as in `shared_by`; the labels of their groups)}.
    """
    numbers = connected({(group, one) for one in labels if one is not None} for group, labels in tasks.values())
    sets: dict[int, list[str]] = {}
    for task, number in zip(tasks, numbers, strict=True):
        sets.setdefault(number, []).append(task)
    return [names for names in sets.values() if len(names) > 1]


def _keys(example: Example, group: str) -> list[str]:
    try:
        return [value[:HASH] if example.group is None else value for _, value in shared_by(example, group)]
    except OSError as error:
        raise DataError(f"{example.source}: an image cannot be read: {error.strerror or error}.") from None
