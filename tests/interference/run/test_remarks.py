"""What terminal, page and notebook warn of: thresholds, the tasks beyond them, and the clauses about these."""

import pandas as pd

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


def test_other_parameters_of_the_adapter_are_named():
    assert remarks.also_trained("biases") == "the adapter also trains biases, which is not part of theta"


def table_of(*cells):
    """The columns of a table that `opposed` and `shown_verdicts` read."""
    return pd.DataFrame(cells, columns=["verdict", "at_odds"])


def test_cells_without_a_verdict_are_counted_and_told_why():
    table = table_of(("conflict", "sign"), ("synergy", "sign"), ("conflict", "interval"), ("unclear", ""))
    said = (
        "in 2 cells I has the other sign than Delta, and in 1 cell the interval of I contains 0, but that of Delta "
        "excludes 0: no verdict is shown there, because verdicts are about Delta"
    )
    ratios = "units whose own Delta is near 0 dominate a mean of ratios; read the ratio of means"
    assert remarks.opposed(table, reduce="mean-of-ratios") == f"{said}; {ratios}"
    assert remarks.opposed(table) == said
    assert remarks.opposed(table, reduce="median-of-ratios").startswith(f"{said}; a median of ratios weighs all units")
    averaged = remarks.opposed(table, reduce="mean-of-ratios", aggregate="mean")
    assert averaged.startswith(f"{said}; blocks whose own Delta is near 0 dominate a mean of blocks' values")
    assert remarks.opposed(table_of(("conflict", "")), reduce="mean-of-ratios") is None
    other = remarks.opposed(table_of(("conflict", "sign")), "conflict_rate")
    assert other.startswith("in 1 cell conflict_rate lies on the other side of 0.5 than Delta says: no verdict")


def test_a_verdict_that_its_value_does_not_bear_out_is_not_shown():
    table = table_of(("conflict", "sign"), ("synergy", "interval"), ("conflict", ""), ("no-signal", ""))
    assert remarks.shown_verdicts(table).tolist() == ["at-odds", "at-odds", "conflict", "no-signal"]
    assert remarks.shown_verdicts(table.drop(columns="at_odds")).tolist() == table["verdict"].tolist()
