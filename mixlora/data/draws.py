"""Drawing groups first, then examples of them: samples of as many groups as there can be, of tasks together or apart.

Not here: the draw of single examples (`sampling`), and what makes a group (`groups`).
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from mixlora.common.errors import DataError
from mixlora.common.sections import TaskSection
from mixlora.data.examples import Example
from mixlora.data.groups import NONE, Key, all_shared, connected
from mixlora.data.reading.problems import Noted
from mixlora.data.sampling import place
from mixlora.data.sources import MINI_COUNT, examples_of

T = TypeVar("T")
Group = Key
"""What names a group: the least of the keys that its examples share; the example itself where it shares none."""


@dataclass(frozen=True)
class _Candidate:
    """An example that may be drawn.

    Attributes:
        example: it.
        group: its group.
        turn: how many examples of its group come before it in its task.
    """

    example: Example
    group: Group
    turn: int


def pool_of(
    name: str,
    task: TaskSection,
    count: int,
    seed: int,
    problems: list[DataError] | None = None,
    noted: Noted | None = None,
) -> list[Example]:
    """All examples of a task, of which groups can be drawn.

    Raises:
        DataError: as `examples_of`.
    """
    return examples_of(name, task, pool_size(task, count), seed, problems, noted)[name]


def pool_size(task: TaskSection, count: int) -> int | None:
    """How many examples of a task `count` are drawn of: all (None); of the mini suite its first `MINI_COUNT`."""
    return None if task.mini is None else max(count, MINI_COUNT)


def draw(
    pools: Mapping[str, Sequence[Example]],
    kinds: Mapping[str, str],
    count: int,
    seed: int,
    paired: Mapping[str, bool | None],
) -> dict[str, list[Example]]:
    """`count` examples of every task, of as many groups as it can have: one of each before a second of any.

    The groups of a task come in an order by a hash of (seed, task, group), the examples of a group as in `sampling`.
    So the order of a file changes nothing. Groups are those of whole files: of all tasks' examples that share a key,
    also through others. All pictures of tasks that are grouped by them are read, each file once.

    Paired tasks take groups in one order, those that most of them have first, so that they share as many as they can.
    Tasks apart divide the groups they have in common evenly among them; each draws from its own, all of their examples
    if need be, before it takes a group that another has drawn.

    Args:
        pools: {task: all its examples}.
        kinds: {task: its `group`}.
        count: examples of each task; all if there are fewer.
        seed: seed of the draw.
        paired: {task: True to draw it with the other paired ones, False apart from all others, None by itself}.

    Raises:
        DataError: if a picture cannot be read, or a paired task has no group in common with another.
    """
    groups = _groups(pools, kinds)
    candidates = {task: _candidates(task, pools[task], groups[task], seed) for task in pools}
    pairs, apart = ([task for task in pools if paired[task] is mode] for mode in (True, False))
    held = Counter(group for task in pairs for group in set(groups[task]))
    _check_paired({task: groups[task] for task in pairs if kinds[task] != NONE}, held)
    orders = {
        task: partial(_paired, held, seed) if paired[task] else partial(_alone, task, seed)
        for task in pools
        if task not in apart
    }
    found = {task: sorted(candidates[task], key=order)[:count] for task, order in orders.items()}
    found |= _apart({task: candidates[task] for task in apart}, count, seed, _drawn(found))
    return {task: [one.example for one in found[task]] for task in pools}


def packed(items: Sequence[T], shared: Iterable[Iterable[Hashable]], size: int) -> list[T]:
    """The items in an order that puts `size` of one group together, so that few units of `size` join groups.

    Args:
        items: in the order of the draw, which is kept within a group and among those left over.
        shared: what each item shares with others of its group.
        size: of a unit.
    """
    own: dict[int, list[T]] = {}
    for item, group in zip(items, connected(shared), strict=True):
        own.setdefault(group, []).append(item)
    whole = [item for each in own.values() for item in each[: len(each) - len(each) % size]]
    return whole + [item for each in own.values() for item in each[len(each) - len(each) % size :]]


def _check_paired(groups: Mapping[str, Sequence[Group]], held: Mapping[Group, int]) -> None:
    """Raise a DataError for a paired task that shares no group with another."""
    alone = [task for task, own in groups.items() if all(held[group] < 2 for group in own)]
    if not alone:
        return
    if len(alone) == len(groups):
        names = " and ".join(map(repr, alone))
        raise DataError(f"paired is true, but {names} have no group in common in their files; leave paired out.")
    others = " or ".join(repr(task) for task in groups if task != alone[0])
    raise DataError(
        f"paired is true, but {alone[0]!r} has no group in common with {others} in their files; give it paired: false."
    )


def _paired(held: Mapping[Group, int], seed: int, one: _Candidate) -> tuple[int, int, bytes, str]:
    return one.turn, -held[one.group], _order(one.group, "", seed), one.example.id


def _alone(task: str, seed: int, one: _Candidate) -> tuple[int, int, bytes, str]:
    return one.turn, 0, _order(one.group, task, seed), one.example.id


def _apart(
    candidates: Mapping[str, Sequence[_Candidate]], count: int, seed: int, taken: set[Group]
) -> dict[str, list[_Candidate]]:
    """The draws of tasks that share as few groups as they can, with each other and with `taken`."""
    owner = _owners({task: {one.group for one in own} for task, own in candidates.items()}, seed)
    found = {}
    for task, own in candidates.items():
        free = [one for one in own if owner[one.group] == task and one.group not in taken]
        found[task] = sorted(free, key=partial(_alone, task, seed))[:count]
    for task, own in candidates.items():
        others = taken | _drawn({other: drawn for other, drawn in found.items() if other != task})
        chosen = {one.example.id for one in found[task]}
        left = sorted((one for one in own if one.example.id not in chosen), key=partial(_alone, task, seed))
        left.sort(key=partial(_taken, others))
        found[task] += left[: count - len(found[task])]
    return found


def _taken(others: set[Group], one: _Candidate) -> bool:
    return one.group in others


def _owners(held: Mapping[str, set[Group]], seed: int) -> dict[Group, str]:
    """Every group with the task that may draw it first: of those that have it the one with fewest so far."""
    often, number = Counter(group for own in held.values() for group in own), Counter[str]()
    found = {}
    for group in sorted(often, key=lambda group: (often[group], _order(group, "", seed))):
        found[group] = min((task for task, own in held.items() if group in own), key=lambda task: number[task])
        number[found[group]] += 1
    return found


def _drawn(found: Mapping[str, Sequence[_Candidate]]) -> set[Group]:
    return {one.group for own in found.values() for one in own}


def _candidates(task: str, examples: Sequence[Example], groups: Sequence[Group], seed: int) -> list[_Candidate]:
    """A task's examples, in the order in which those of a group are drawn."""
    numbered, found = Counter[Group](), []
    for example, group in sorted(
        zip(examples, groups, strict=True), key=lambda pair: (place(pair[0].id, task, seed), pair[0].id)
    ):
        found.append(_Candidate(example, group, numbered[group]))
        numbered[group] += 1
    return found


def _order(group: Group, task: str, seed: int) -> bytes:
    return place(f"group {len(group[0])}:{group[0]}:{group[1]}", task, seed)


def _groups(pools: Mapping[str, Sequence[Example]], kinds: Mapping[str, str]) -> dict[str, list[Group]]:
    """The group of every example."""
    each = [(task, example) for task, examples in pools.items() for example in examples]
    shared = all_shared((example, kinds[task]) for task, example in each)
    keys = [own or [(f"task {task}", example.id)] for (task, example), own in zip(each, shared, strict=True)]
    numbers, names = connected(keys), dict[int, Group]()
    for number, own in zip(numbers, keys, strict=True):
        names[number] = min(own) if number not in names else min(names[number], *own)
    following = iter(numbers)
    return {task: [names[next(following)] for _ in examples] for task, examples in pools.items()}
