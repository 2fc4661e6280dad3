"""The tree of tasks and the split that the verdicts support."""

import numpy as np
import pandas as pd
import pytest

from interference.report.findings.grouping import distances, group
from tests.support.reported import APART, TWO_GROUPS, axis, made


def table(run):
    return run.table(reduce="ratio-of-means", replicates=200)


def cells(tasks, values, verdicts):
    names = np.array(tasks)
    return pd.DataFrame({
        "affected": np.repeat(names, len(names)),
        "stepped": np.tile(names, len(names)),
        "value": np.ravel(values).astype(float),
        "verdict": np.ravel(verdicts),
    })  # fmt: skip


def test_distance_is_one_minus_the_mean_of_both_directions():
    values = np.array([[1, 0.5, -3], [0.1, 1, np.nan], [-2, 0.4, 1]])
    verdicts = np.array(
        [["self", "synergy", "conflict"], ["unclear", "self", "unclear"], ["conflict", "unclear", "self"]]
    )
    found = distances(values, verdicts)
    np.testing.assert_allclose(found, [[0, 0.7, 2], [0.7, 0, 0.6], [2, 0.6, 0]])


def test_a_row_without_signal_does_not_count():
    values = np.array([[1, 0.6, 0.2], [-9, 1, 9], [7, 9, 1]])
    verdicts = np.array(
        [["self", "synergy", "unclear"], ["no-signal", "self", "no-signal"], ["no-signal"] * 2 + ["self"]]
    )
    np.testing.assert_allclose(distances(values, verdicts), [[0, 0.4, 0.8], [0.4, 0, 1], [0.8, 1, 0]])


def test_two_planted_groups_are_found():
    found = group(table(made(TWO_GROUPS)))
    assert found.split == [["a", "b"], ["c", "d"]]
    assert {frozenset(found.order[:2]), frozenset(found.order[2:])} == {frozenset("ab"), frozenset("cd")}
    assert found.words == (
        "Conflict lies between groups of tasks (a and b; c and d): 8 of the 8 pairs between them conflict beyond "
        "noise, and 0 within them."
    )
    heights = [merge[2] for merge in found.merges]
    assert len(found.merges) == 3 and heights == sorted(heights) and found.merges[-1][3] == 4


def test_tasks_that_do_not_matter_to_each_other_are_not_split():
    found = group(table(made(APART, noise=0.0)))
    assert found.split == [["a", "b", "c"]]
    assert found.words == "No pair of tasks conflicts beyond noise, so these numbers give no reason to split them."


def test_a_conflict_that_falls_into_no_groups_is_not_split():
    tasks, values = list("abcd"), np.full((4, 4), 0.3)
    verdicts = np.full((4, 4), "synergy", dtype=object)
    values[0, 1], verdicts[0, 1] = -0.5, "conflict"
    np.fill_diagonal(verdicts, "self")
    found = group(cells(tasks, values, verdicts))
    assert found.split == [tasks]
    assert found.words == "No split of the tasks is supported: their conflicts do not fall between groups."


def test_a_split_that_would_cut_synergies_is_not_taken():
    verdicts = [["self", "conflict", "conflict"], ["synergy", "self", "unclear"], ["unclear", "unclear", "self"]]
    values = [[1, -0.9, -0.9], [0.3, 1, 0.1], [0.0, 0.1, 1]]
    assert group(cells(list("abc"), values, verdicts)).split == [["a", "b", "c"]]


def test_three_that_all_fight_go_three_ways():
    found = group(table(made({"a": axis(1, -2), "b": axis(2, -3), "c": axis(3, -1)})))
    assert found.split == [["a"], ["b"], ["c"]] and "6 of the 6 pairs" in found.words


@pytest.mark.parametrize(("tasks", "split"), [(["a"], None), (["a", "c"], [["a"], ["c"]]), (["a", "b"], [["a", "b"]])])
def test_one_task_has_no_tree_and_two_may_be_split(tasks, split):
    found = group(table(made({task: TWO_GROUPS[task] for task in tasks})))
    assert (found.split if found else None) == split


def test_the_order_of_tasks_does_not_matter():
    shuffled = {task: TWO_GROUPS[task] for task in "cadb"}
    found = group(table(made(shuffled)))
    assert found.split == [["c", "d"], ["a", "b"]]
