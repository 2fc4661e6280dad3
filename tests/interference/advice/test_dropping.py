"""Examples to look at: p by hand, planted ones found, the false discovery rate, groups, and a twentieth at most."""

import numpy as np
import pytest
from scipy import stats

from interference.advice.dropping import against, p_values
from tests.support.reported import axis, made


def planted(count=60, wrong=2, noise=0.2, seed=0, dimension=12):
    """Gradients of two tasks along one axis, the first `wrong` examples of each turned round."""
    rng = np.random.default_rng(seed)
    rows = noise * rng.normal(size=(2 * count, dimension))
    rows[:, 0] += 1
    for start in (0, count):
        rows[start : start + wrong] *= -1
    return rows @ rows.T, ["a"] * count + ["b"] * count


def test_p_by_hand():
    """Unit 0: products -1, -2, -3 with its own task, and 1, -4, -6 with the other; the larger p is of the other."""
    gram = np.zeros((7, 7))
    gram[1:4, 0], gram[4:, 0] = [-1, -2, -3], [1, -4, -6]
    found = p_values(gram, list("aaaabbb"))[0]
    wanted = [stats.ttest_1samp(values, 0, alternative="less").pvalue for values in ([-1, -2, -3], [1, -4, -6])]
    assert found == pytest.approx(max(wanted)) and wanted[1] > wanted[0]


def test_of_three_tasks_the_others_are_summed():
    """Means -2 and 1 of two tasks with variances of the mean 1/3 and 4/3: -1 / sqrt(5/3), Satterthwaite's freedom."""
    gram = np.zeros((9, 9))
    gram[1:3, 0], gram[3:6, 0], gram[6:, 0] = [-50, -51], [-1, -2, -3], [-1, 1, 3]
    degrees = (5 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (4 / 3) ** 2 / 2)
    assert p_values(gram, list("aaabbbccc"))[0] == pytest.approx(stats.t.cdf(-1 / np.sqrt(5 / 3), degrees))


def test_copies_add_no_certainty():
    gram = np.zeros((7, 7))
    gram[1:4, 0], gram[4:, 0] = [-1, -2, -3], [1, -4, -6]
    twice = np.repeat(np.repeat(gram, 2, axis=0), 2, axis=1)
    tasks, groups = list("aaaaaaaabbbbbb"), np.repeat(np.arange(7), 2).tolist()
    assert p_values(twice, tasks, groups)[0] == pytest.approx(p_values(gram, list("aaaabbb"))[0])


@pytest.mark.parametrize("tasks", ["aaaaaaa", "aabbbbb", "aaaaabb"])
def test_too_few_to_tell(tasks):
    """A single task, or a unit whose own task has a single other group; two groups of another task do."""
    assert np.isnan(p_values(-np.ones((7, 7)), list(tasks))[0]) == (tasks != "aaaaabb")


def test_turned_examples_are_found():
    gram, tasks = planted()
    p = p_values(gram, tasks)
    assert set(np.argsort(p)[:4]) == {0, 1, 60, 61} and p[[0, 1, 60, 61]].max() < 1e-6


def test_where_none_is_against_a_mean_few_are_found():
    """Examples whose true products with both means are 0: each p is at most as often small as it should be."""
    rng, low = np.random.default_rng(1), []
    for _ in range(60):
        rows = rng.normal(size=(40, 60))
        rows[0] = 0
        rows[0, :30] = rng.normal(size=30)  # orthogonal to both means, which lie along the last axis
        rows[1:, -1] += 1
        low.append(p_values(rows @ rows.T, ["a"] * 20 + ["b"] * 20)[0] < 0.05)
    assert np.mean(low) <= 0.05


def test_at_most_a_twentieth_is_named():
    """Of 40 examples of a task two, however many there are; the clearest first, with ids and source."""
    means = {"a": axis(1, size=2), "b": axis(1, 2, size=2)}
    run = made(means, noise=0.4, units=40)
    assert against(run).empty
    for name, values in run._grams.items():  # five examples of a are turned round
        turned = np.ones(80)
        turned[:5] = -1
        rows, columns = np.triu_indices(80)
        run._grams[name] = (values * (turned[rows] * turned[columns])).astype(np.float32)
    found = against(run)
    assert list(found["task"]) == ["a", "a"] and set(found["ids"]) < {"r0", "r1", "r2", "r3", "r4"}
    assert list(found.columns) == ["task", "ids", "source", "q"] and (found["q"] < 0.05).all()


def test_batches_of_examples_are_not_named():
    run = made({"a": axis(1), "b": axis(-1)}, units=40, meta={"config": {"probe": {"unit_size": 4}}})
    assert against(run).empty and list(against(run).columns) == ["task", "ids", "source", "q"]
