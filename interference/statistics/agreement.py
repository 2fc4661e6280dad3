"""Agreement: how alike two matrices rank pairs of tasks, over all pairs and within the rows of affected tasks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from interference.statistics.layout import Array

LEAST = 3
"""Pairs that a rank correlation is of, at least: of two it is 1 or -1 whatever they are."""


@dataclass(frozen=True)
class Agreement:
    """Spearman's correlation of two matrices of the same tasks; the diagonal does not count.

    Attributes:
        overall: over all pairs; NaN where there are fewer than `LEAST`, or one matrix has one value throughout.
        within: mean of the correlations within rows that have one; NaN where none has.
        rows: rows that have one.
        pairs: pairs that both matrices have a number for.
    """

    overall: float
    within: float
    rows: int
    pairs: int


def agreement(first: Array, second: Array) -> Agreement:
    """How alike two matrices [tasks i, tasks j] rank pairs of tasks.

    Example:
        >>> import numpy as np
        >>> one = np.array([[1, 0.5, -0.2, 0.1], [0.3, 1, 0.2, 0.1], [0.0, 0.4, 1, -0.5], [0.1, 0.2, 0.3, 1]])
        >>> agreement(one, one).within
        1.0
    """
    counted = ~np.eye(len(first), dtype=bool) & np.isfinite(first) & np.isfinite(second)
    found = [_spearman(a[own], b[own]) for a, b, own in zip(first, second, counted, strict=True)]
    known = [value for value in found if np.isfinite(value)]
    overall = _spearman(first[counted], second[counted])
    return Agreement(overall, float(np.mean(known)) if known else np.nan, len(known), int(counted.sum()))


def _spearman(first: Array, second: Array) -> float:
    if len(first) < LEAST or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(stats.spearmanr(first, second).statistic)
