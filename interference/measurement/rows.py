"""Rows: what is drawn from a trainer's datasets, each with the collator that the trainer would give it to."""

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from transformers import Trainer

from interference.errors import ScopeError
from interference.measurement.labels import Labels, check_row_labels
from mixlora.data.sampling import sample


@dataclass(frozen=True)
class Source:
    """A dataset of a trainer.

    Attributes:
        name: what messages call it.
        rows: the dataset, without the columns that the trainer removes.
        collate: what makes a batch of rows.
        lengths: tokens of a row by its number, where the dataset tells without reading the whole row.
        records: the dataset with all of its columns, as it was given and as it was prepared.
    """

    name: str
    rows: Any
    collate: Callable[[list[Any]], Mapping[str, Any]]
    lengths: Callable[[int], int]
    records: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row of a task.

    Attributes:
        task: its task.
        id: its number in the dataset.
        source_of: the dataset.
        length: tokens, as far as known.
        label: the caller's, which says what group it is of.
    """

    task: str
    id: str
    source_of: Source = field(repr=False)
    label: Hashable = None

    @property
    def source(self) -> str:
        """What messages call it."""
        return f"{self.source_of.name}, row {self.id} (task {self.task!r})"

    @property
    def length(self) -> int:
        """Tokens, 0 where the dataset does not tell."""
        return self.source_of.lengths(int(self.id))

    def record(self) -> dict[str, Any]:
        """The row with all columns of its dataset, before and after it was prepared; empty if it is not a mapping."""
        found: dict[str, Any] = {}
        for records in self.source_of.records:
            one = records.with_format(None)[int(self.id)] if hasattr(records, "with_format") else records[int(self.id)]
            found |= one if isinstance(one, Mapping) else {}
        return found

    def item(self) -> Any:
        """The row as the collator takes it, which may change it."""
        return copy.deepcopy(self.source_of.rows[int(self.id)])


def drawn(
    trainer: Trainer,
    by: str | Mapping[str, Any],
    samples: int,
    seed: int,
    split: str,
    labels: Labels | None = None,
) -> list[Row]:
    """`samples` rows of every task, drawn with a seed, in the order of the tasks' first appearance.

    Args:
        trainer: whose datasets they are of.
        by: the column of the tasks, or their datasets.
        samples: rows of a task.
        seed: seed of the draw.
        split: "train" or "eval".
        labels: {task: a label for every row of it, in the dataset's order}, which rows then have.

    Raises:
        ScopeError: if the dataset is missing, packed or cannot be drawn from, has no such column, a task has fewer
            than two rows, or the labels are not one a row.
    """
    if samples < 2:
        raise ScopeError(f"samples={samples} is too few: a task needs at least 2 rows")
    if split not in ("train", "eval"):
        raise ScopeError(f"split {split!r} is not one of train, eval")
    rows = _of_datasets(trainer, by) if isinstance(by, Mapping) else _of_column(trainer, by, split)
    if not rows:
        raise ScopeError("there is nothing to measure: no task was given")
    for task, found in rows.items():
        if len(found) < 2:
            raise ScopeError(f"task {task!r} has {len(found)} rows; at least 2 are needed: give it more examples")
    if labels is not None:
        known = check_row_labels(labels, {task: len(found) for task, found in rows.items()})
        rows = {
            task: [replace(row, label=label) for row, label in zip(found, known[task], strict=True)]
            for task, found in rows.items()
        }
    return [row for task, found in rows.items() for row in sample(found, samples, seed, task)]


def _of_datasets(trainer: Trainer, by: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows of datasets given by task, prepared as the trainer prepares its own."""
    found = {}
    for task, dataset in by.items():
        name = f"the dataset of task {task!r}"
        _check(dataset, name)
        prepared = _as_trained(trainer, dataset, str(task))
        source = _source(trainer, prepared, name)
        if len(prepared) == len(dataset):
            source = replace(source, records=(dataset, *source.records))
        found[str(task)] = [Row(str(task), str(k), source) for k in range(len(source.rows))]
    return found


def _of_column(trainer: Trainer, by: str, split: str) -> dict[str, list[Row]]:
    """The rows of the trainer's own dataset, by the value of a column."""
    name = f"{split}_dataset"
    dataset = getattr(trainer, name)
    if dataset is None:
        raise ScopeError(f"the trainer has no {name}; give it one, or name the tasks' own: by={{task: dataset}}")
    packing, eval_packing = (getattr(trainer.args, key, None) for key in ("packing", "eval_packing"))  # TRL's
    if eval_packing if split == "eval" and eval_packing is not None else packing:
        raise ScopeError(
            f"the trainer packs several examples into a row of its {name}, whose gradients cannot be told apart; "
            "make it with packing=False to measure"
        )
    if isinstance(dataset, Mapping):
        raise ScopeError(f"{name} is a dict of datasets; pass it as the tasks: by=trainer.{name}")
    _check(dataset, f"the trainer's {name}")
    source = _source(trainer, dataset, name)
    found: dict[str, list[Row]] = {}
    for place, value in enumerate(_column(dataset, by, name)):
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ScopeError(f"{name}, row {place}: {by} is {value!r:.60}, but must be the name of a task")
        found.setdefault(str(value), []).append(Row(str(value), str(place), source))
    return found


def _column(dataset: Any, by: str, name: str) -> Sequence[Any]:
    """The values of a column."""
    columns: Sequence[Any] | None = getattr(dataset, "column_names", None)
    if columns is not None and by in columns:
        values: Sequence[Any] = dataset.with_format(None)[by]
        return values
    if columns is None:
        items = [dataset[k] for k in range(len(dataset))]
        if all(isinstance(item, Mapping) and by in item for item in items):
            return [item[by] for item in items]
        columns = list(items[0]) if items and isinstance(items[0], Mapping) else []
    raise ScopeError(
        f"the trainer's {name} does not have the column {by!r} in every row, but "
        f"{', '.join(map(str, columns)) or 'none'}; name "
        "the column of the tasks (by=), or give their datasets: by={task: dataset}"
    )


def _check(dataset: Any, name: str) -> None:
    if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__len__"):
        raise ScopeError(
            f"{name} is of {type(dataset).__name__}, an iterable without row numbers; give a datasets.Dataset or a list"
        )


def _as_trained(trainer: Trainer, dataset: Any, task: str) -> Any:
    """A dataset as a trainer of TRL prepares one that it trains on; as it is for other trainers."""
    prepare = getattr(trainer, "_prepare_dataset", None)
    if prepare is None or getattr(trainer, "_skip_prepare_dataset", False):
        return dataset
    if isinstance(dataset, list):
        from datasets import Dataset

        dataset = Dataset.from_list(dataset)
    formatting = getattr(trainer, "_formatting_func", None)
    return prepare(dataset, trainer.processing_class, trainer.args, False, formatting, task)


def _source(trainer: Trainer, dataset: Any, name: str) -> Source:
    """The dataset with the collator, as the trainer's own data loader puts them together."""
    if hasattr(dataset, "column_names") and hasattr(dataset, "remove_columns"):
        rows, collate = trainer._remove_unused_columns(dataset), trainer.data_collator
        tokens = dataset.with_format(None) if "input_ids" in rows.column_names else None
        return Source(name, rows, collate, partial(_tokens, tokens), (dataset,))
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator)
    return Source(name, dataset, collate, lambda place: _length(dataset[place]), (dataset,))


def _tokens(rows: Any, place: int) -> int:
    """Tokens of a row; 0 where its dataset does not tell."""
    return 0 if rows is None else len(rows[place]["input_ids"])


def _length(row: Any) -> int:
    tokens = row.get("input_ids") if isinstance(row, Mapping) else None
    return 0 if tokens is None else len(tokens)
