"""What terminal, page and notebook warn of: thresholds, the tasks beyond them, and the clauses about these."""

import numpy as np
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


def test_copies_are_told_and_which_of_them_are_no_group():
    rows = np.random.default_rng(0).normal(size=(4, 50))[[0, 0, 0, 1, 1, 2, 3]]
    probes = pd.DataFrame({"task": list("aaabbbb"), "ids": list("0120123")})
    assert remarks.copied(rows[3:] @ rows[3:].T, probes[3:].reset_index(drop=True)) == (
        "2 units are copies of 1 examples, by their gradients; the copies of one example form one group: b 0 = b 1"
    )
    assert remarks.copied(rows @ rows.T, probes) == (
        "5 units are copies of 2 examples, by their gradients; the copies of one example form one group, but for 3 "
        "units of a, which would leave a task a single group: a 0 = a 1 = a 2; b 0 = b 1"
    )
    assert remarks.copied(rows[4:] @ rows[4:].T, probes[4:]) is None


def test_tasks_with_too_few_groups_are_told_with_how_many_they_have():
    probes = pd.DataFrame({"task": list("aaabbbbcc"), "group": [0, 1, 1, 2, 3, 4, 5, 6, 7]})
    counts = remarks.too_few(np.eye(9), probes)
    assert counts == {"a": 2, "c": 2}
    assert remarks.few(counts, probes) == (
        "a has 2 groups, c has 2 units, and an interval of own Delta takes 4: no signal means there that none can be "
        "told, not that there is none; probe more that are independent"
    )
    assert remarks.few({}, probes) is None
    many = remarks.few(dict.fromkeys("abcd", 2), pd.DataFrame({"task": list("abcd") * 2}))
    assert many.startswith("a has 2 units, b has 2 units, c has 2 units (and 1 more), and an interval")


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
