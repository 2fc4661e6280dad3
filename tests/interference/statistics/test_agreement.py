"""Agreement of two matrices: rank correlations by hand, and where there is none."""

import numpy as np
import pytest
from scipy import stats

from interference.statistics.agreement import agreement

FIRST = np.array([[9, 1, 2, 3], [1, 9, 2, 3], [1, 2, 9, 3], [4, 5, 6, 9.0]])


def test_by_hand():
    second = FIRST.copy()
    second[0] = [0, 3, 2, 1]  # turned round
    second[1] = [1, 0, 3, 2]  # two of three swapped: 1 - 6 * 2 / 24
    found = agreement(FIRST, second)
    assert (found.within, found.rows, found.pairs) == (pytest.approx((-1 + 0.5 + 1 + 1) / 4), 4, 12)
    off = ~np.eye(4, dtype=bool)
    assert found.overall == pytest.approx(stats.spearmanr(FIRST[off], second[off]).statistic)


def test_the_diagonal_and_the_scale_do_not_count():
    second = np.exp(3 * FIRST)
    np.fill_diagonal(second, -1e9)
    found = agreement(FIRST, second)
    assert found.overall == pytest.approx(1) and found.within == pytest.approx(1)


def test_what_is_no_number_is_left_out():
    second = FIRST.copy()
    second[3] = np.nan
    second[0, 1] = np.nan
    found = agreement(FIRST, second)
    assert (found.rows, found.pairs) == (2, 8)


def test_two_tasks_have_none():
    found = agreement(FIRST[:2, :2], FIRST[:2, :2])
    assert np.isnan(found.overall) and np.isnan(found.within) and found.pairs == 2
    assert np.isnan(agreement(np.ones((4, 4)), FIRST).overall)
