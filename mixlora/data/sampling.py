"""Sampling a task's examples: a seeded draw that does not depend on the order of a file."""

import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeVar

from mixlora.common.errors import DataError


class Named(Protocol):
    """What can be drawn: it has an id."""

    @property
    def id(self) -> str:
        """Its own among all of its task."""


T = TypeVar("T", bound=Named)


def sample(examples: Sequence[T], count: int, seed: int, task: str) -> list[T]:
    """`count` examples drawn without replacement, in the order of the draw; all of them if there are fewer.

    Examples are ordered by a hash of (seed, task, id). So reordering a file changes nothing, a larger `count` extends a
    smaller one, and a record added to the file displaces at most one other.

    Raises:
        DataError: `count` is below 1.
    """
    if count < 1:
        raise DataError(f"Task {task}: {count} examples were asked for; ask for at least 1.")
    return sorted(examples, key=lambda example: (place(example.id, task, seed), example.id))[:count]


def place(example_id: str, task: str, seed: int) -> bytes:
    """A uniform 256-bit number; the length in it distinguishes ("ab", "c") from ("a", "bc")."""
    return hashlib.sha256(f"{seed}:{len(task)}:{task}:{example_id}".encode()).digest()
