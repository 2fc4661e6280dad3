"""Labels that a caller gives units of collated batches, or rows of a dataset: which of them are in one group.

Not here: groups of a configuration's examples (`sample`), and what groups mean for numbers (`statistics`).
"""

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from interference.errors import ScopeError
from interference.measurement.units import Batch, Part, Unit, Workload, of_collated
from mixlora.common.errors import type_of
from mixlora.data.groups import label_of

Labels = Mapping[str, Sequence[Hashable]]


def check_labels(groups: object, batches: Mapping[str, Iterable[Batch]], unit: str) -> dict[str, list[Hashable]]:
    """The labels by task, as `mixlora.data.groups.label_of` has them, if they fit batches that are lists.

    Args:
        groups: {task: a label per unit}.
        batches: {task: collated batches}.
        unit: "example" or "batch".

    Raises:
        ScopeError: if they do not, or a task's units are all in one group.
    """
    given = _by_task(groups, batches, "unit", "batches")
    return {task: _checked(task, list(labels), batches[task], unit) for task, labels in given.items()}


def check_row_labels(groups: object, counts: Mapping[str, int]) -> dict[str, list[Hashable]]:
    """The labels by task, as `mixlora.data.groups.label_of` has them, if they fit the rows of a dataset.

    Args:
        groups: {task: a label per row}.
        counts: {task: its rows}.

    Raises:
        ScopeError: if they do not, or a task's rows are all in one group.
    """
    found = {}
    for task, labels in _by_task(groups, counts, "row", "rows").items():
        found[task] = _values(task, list(labels), "rows")
        if len(labels) != counts[task]:
            raise ScopeError(
                f"groups of task {task!r} has {len(labels)} labels, but its dataset has {counts[task]} rows; give a "
                "label for every row of the task, in the dataset's order"
            )
    return found


def _by_task(groups: object, known: Collection[str], unit: str, what: str) -> Labels:
    """The groups, which are lists of labels by task."""
    if not isinstance(groups, Mapping):
        raise ScopeError(
            f"groups is {type_of(groups)}, but must be a dict {{task: a label for every {unit}}}, or left out "
            "where all are independent"
        )
    if missing := [task for task in known if task not in groups]:
        raise ScopeError(f"groups has no task {missing[0]!r}: give its {unit}s labels, or leave groups out altogether")
    if unknown := [task for task in groups if task not in known]:
        raise ScopeError(f"groups has a task {unknown[0]!r}, which has no {what}; leave it out")
    for task, labels in groups.items():
        if isinstance(labels, str) or not isinstance(labels, Iterable) or not hasattr(labels, "__len__"):
            raise ScopeError(
                f"groups of task {task!r} is {type_of(labels)}, but must be a list: a label for every {unit}"
            )
    return groups


def workload(model: nn.Module, batches: Mapping[str, Iterable[Batch]], unit: str, groups: object = None) -> Workload:
    """The parts of batches that the caller collated, their units with the groups that labels name, if there are any.

    Args:
        model: its device is where the batches go.
        batches: {task: collated batches}.
        unit: "example" or "batch".
        groups: {task: a label per unit}; None where all are independent.

    Raises:
        ScopeError: as `units.of_collated` and `check_labels`.
        CheckpointError: if not all of the model's weights are in memory.
    """
    parts: Iterable[Part] = of_collated(model, batches, unit)
    if groups is not None:
        parts = labelled(parts, check_labels(groups, batches, unit))
    return Workload(parts, batches)


def labelled(parts: Iterable[Part], groups: Labels) -> Iterator[Part]:
    """The parts, their units with the groups that labels name.

    Raises:
        ScopeError: as soon as a task has more units than labels; at the end, if one has fewer.
    """
    codes: dict[Hashable, int] = {}
    numbers = {task: [codes.setdefault(label, len(codes)) for label in labels] for task, labels in groups.items()}
    seen = Counter[str]()
    for part in parts:
        yield replace(part, units=[_with_group(unit, numbers[unit.task], seen) for unit in part.units])
    for task, own in numbers.items():
        _check_count(task, len(own), seen[task])


def _with_group(unit: Unit, numbers: Sequence[int], seen: Counter[str]) -> Unit:
    """The next unit of its task with its group."""
    seen[unit.task] += 1
    if seen[unit.task] > len(numbers):
        raise ScopeError(_unlike(unit.task, len(numbers), "more units"))
    return replace(unit, group=numbers[seen[unit.task] - 1])


def _checked(task: str, labels: Sequence[object], batches: Iterable[Batch], unit: str) -> list[Hashable]:
    found = _values(task, labels, "units")
    if isinstance(batches, DataLoader) and not isinstance(batches.dataset, IterableDataset):
        _refuse_shuffled(task, batches)
        if batches.batch_size is not None and not batches.drop_last:  # else its dataset may hold whole batches
            rows: Any = batches.dataset
            _check_count(task, len(labels), len(rows) if unit == "example" else len(batches))
    if isinstance(batches, Sequence) and all(isinstance(batch, Mapping) and "labels" in batch for batch in batches):
        _check_count(task, len(labels), sum(len(each["labels"]) if unit == "example" else 1 for each in batches))
    return found


def _refuse_shuffled(task: str, batches: "DataLoader[Any]") -> None:
    """Raise a ScopeError if the examples come in another order each time, so that labels in order are of others."""
    if not (
        isinstance(batches.sampler, SequentialSampler) and type(batches.batch_sampler) in (BatchSampler, type(None))
    ):
        raise ScopeError(
            f"the batches of task {task!r} come from a DataLoader that shuffles, so `groups` cannot say which "
            "example a label belongs to; give shuffle=False, or a list of batches"
        )


def _values(task: str, labels: Sequence[object], what: str) -> list[Hashable]:
    found: list[Hashable] = []
    for place, label in enumerate(labels):
        try:
            own = label_of(label)
        except TypeError as error:
            raise ScopeError(
                f"groups of task {task!r} has the label {label!r:.60}, {error}; use text or numbers"
            ) from None
        if own is None or (isinstance(own, tuple) and None in own):
            raise ScopeError(
                f"groups of task {task!r} has no label at position {place}: {label!r:.60} is a missing value; give one "
                "of its own where it is independent"
            )
        found.append(own)
    if len(found) > 1 and len(set(found)) < 2:
        raise ScopeError(
            f"groups of task {task!r} puts all its {len(labels)} {what} into 1 group, but at least 2 are needed: give "
            "it examples that share nothing with these, or labels of their own if they are independent"
        )
    return found


def _check_count(task: str, labels: int, units: int) -> None:
    if labels != units:
        raise ScopeError(_unlike(task, labels, f"{units} units"))


def _unlike(task: str, labels: int, units: str) -> str:
    return (
        f"groups of task {task!r} has {labels} labels, but its batches have {units}; give a label for every "
        "example, or for every batch where unit is 'batch'"
    )
