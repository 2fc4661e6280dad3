"""Falls along branches: means by hand, ratios, groups, the analysis of variance, and intervals that cover."""

import numpy as np
import pytest

from interference.errors import ConfigError, ScopeError
from interference.statistics.falls import falls, ratios


def drawn(rng, seeds, groups, size, means, by_seed=0.1, by_group=0.3, rest=0.3):
    """[seeds, tasks, examples]: falls of two tasks whose examples come in groups of `size`."""
    tasks, examples = len(means), groups * size
    found = np.empty((seeds, tasks, tasks * examples))
    for i in range(tasks):
        own = slice(i * examples, (i + 1) * examples)
        group = np.repeat(rng.normal(0, by_group, groups), size)
        for j in range(tasks):
            branch = rng.normal(0, by_seed, (seeds, 1))
            found[:, j, own] = means[i][j] + group + branch + rng.normal(0, rest, (seeds, examples))
    names = [name for name in "abcdef"[:tasks] for _ in range(examples)]
    return found, names, [k // size for k in range(tasks * examples)]


def test_means_and_ratios_by_hand():
    found = np.array([[[1.0, 3, 0, 2], [2, 2, 4, 4]], [[3.0, 5, 2, 0], [0, 4, 6, 2]]])
    made = falls(found, ["a", "a", "b", "b"])
    np.testing.assert_allclose(made.value, [[3, 2], [1, 4]])
    cells = made.cells("interference")
    np.testing.assert_allclose(cells["value"], [[1, 2 / 3], [1 / 4, 1]])
    np.testing.assert_allclose(made.cells("delta")["value"], made.value)
    np.testing.assert_allclose(np.diagonal(cells["low"]), 1)
    np.testing.assert_allclose(np.diagonal(cells["high"]), 1)


def test_a_ratio_to_nothing_is_no_number():
    np.testing.assert_array_equal(ratios(np.array([[0.0, 1], [1, 2]])), [[np.nan, np.nan], [0.5, 1]])


def test_rows_may_come_in_any_order():
    found, names, groups = drawn(np.random.default_rng(0), 3, 6, 2, [[1, 0.5], [-0.5, 1]])
    order = [0, *np.random.default_rng(1).permutation(np.arange(1, len(names)))]
    one, other = (
        falls(found[:, :, places], [names[k] for k in places], [groups[k] for k in places])
        for places in (range(len(names)), order)
    )
    assert one.tasks == other.tasks == ("a", "b")
    np.testing.assert_allclose(one.value, other.value)
    np.testing.assert_allclose(one.variance, other.variance)


def test_the_variance_is_that_of_a_two_way_analysis():
    """Against expectations of mean squares: seeds, groups and rest of known variance, averaged over many draws."""
    rng, groups, size, seeds = np.random.default_rng(2), 20, 3, 4
    shares = {"by_seed": 0.2, "by_group": 0.5, "rest": 0.4}
    expected = shares["by_group"] ** 2 / groups + shares["by_seed"] ** 2 / seeds
    expected += shares["rest"] ** 2 / (seeds * groups * size)
    made = [falls(*drawn(rng, seeds, groups, size, [[1, 0], [0, 1]], **shares), replicates=2) for _ in range(300)]
    np.testing.assert_allclose(np.mean([one.variance for one in made], axis=0), expected, rtol=0.1)
    np.testing.assert_allclose(np.var([one.value for one in made], axis=0), expected, rtol=0.25)


@pytest.mark.parametrize("size", [1, 4])
def test_intervals_cover(size):
    rng, means, inside = np.random.default_rng(3), [[0.5, 0.3], [-0.2, 0.5]], []
    truth = {"delta": np.array(means), "interference": ratios(np.array(means))}
    for _ in range(150):
        made = falls(*drawn(rng, 3, 40, size, means), replicates=300, seed=int(rng.integers(1000)))
        cells = {metric: made.cells(metric) for metric in truth}
        inside.append([((own["low"] <= truth[m]) & (own["high"] >= truth[m])) for m, own in cells.items()])
    delta, ratio = np.mean(inside, axis=0)
    assert 0.92 <= delta.mean() <= 0.99 and delta.min() > 0.88
    assert 0.92 <= ratio[~np.eye(2, dtype=bool)].mean() <= 0.995


def test_copies_in_groups_add_no_certainty():
    rng = np.random.default_rng(4)
    found, names, _ = drawn(rng, 3, 10, 1, [[1, 0.5], [0.5, 1]])
    once = falls(found, names)
    copied = falls(np.repeat(found, 5, axis=2), np.repeat(names, 5).tolist(), np.repeat(range(20), 5).tolist())
    np.testing.assert_allclose(copied.value, once.value)
    np.testing.assert_allclose(copied.variance, once.variance)
    blind = falls(np.repeat(found, 5, axis=2), np.repeat(names, 5).tolist())
    assert (blind.variance < once.variance).all()


def test_verdicts_are_about_delta():
    means = [[1, -0.5, 0.6], [0.0, 1, 0.0], [0.5, 0.5, -0.4]]
    found, names, groups = drawn(np.random.default_rng(5), 5, 40, 1, means, by_seed=0.02)
    verdict = falls(found, names, groups).cells("interference")["verdict"].tolist()
    assert verdict[0] == ["self", "conflict", "synergy"] and verdict[2] == ["no-signal", "no-signal", "self"]
    assert verdict[1][1] == "self" and set(verdict[1]) <= {"self", "unclear"}


def test_what_cannot_be_asked_is_refused():
    found, names, groups = drawn(np.random.default_rng(0), 2, 4, 1, [[1, 0], [0, 1]])
    with pytest.raises(ScopeError, match=r"at least 2 seeds x 2 x 8"):
        falls(found[:1], names, groups)
    with pytest.raises(ScopeError, match="no metric 'cosine'; it has interference, delta"):
        falls(found, names, groups).cells("cosine")
    with pytest.raises(ConfigError, match="level is 2"):
        falls(found, names, groups, level=2)
