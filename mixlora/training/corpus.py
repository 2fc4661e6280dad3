"""The corpus of a training: the examples of a configuration's tasks, all checked before any model is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch.utils.data import Dataset

from mixlora.common.errors import ConfigError, DataError
from mixlora.common.progress import Progress
from mixlora.data import described
from mixlora.data.checking import as_error, check
from mixlora.data.collation import Collator
from mixlora.data.examples import Example
from mixlora.data.reading.problems import Noted
from mixlora.data.sources import examples_of
from mixlora.training.config import TrainTask


@dataclass(frozen=True)
class Corpus(Dataset[Example]):
    """Examples to train on, in the order of their tasks.

    Attributes:
        examples: the examples.
        lengths: the tokens of each.
        weights: {task: share of an epoch, relative to the others'}; empty if each example comes once an epoch.
        noted: the chat template, and for each task what of its data is used, cut and left out.
    """

    examples: Sequence[Example]
    lengths: Sequence[int]
    weights: Mapping[str, float]
    noted: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, position: int) -> Example:
        return self.examples[position]

    @cached_property
    def tasks(self) -> list[str]:
        """The task of each example."""
        return [example.task for example in self.examples]

    @property
    def told(self) -> list[str]:
        """What a reader should know of the data, in clauses."""
        return list(described.sentences(self.noted))

    @property
    def mixed(self) -> bool:
        """Whether some examples have a picture and others none."""
        return len({example.has_image for example in self.examples}) > 1

    def only(self, task: str) -> "Corpus":
        """The examples of one task, each once an epoch."""
        places = [k for k, own in enumerate(self.tasks) if own == task]
        noted = {**self.noted, "tasks": {task: self.noted["tasks"][task]}}
        return Corpus([self.examples[k] for k in places], [self.lengths[k] for k in places], {}, noted)


def gather(tasks: Mapping[str, TrainTask], collator: Collator, seed: int, decode: bool, progress: Progress) -> Corpus:
    """The corpus of all tasks, each example checked: rendered, encoded, its picture decoded.

    Args:
        tasks: by name.
        collator: collator of the model.
        seed: seed of tasks' samples.
        decode: whether to decode pictures; their headers are read in any case.
        progress: called after each example.

    Raises:
        DataError: some examples cannot be used; it describes the first twenty problems. Or a task has none.
        ConfigError: two entries give tasks of one name.
    """
    problems: list[DataError] = []
    examples: list[Example] = []
    weights: dict[str, float] = {}
    weighted = any(task.weight is not None for task in tasks.values())
    known: dict[str, str] = {}
    noting: dict[str, Noted] = {}
    skipping: dict[str, Noted] = {}
    for name, task in tasks.items():
        own_notes = Noted()
        found = examples_of(name, task, task.samples, seed, problems, own_notes)
        noting |= dict.fromkeys(found, own_notes)
        skipping |= dict.fromkeys(found, own_notes) if task.on_error == "skip" else {}
        if twice := [own for own in found if own in known]:
            raise ConfigError(
                f"tasks: {twice[0]!r} comes from {known[twice[0]]!r} and from {name!r}; give every task a name of its "
                "own"
            )
        known |= dict.fromkeys(found, name)
        if weighted:
            weights |= {own: (task.weight or 1) / len(found) for own in found}
        examples += [example for own in found.values() for example in own]
    checked = check(
        examples, collator, problems, decode, None, lambda done, total: progress("data", done, total), skipping
    )
    if problems:
        raise as_error(problems)
    if lost := set(known) - {example.task for example in checked.examples}:
        raise DataError(f"task {min(lost)!r} has no usable record; correct its data, or leave it out")
    by_task = described.by_task(checked.examples)
    records = {
        task: described.of_task(own, checked.cut[task], noting[task], checked.marked[task])
        for task, own in by_task.items()
    }
    noted = {"template": collator.template.json(), "tasks": records}
    return Corpus(checked.examples, checked.lengths, weights, noted)
