"""The tree of tasks, and the split that the verdicts and the resamples support."""

import numpy as np
import pandas as pd
import pytest

from interference.advice.grouping import distances, group
from interference.statistics.estimand import Estimand
from interference.statistics.resamples import Resamples
from tests.support.reported import APART, TWO_GROUPS, axis, made


def cut(run):
    """The grouping of a run's tasks by its interference."""
    resamples = Resamples(run.theta(), list(run.probes["task"]), replicates=200, seed=run.seed)
    return group(run.table(reduce="ratio-of-means", replicates=200), resamples.of(Estimand("interference"))[1])


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
    found = cut(made(TWO_GROUPS))
    assert found.split == [["a", "b"], ["c", "d"]]
    assert {frozenset(found.order[:2]), frozenset(found.order[2:])} == {frozenset("ab"), frozenset("cd")}
    assert found.words == (
        "Conflict lies between groups of tasks (a and b; c and d): 8 of the 8 pairs between them conflict beyond "
        "noise, and 0 within them. Resamples find the same groups with an agreement of 1.00 (adjusted Rand index)."
    )
    assert found.stability[2] == 1
    heights = [merge[2] for merge in found.merges]
    assert len(found.merges) == 3 and heights == sorted(heights) and found.merges[-1][3] == 4


def test_tasks_that_do_not_matter_to_each_other_are_not_split():
    found = cut(made(APART, noise=0.0))
    assert found.split == [["a", "b", "c"]]
    assert found.words == "No split is supported by this run: no pair of tasks conflicts beyond noise."


def test_a_conflict_that_falls_into_no_groups_is_not_split():
    tasks, values = list("abcd"), np.full((4, 4), 0.3)
    verdicts = np.full((4, 4), "synergy", dtype=object)
    values[0, 1], verdicts[0, 1] = -0.5, "conflict"
    np.fill_diagonal(verdicts, "self")
    found = group(cells(tasks, values, verdicts), values[None])
    assert found.split == [tasks]
    assert found.words == "No split is supported by this run: its conflicts do not fall between groups of tasks."


def test_a_split_that_would_cut_synergies_is_not_taken():
    verdicts = [["self", "conflict", "conflict"], ["synergy", "self", "unclear"], ["unclear", "unclear", "self"]]
    values = [[1, -0.9, -0.9], [0.3, 1, 0.1], [0.0, 0.1, 1]]
    assert group(cells(list("abc"), values, verdicts), np.array(values)[None]).split == [["a", "b", "c"]]


def test_three_that_all_fight_go_three_ways():
    found = cut(made({"a": axis(1, -2), "b": axis(2, -3), "c": axis(3, -1)}))
    assert found.split == [["a"], ["b"], ["c"]] and "6 of the 6 pairs" in found.words


@pytest.mark.parametrize(("tasks", "split"), [(["a"], None), (["a", "c"], [["a"], ["c"]]), (["a", "b"], [["a", "b"]])])
def test_one_task_has_no_tree_and_two_may_be_split(tasks, split):
    found = cut(made({task: TWO_GROUPS[task] for task in tasks}))
    assert (found.split if found else None) == split


def test_the_order_of_tasks_does_not_matter():
    shuffled = {task: TWO_GROUPS[task] for task in "cadb"}
    found = cut(made(shuffled))
    assert found.split == [["c", "d"], ["a", "b"]]


# --- stability ---

TASKS = list("abcd")
PAIRED = np.where(np.kron(np.eye(2), np.ones((2, 2))) > 0, 0.8, -0.8)
OPPOSED = np.where(PAIRED > 0, "synergy", "conflict").astype(object)
np.fill_diagonal(OPPOSED, "self")


def with_resamples(others, share):
    """The planted grouping of four tasks, a share of whose 20 resamples are the matrix `others` instead."""
    count = round(20 * share)
    return group(cells(TASKS, PAIRED, OPPOSED), np.array([others] * count + [PAIRED] * (20 - count)))


def test_a_split_that_resamples_do_not_find_is_not_supported():
    """Two groups of two against {a, c} and {b, d}: the adjusted Rand index of the two is -0.5 by hand.

    Of 6 pairs of tasks 2 are together in each and none in both; 2 * 2 / 6 are expected: (0 - 2/3) / (2 - 2/3).
    """
    crossed = PAIRED[np.ix_([0, 2, 1, 3], [0, 2, 1, 3])]
    assert with_resamples(crossed, 1).stability[2] == pytest.approx(-0.5)
    rare, often = with_resamples(crossed, 0.1), with_resamples(crossed, 0.2)
    assert rare.stability[2] == pytest.approx(0.85) and rare.split == [["a", "b"], ["c", "d"]]
    assert often.stability[2] == pytest.approx(0.7) and often.split == [TASKS]
    assert often.words.startswith(
        "No split is supported by this run: groups of its tasks are opposed, but resamples do not find the same groups "
        "(agreement for 2 groups 0.70"
    )


def test_only_cuts_whose_groups_are_opposed_are_asked_for_their_stability():
    """Cuts into three and four groups part tasks that help each other."""
    assert list(with_resamples(PAIRED, 0).stability) == [2]
