"""Affinity: whether tasks that are paired as similar select alike. A pair is a seen and an unseen task.

On arrays alone: no model is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from math import factorial

import numpy as np
import pandas as pd

from interference.errors import MeasurementError, ScopeError
from interference.factors.selections import PERMUTATIONS, Selections, overlap

_ROUNDING = 1e-12
"""Means that differ by less are equal."""


@dataclass(frozen=True)
class Pairing:
    """How much the two tasks of a pair share, compared with tasks that are not paired.

    Attributes:
        pairs: (seen, unseen).
        overlap: [seen, unseen] in the pairs' order: the diagonal holds the pairs; see `selections.overlap`, which
            compares examples of different groups alone.
        mean: mean of the pairs' overlaps.
        others: mean overlap of a seen and an unseen task that are not a pair; NaN for a single pair.
        at_least: number of tried pairings whose mean is at least as high.
        tried: number of ways that were tried to pair the same seen with the same unseen tasks: all of them, the given
            one included, or PERMUTATIONS random ones.
        exact: whether all were tried.
        p: probability of a mean as high if pairs had nothing to do with selections; at least 1 / n! with n pairs.
    """

    pairs: tuple[tuple[str, str], ...]
    overlap: pd.DataFrame
    mean: float
    others: float
    at_least: int
    tried: int
    exact: bool
    p: float


def paired(selections: Selections, pairs: Sequence[tuple[str, str]], seed: int = 0) -> Pairing:
    """The overlap of the two tasks of each pair, and how it compares with other pairings of the same tasks.

    Args:
        selections: of examples of all these tasks, and maybe others.
        pairs: (seen, unseen).
        seed: seed of the random pairings that are tried if there are too many to try all.

    Raises:
        ScopeError: if there is no pair, or a task is missing or in two pairs.
        MeasurementError: if all examples of a seen and an unseen task are of one group.
    """
    check_pairs(pairs, selections.names)
    seen, unseen = (list(tasks) for tasks in zip(*pairs, strict=True))
    matrix = overlap(selections).loc[seen, unseen]
    values, count = matrix.to_numpy(), len(pairs)
    if np.isnan(values).any():
        row, column = np.argwhere(np.isnan(values))[0]
        raise MeasurementError(
            f"all examples of {seen[row]!r} and {unseen[column]!r} belong to one group, so what the tasks "
            "share cannot be measured; give them examples of other groups"
        )
    exact, random = factorial(count) <= PERMUTATIONS, np.random.default_rng(seed)
    orders = permutations(range(count)) if exact else (random.permutation(count) for _ in range(PERMUTATIONS))
    means = np.array([values[np.arange(count), list(order)].mean() for order in orders])
    mean = float(np.diagonal(values).mean())
    others = float(values[~np.eye(count, dtype=bool)].mean()) if count > 1 else float("nan")
    at_least = int((means >= mean - _ROUNDING).sum())
    p = at_least / len(means) if exact else (1 + at_least) / (1 + len(means))
    return Pairing(tuple(pairs), matrix, mean, others, at_least, len(means), exact, p)


def check_pairs(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> None:
    """Raise a ScopeError if there is no pair, or a task is missing from `names`, in two pairs or paired with itself."""
    tasks = [task for pair in pairs for task in pair]
    if not tasks:
        raise ScopeError("there is no pair; give at least one seen and one unseen task")
    for place, task in enumerate(tasks):
        if task not in names:
            raise ScopeError(f"task {task!r} of a pair is not among the tasks: {', '.join(names)}")
        if task in tasks[:place]:
            raise ScopeError(f"task {task!r} is paired twice; a task can be in one pair, with another task")
