"""Averages over tasks: by hand, the terms of their variance, intervals that cover, and a reference that was drawn."""

import numpy as np
import pytest

from interference.errors import ConfigError, ScopeError
from interference.statistics.averages import Drawn, average


def drawn(rng, seeds=3, groups=20, size=2, shared=False, means=(0.5, -0.2, 0.0)):
    """[seeds, 1, examples] of three tasks in groups of `size`; tasks may have the same groups."""
    effect = rng.normal(0, 0.3, (1 if shared else len(means), groups))
    found, names, labels = [], [], []
    seed = rng.normal(0, 0.1, (seeds, 1, 1))
    for i, mean in enumerate(means):
        own = effect[0 if shared else i]
        found.append(mean + np.repeat(own, size) + seed + rng.normal(0, 0.3, (seeds, 1, groups * size)))
        names += ["abc"[i]] * (groups * size)
        labels += [k // size + (0 if shared else i * groups) for k in range(groups * size)]
    return np.concatenate(found, axis=2), names, labels


def test_tasks_count_alike_whatever_their_examples():
    found = np.array([[[1.0, 3, 6, 6, 6, 6]], [[3.0, 5, 8, 8, 8, 8]]])
    made = average(found, ["a", "a", "b", "b", "b", "b"])
    np.testing.assert_allclose(made.value, [(3 + 7) / 2])


def test_without_scatter_of_groups_the_error_is_that_of_seeds():
    """Each seed adds its own number to all: Student's t of 0, 1 and 2, whose mean has the error 1/sqrt(3)."""
    found = np.array([0.0, 1, 2])[:, None, None] + np.array([5.0, 5, -1, -1])
    made = average(found, list("aabb"))
    np.testing.assert_allclose(made.value, [3])
    np.testing.assert_allclose((made.high - made.low) / 2, [4.302653 / np.sqrt(3)], rtol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_intervals_cover(shared):
    """Over seeds and groups drawn anew 400 times; tasks of one picture each share its groups."""
    rng, inside, width = np.random.default_rng(5), [], []
    for _ in range(400):
        found, names, labels = drawn(rng, shared=shared)
        made = average(found, names, labels)
        inside.append(made.low[0] <= 0.1 <= made.high[0])
        width.append(made.high[0] - made.low[0])
    assert 0.92 <= np.mean(inside) <= 0.985
    assert np.isfinite(width).all()


def test_levels_of_tasks_are_no_error():
    """Tasks far from each other: only what is drawn counts."""
    rng = np.random.default_rng(6)
    found, names, labels = drawn(rng, means=(0.5, -0.2, 0.0))
    far = found + np.repeat([0, 100.0, -40], 40)
    near, wide = average(found, names, labels), average(far, names, labels)
    np.testing.assert_allclose(wide.high - wide.low, near.high - near.low)


def test_a_drawn_reference_adds_its_scatter():
    """Of nine splits three were drawn, with averages 0, 0.3 and 0.6: 0.09 / 3 * (1 - 3 / 9)."""
    values = np.array([0.0, 0.3, 0.6])
    assert Drawn(values, 9).variance == pytest.approx(0.02)
    assert Drawn(values, 3).variance == 0
    assert np.isnan(Drawn(values[:1], 9).variance)
    found, names, labels = drawn(np.random.default_rng(7))
    alone, among = (average(found, names, labels, drawn=own) for own in (None, Drawn(values, 9)))
    np.testing.assert_allclose(alone.value, among.value)
    assert (among.high - among.low > alone.high - alone.low + 0.3).all()
    whole = average(found, names, labels, drawn=Drawn(values, 3))
    np.testing.assert_allclose(whole.high, alone.high)
    assert np.isnan(average(found, names, labels, drawn=Drawn(values[:1], 9)).low).all()


def test_coverage_where_the_reference_is_drawn():
    """The difference to the mean of 36 splits, of which 5 are drawn without replacement."""
    rng, inside = np.random.default_rng(8), []
    for _ in range(400):
        population = rng.normal(0, 0.4, 36)
        chosen = rng.choice(population, 5, replace=False)
        found, names, labels = drawn(rng, means=(0.0, 0.0, 0.0))
        made = average(found - chosen.mean(), names, labels, drawn=Drawn(-chosen, 36))
        inside.append(made.low[0] <= -population.mean() <= made.high[0])
    assert 0.92 <= np.mean(inside) <= 0.995


def test_what_cannot_be_averaged():
    with pytest.raises(ScopeError, match="must be at least 2 seeds x trainings x 4"):
        average(np.zeros((1, 1, 4)), list("aabb"))
    with pytest.raises(ScopeError, match="at least 2"):
        average(np.zeros((2, 1, 3)), list("aab"))
    with pytest.raises(ConfigError, match="level"):
        average(np.zeros((2, 1, 4)), list("aabb"), level=2)
