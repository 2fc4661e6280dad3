"""Affinity: whether tasks that are thought alike select alike. Pairs of a seen and an unseen task; on arrays alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from math import factorial

import numpy as np
import pandas as pd

from interference.errors import ScopeError
from interference.factors.selections import PERMUTATIONS, Selections, overlap

_ROUNDING = 1e-12  # means that differ by less are equal


@dataclass(frozen=True)
class Pairing:
    """How much the two tasks of every pair share, beside tasks that are not paired.

    Attributes:
        pairs: (seen, unseen).
        overlap: [seen, unseen] in the pairs' order, so that pairs are its diagonal; see `selections.overlap`.
        mean: of the pairs' overlaps.
        others: mean overlap of a seen and an unseen task that are no pair; NaN of one pair.
        at_least: of the pairings tried, how many have as high a mean.
        tried: ways to pair the same seen with the same unseen tasks: all, the one asked about among them, or as many
            random ones.
        exact: whether all were tried.
        p: chance of as high a mean if who is paired with whom had nothing to do with selections; with n pairs no less
            than 1 / n!.
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
    """The overlap of the two tasks of each pair, and whether other pairings of the same tasks would have as much.

    Args:
        selections: of examples of all these tasks, and maybe others.
        pairs: (seen, unseen).
        seed: of the random pairings that are tried where there are too many for all.

    Raises:
        ScopeError: if there is no pair, a task is not there, or is in two pairs.
    """
    check_pairs(pairs, selections.names)
    seen, unseen = (list(tasks) for tasks in zip(*pairs, strict=True))
    matrix = overlap(selections).loc[seen, unseen]
    values, count = matrix.to_numpy(), len(pairs)
    exact, random = factorial(count) <= PERMUTATIONS, np.random.default_rng(seed)
    orders = permutations(range(count)) if exact else (random.permutation(count) for _ in range(PERMUTATIONS))
    means = np.array([values[np.arange(count), list(order)].mean() for order in orders])
    mean = float(np.diagonal(values).mean())
    others = float(values[~np.eye(count, dtype=bool)].mean()) if count > 1 else float("nan")
    at_least = int((means >= mean - _ROUNDING).sum())
    p = at_least / len(means) if exact else (1 + at_least) / (1 + len(means))
    return Pairing(tuple(pairs), matrix, mean, others, at_least, len(means), exact, p)


def check_pairs(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> None:
    """Raise a ScopeError if there is no pair, a task is not among `names`, or is in two pairs or a pair with itself."""
    tasks = [task for pair in pairs for task in pair]
    if not tasks:
        raise ScopeError("there is no pair; give at least one seen and one unseen task")
    for place, task in enumerate(tasks):
        if task not in names:
            raise ScopeError(f"task {task!r} of a pair is not among the tasks: {', '.join(names)}")
        if task in tasks[:place]:
            raise ScopeError(f"task {task!r} is paired twice; a task can be in one pair, with another task")
