"""Shards: which share of a measurement is this process's, and what the processes that share it do together."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from mixlora.common import processes

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """This process's share of the work: every `count`-th part, starting at `rank`.

    The count of the shard says how many processes take part. It is not the number of processes there are: one process
    may measure while others train (the callback).
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def of_processes(cls, device: str) -> "Shard":
        """The share of this process among all there are, once they have found each other.

        Args:
            device: the kind of their devices, "cpu" or "cuda".
        """
        shard = cls(processes.rank(), processes.count())
        if shard.count > 1:
            processes.meet(device, processes.PATIENCE)
        return shard

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports what all have measured."""
        return self.rank == 0

    def owns(self, part: int) -> bool:
        """Whether a part is this process's."""
        return part % self.count == self.rank

    def share(self, rows: int) -> slice:
        """This process's share of `rows` rows: neighbours, each row in exactly one process's share."""
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def together(self) -> AbstractContextManager[None]:
        """Wait until all processes have left the block; re-raise any process's error in all."""
        return processes.together() if self.count > 1 else nullcontext()

    def first_then_others(self, work: Callable[[], T]) -> T:
        """What `work` returns here. The first process finishes it before the others start."""
        found: list[T] = []
        for turn in (True, False):
            with self.together():
                if turn is self.first:
                    found.append(work())
        return found[0]

    def gathered(self, value: Any) -> list[Any]:
        """The value of every process, by rank."""
        return processes.gathered(value) if self.count > 1 else [value]

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor on the CPU, in place."""
        return processes.total(values) if self.count > 1 else values


ALL = Shard()
