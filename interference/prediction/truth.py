"""Truth: what one task does to another, by training with and without it, and reading the loss of the other.

Two kinds of comparison. Of pairs: task i alone, and with task j. Of all: every task, and every task but j. T_ij is by
how much the loss of i is lower with j than without: above 0, j helped. A training has `share` examples of each of its
tasks in every step, so that i sees the same examples in both.

Not here: the trainings themselves (`branches`), and how well something predicts their outcome (`statistics.ranking`).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from interference.config import Truth

Tasks = tuple[str, ...]
Losses = NDArray[np.float64]


def sets_of(tasks: Sequence[str], kinds: Sequence[Truth]) -> list[Tasks]:
    """The sets of tasks that are trained on, each once, in the order of the tasks.

    Args:
        tasks: all of them.
        kinds: of comparisons.

    Returns:
        The sets; small ones first.
    """
    sizes = []
    if Truth.PAIRS in kinds:
        sizes += [1, 2]
    if Truth.LEAVE_ONE_OUT in kinds:
        sizes += [len(tasks) - 1, len(tasks)]
    return [each for size in sorted(set(sizes)) for each in combinations(tasks, size)]


def gains(losses: Mapping[frozenset[str], Losses], tasks: Sequence[str], of: Sequence[str], kind: Truth) -> Losses:
    """By how much a task's presence in training lowers the loss of every example.

    Args:
        losses: {tasks trained on: [seeds, examples]}, nats per token; of no task, the losses before any step.
        tasks: All of them.
        of: The task of every example.
        kind: Which trainings are compared.

    Returns:
        [seeds, tasks j, examples]. On j's own examples it is what j's presence does to j.
    """
    owner, (seeds, examples) = np.array(of), losses[frozenset()].shape
    found = np.empty((seeds, len(tasks), examples))
    for j, stepped in enumerate(tasks):
        for affected in tasks:
            without, present = _compared(affected, stepped, tasks, kind)
            own = owner == affected
            found[:, j, own] = losses[without][:, own] - losses[present][:, own]
    return found


def _compared(affected: str, stepped: str, tasks: Sequence[str], kind: Truth) -> tuple[frozenset[str], frozenset[str]]:
    """The sets whose trainings are compared: without the stepped task, and with it."""
    whole = frozenset(tasks) if kind == Truth.LEAVE_ONE_OUT else frozenset((affected, stepped))
    return whole - {stepped}, whole
