"""What terminal, page and notebook warn of: thresholds, the tasks beyond them, and the clauses about these."""

import pandas as pd
import pytest

from interference.run import remarks


def test_unstable_tasks_have_more_than_a_share_of_units_without_a_positive_delta():
    table = pd.DataFrame(
        [("a", "b", 0.051), ("a", "c", 0.2), ("b", "a", 0.05), ("c", "c", 0.9), ("c", "a", 0.06)],
        columns=["affected", "stepped", "nonpositive"],
    )
    assert remarks.unstable(table) == ["a", "c"]
    assert remarks.nonpositive("a, c") == "more than 5% of the units of a, c have an own Delta at or below 0"


def test_a_balance_near_zero_from_either_side_is_nearly_stationary():
    signal = pd.DataFrame({"balance": [0.249, -0.249, 0.25, -1, float("nan")]}, index=list("abcde"))
    assert remarks.stationary(signal) == ["a", "b"]
    assert remarks.nearly_stationary("a and b") == "the summed loss is nearly stationary for a and b"


@pytest.mark.parametrize(("units", "there"), [([4, 4], True), ([9, 3], False)])
def test_a_null_needs_four_units_of_every_task(units, there):
    tasks = [task for task, count in zip("ab", units, strict=True) for _ in range(count)]
    assert remarks.has_null(pd.DataFrame({"task": tasks})) is there


def test_other_parameters_of_the_adapter_are_named():
    assert remarks.also_trained("biases") == "the adapter also trains biases, which is not part of theta"
