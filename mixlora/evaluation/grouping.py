"""Which answers of a task are of one group: a label each, which predictions keep; and which tasks share groups.

Not here: what examples share (`mixlora.data.groups`), intervals of groups (`scoring`).
"""

from collections.abc import Mapping, Sequence

from mixlora.data.examples import Example
from mixlora.data.groups import IMAGE, Key, connected
from mixlora.evaluation.folder import HASH

Shared = Sequence[Sequence[Key]]
"""What each example of a task shares with others."""


def labels(examples: Sequence[Example], shared: Shared) -> dict[str, str | None]:
    """The label of each example's group, by the example's id; None for one that shares nothing it could.

    A group's label is the smallest of what its examples share, at most `HASH` characters of a picture's hash.

    Args:
        examples: of one task.
        shared: what each of them shares.
    """
    numbers = connected(shared)
    found: dict[int, str] = {}
    for number, own in zip(numbers, shared, strict=True):
        for kind, value in own:
            key = value[:HASH] if kind == IMAGE else value
            found[number] = min(key, found.get(number, key))
    return {example.id: found.get(number) for example, number in zip(examples, numbers, strict=True)}


def dependent(tasks: Mapping[str, Shared]) -> list[list[str]]:
    """The sets of tasks whose examples share anything, also through others; without tasks that share nothing.

    Args:
        tasks: {task: what each of its examples shares}.
    """
    sets: dict[int, list[str]] = {}
    numbers = connected({key for own in each for key in own} for each in tasks.values())
    for task, number in zip(tasks, numbers, strict=True):
        sets.setdefault(number, []).append(task)
    return [names for names in sets.values() if len(names) > 1]
