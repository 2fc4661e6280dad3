"""The corpus: the examples of a configuration's tasks, all looked through before anything is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from mixlora.common.errors import ConfigError, DataError
from mixlora.common.progress import Progress
from mixlora.data.checking import check, report
from mixlora.data.collation import Collator
from mixlora.data.examples import Example
from mixlora.data.sources import examples_of
from mixlora.training.config import TrainTask
from mixlora.training.order import Corpus


@dataclass(frozen=True)
class Examples(Dataset[Example]):
    """Examples to train on, in the order of their tasks."""

    examples: Sequence[Example]
    corpus: Corpus

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, position: int) -> Example:
        return self.examples[position]

    @property
    def mixed(self) -> bool:
        """Whether some have a picture and some have none."""
        return len({example.image is not None for example in self.examples}) > 1

    def only(self, task: str) -> "Examples":
        """Those of one task, each once an epoch."""
        places = [k for k, own in enumerate(self.corpus.tasks) if own == task]
        lengths = [self.corpus.lengths[k] for k in places]
        return Examples([self.examples[k] for k in places], Corpus([task] * len(places), lengths, {}))


def gather(tasks: Mapping[str, TrainTask], collator: Collator, seed: int, decode: bool, progress: Progress) -> Examples:
    """The examples of all tasks, each checked: rendered, encoded, its picture decoded.

    Args:
        tasks: by name.
        collator: of the model.
        seed: of tasks' samples.
        decode: whether pictures are decoded; their headers are read in any case.
        progress: told of every example.

    Raises:
        DataError: all that is wrong with them, the first twenty in words.
        ConfigError: two entries give tasks of one name.
    """
    problems: list[DataError] = []
    examples: list[Example] = []
    weights: dict[str, float] = {}
    weighted = any(task.weight is not None for task in tasks.values())
    known: dict[str, str] = {}
    for name, task in tasks.items():
        found = examples_of(name, task, task.samples, seed, problems)
        if twice := [own for own in found if own in known]:
            raise ConfigError(
                f"tasks: {twice[0]!r} comes from {known[twice[0]]!r} and from {name!r}; give every task a name of its "
                "own"
            )
        known |= dict.fromkeys(found, name)
        if weighted:
            weights |= {own: (task.weight or 1) / len(found) for own in found}
        examples += [example for own in found.values() for example in own]
    checked = check(examples, collator, problems, decode, progress=lambda done, total: progress("data", done, total))
    if problems:
        raise report(problems)
    return Examples(examples, Corpus([example.task for example in examples], checked.lengths, weights))
