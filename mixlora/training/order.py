"""The order of examples: which ones an epoch takes, and which share a batch.

An epoch is a whole number of batches. The last one is filled with examples drawn again, so that every step has the same
number of examples, however many processes share it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from mixlora.common.errors import ConfigError
from mixlora.training.config import Order
from mixlora.training.corpus import Corpus

MEGABATCH = 50
"""Batches among which examples are sorted by length; with fewer, batches are more random."""


class Epochs(Sampler[int]):
    """The order of each epoch, the same for the same seed and epoch in every process.

    Raises:
        ConfigError: a batch has more examples than the corpus, or cannot be balanced.
    """

    def __init__(self, corpus: Corpus, order: Order | str, batch_size: int, seed: int) -> None:
        if batch_size > len(corpus.tasks):
            raise ConfigError(
                f"training.batch_size is {batch_size}, but there are only {len(corpus.tasks)} examples; choose a "
                "smaller one"
            )
        self.corpus = corpus
        self.order = Order(order)
        if self.order is Order.BALANCED:
            _check_balance(corpus, batch_size)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self._length = len(self._positions(0))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return iter(self._positions(self.epoch))

    def taken(self, batches: int) -> dict[str, int]:
        """The number of examples of each task in the first `batches` batches of a training."""
        counts = dict.fromkeys(self.corpus.tasks, 0)
        left, epoch = batches * self.batch_size, 0
        while left > 0:
            positions = self._positions(epoch)[:left]
            for position in positions:
                counts[self.corpus.tasks[position]] += 1
            left, epoch = left - len(positions), epoch + 1
        return counts

    def _positions(self, epoch: int) -> list[int]:
        rng = np.random.default_rng([self.seed, epoch])
        if self.order is Order.BALANCED:
            return self._balanced(rng)
        drawn = [draw(rng, of_task, count) for of_task, count in self._shares()]
        if self.order is Order.TASK:
            batches = [batch for own in drawn for batch in self._batches(rng, own)]
        else:
            together = rng.permutation(np.concatenate(drawn))
            batches = self._batches(rng, together)
            if self.order is Order.LENGTH:
                batches = self._by_length(np.concatenate(batches))
        if self.order is not Order.SHUFFLED:
            batches = [batches[k] for k in rng.permutation(len(batches))]
        return [int(position) for batch in batches for position in batch]

    def _balanced(self, rng: np.random.Generator) -> list[int]:
        """As many batches as other orders have, task by task within each: few forward passes mix tasks."""
        of_tasks = self._of_tasks()
        batches, each = -(-len(self.corpus) // self.batch_size), self.batch_size // len(of_tasks)
        drawn = [draw(rng, own, batches * each).reshape(batches, each) for own in of_tasks]
        return [int(position) for position in np.concatenate(drawn, axis=1).flat]

    def _of_tasks(self) -> list[np.ndarray]:
        """The positions of each task's examples."""
        tasks = np.asarray(self.corpus.tasks, dtype=object)
        return [np.flatnonzero(tasks == task) for task in dict.fromkeys(self.corpus.tasks)]

    def _shares(self) -> list[tuple[np.ndarray, int]]:
        """The positions of each task's examples, and how many of them an epoch takes."""
        of_tasks = self._of_tasks()
        if not self.corpus.weights:
            return [(own, len(own)) for own in of_tasks]
        weights = [self.corpus.weights[task] for task in dict.fromkeys(self.corpus.tasks)]
        return list(zip(of_tasks, apportioned(len(self.corpus), weights), strict=True))

    def _batches(self, rng: np.random.Generator, positions: np.ndarray) -> list[np.ndarray]:
        """Whole batches, the last one filled by drawing from the same examples again."""
        missing = -len(positions) % self.batch_size
        filled = np.concatenate([positions, draw(rng, np.unique(positions), missing)])
        return list(filled.reshape(-1, self.batch_size))

    def _by_length(self, positions: np.ndarray) -> list[np.ndarray]:
        lengths, size = np.asarray(self.corpus.lengths), MEGABATCH * self.batch_size
        megas = [positions[start : start + size] for start in range(0, len(positions), size)]
        ordered = [mega[np.argsort(-lengths[mega], kind="stable")] for mega in megas]
        return [batch for mega in ordered for batch in mega.reshape(-1, self.batch_size)]


def _check_balance(corpus: Corpus, batch_size: int) -> None:
    tasks = len(set(corpus.tasks))
    if batch_size % tasks:
        raise ConfigError(
            f"training.order is balanced, but batch_size {batch_size} is not a multiple of {tasks}, the number of "
            "tasks; choose one that is"
        )
    if corpus.weights:
        raise ConfigError(
            "training.order is balanced: a step takes equally many examples of every task, whatever their weight; "
            "leave the weight of tasks out, or choose another order"
        )


def draw(rng: np.random.Generator, positions: np.ndarray, count: int) -> np.ndarray:
    """`count` of the positions in random order; none is repeated before all have been drawn."""
    whole, rest = divmod(count, max(len(positions), 1))
    return np.concatenate([*(rng.permutation(positions) for _ in range(whole)), rng.permutation(positions)[:rest]])


def apportioned(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `total` in proportion to the weights, by largest remainder."""
    exact = np.asarray(weights, dtype=float) * total / sum(weights)
    counts = np.floor(exact).astype(int)
    for k in np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]:
        counts[k] += 1
    return [int(count) for count in counts]
