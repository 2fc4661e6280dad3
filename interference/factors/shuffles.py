"""Shuffles of labels that respect groups, for the level of chance of numbers about examples. Pure functions."""

import numpy as np
from numpy.typing import NDArray

from interference.statistics.groups import Codes


def alone(groups: Codes | None) -> bool:
    """Whether no two examples share a group."""
    return groups is None or len(np.unique(groups)) == len(groups)


def orders(count: int, groups: Codes | None, rows: int, random: np.random.Generator) -> NDArray[np.intp]:
    """Random orders [rows, count]: `labels[order]` are labels that have nothing to do with the examples.

    Without groups all orders are as likely. With groups the labels are dealt in rows: the groups are put into a random
    order, their labels into another one, and each group takes as many labels as it has examples. How often a label
    occurs stays, and labels of one group stay together. Where all groups have one size, they go to another group, and
    tests are exact; where sizes differ they are cut, and a test at 5% errs in 3 to 10% (not by groups: in up to 90%).

    Args:
        count: of the examples.
        groups: [count], of the examples; None if they are independent.
        rows: number of orders.
        random: where they are drawn.
    """
    if groups is None or alone(groups):
        return random.permuted(np.tile(np.arange(count), (rows, 1)), axis=1)
    _, group = np.unique(groups, return_inverse=True)
    found = np.empty((rows, count), np.intp)
    for row in found:
        taking, giving = (_by_group(group, random) for _ in range(2))
        row[taking] = giving
    return found


def _by_group(group: Codes, random: np.random.Generator) -> NDArray[np.intp]:
    """The examples, groups in a random order, and each group's in a random order."""
    place = random.permutation(group.max() + 1)
    return np.lexsort((random.random(len(group)), place[group]))
