"""Whether pairs of tasks share more than others would: closed forms by hand."""

import math

import pytest

from interference.factors import affinity
from tests.support.selections import chosen


def test_pairing_by_hand():
    given = chosen("ppssqquu", [[0, 1]] * 4 + [[2, 3]] * 4)
    right, wrong = (affinity.paired(given, pairs) for pairs in ([("p", "s"), ("q", "u")], [("p", "u"), ("q", "s")]))
    assert (right.mean, right.others) == pytest.approx((1, 0))
    assert (right.at_least, right.tried, right.exact, right.p) == (1, 2, True, 0.5)
    assert (wrong.mean, wrong.others) == pytest.approx((0, 1)) and (wrong.at_least, wrong.p) == (2, 1)
    one = affinity.paired(given, [("p", "s")])
    assert (one.mean, one.p, one.tried) == pytest.approx((1, 1, 1)) and math.isnan(one.others)


def test_many_pairs_are_tried_at_random():
    tasks = [task for task in "abcdefgABCDEFG" for _ in range(2)]
    given = chosen(tasks, [["abcdefg".index(task.lower())] for task in tasks], factors=7)
    found = affinity.paired(given, [(task, task.upper()) for task in "abcdefg"])
    assert (found.mean, found.others) == pytest.approx((1, 0)) and (found.exact, found.tried) == (False, 1000)
    assert found.p == (1 + found.at_least) / 1001 and found.at_least <= 3  # one in 5040 is the right one
