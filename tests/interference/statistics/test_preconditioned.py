"""Steps that are not along the gradient: Delta and I of <g_u, P g_v> and |P g_u|, against whole vectors."""

import numpy as np
import pytest

from interference import metrics, uncertainty
from interference.errors import MeasurementError
from interference.statistics.layout import Preconditioned

TASKS = ["a"] * 6 + ["b"] * 5 + ["c"] * 4


@pytest.fixture(scope="module")
def vectors():
    """Gradients of two blocks, [units, 7] and [units, 9], and the diagonals that turn them into steps."""
    rng = np.random.default_rng(3)
    means = {task: rng.normal(size=16) for task in "abc"}
    whole = np.stack([means[task] + rng.normal(size=16) for task in TASKS])
    return (whole[:, :7], whole[:, 7:]), (rng.uniform(0.2, 5, 7), rng.uniform(0.2, 5, 9))


def stacked(vectors):
    rows, scales = vectors
    grams = np.stack([g @ (p * g).T for g, p in zip(rows, scales, strict=True)])
    return Preconditioned(grams, np.stack([((p * g) ** 2).sum(axis=1) for g, p in zip(rows, scales, strict=True)]))


def falls(gradients, scale, affected, stepped):
    """Delta_j L_i(v) of every unit v of i, pair by pair: <g_v, P g_u> / |P g_u| over units u of j, but v itself."""
    found = []
    for v in np.flatnonzero(np.array(TASKS) == affected):
        steps = [scale * gradients[u] for u in np.flatnonzero(np.array(TASKS) == stepped) if u != v]
        found.append(np.mean([gradients[v] @ step / np.linalg.norm(step) for step in steps]))
    return np.array(found)


def expected(gradients, scale):
    return np.array([[falls(gradients, scale, i, j).mean() for j in "abc"] for i in "abc"])


def test_delta_and_interference_are_those_of_the_steps(vectors):
    delta = expected(np.hstack(vectors[0]), np.hstack(vectors[1]))
    np.testing.assert_allclose(metrics.delta(stacked(vectors), TASKS), delta, rtol=1e-12)
    interference = delta / np.diagonal(delta)[:, None]
    np.testing.assert_allclose(metrics.interference(stacked(vectors), TASKS), interference, rtol=1e-12)


def test_a_mean_over_blocks_takes_each_blocks_own_length(vectors):
    each = [expected(gradients, scale) for gradients, scale in zip(*vectors, strict=True)]
    np.testing.assert_allclose(metrics.delta(stacked(vectors), TASKS, aggregate="mean"), np.mean(each, 0), rtol=1e-12)


@pytest.mark.parametrize("reduce", ["mean-of-ratios", "median-of-ratios"])
def test_ratios_are_of_the_steps(vectors, reduce):
    gradients, scale = np.hstack(vectors[0]), np.hstack(vectors[1])
    ratios = falls(gradients, scale, "b", "c") / falls(gradients, scale, "b", "b")
    wanted = np.mean(ratios) if reduce == "mean-of-ratios" else np.median(ratios)
    assert metrics.interference(stacked(vectors), TASKS, reduce=reduce)[1, 2] == pytest.approx(wanted, rel=1e-12)


def test_a_units_own_step_is_the_denominator_of_same_example(vectors):
    gradients, scale = np.hstack(vectors[0]), np.hstack(vectors[1])
    own = np.array([g @ (scale * g) / np.linalg.norm(scale * g) for g in gradients])
    found = metrics.delta(stacked(vectors), TASKS, pairs="same-example")
    np.testing.assert_allclose(np.diagonal(found), [own[:6].mean(), own[6:11].mean(), own[11:].mean()], rtol=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "pair_cosine", "conflict_rate", "magnitude_similarity", "curvature"])
def test_companions_read_inner_products_alone(vectors, metric):
    steps = stacked(vectors)
    found = getattr(metrics, metric)(steps, TASKS)
    np.testing.assert_allclose(found, getattr(metrics, metric)(steps.grams, TASKS), rtol=1e-12)


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
@pytest.mark.parametrize("metric", ["delta", "interference"])
def test_steps_of_one_scale_are_those_of_the_gradient(vectors, metric, aggregate):
    """P = 3: every number, interval, p and verdict is the gradient's own, so one path computes both."""
    rows = vectors[0]
    plain = np.stack([g @ g.T for g in rows])
    scaled = Preconditioned(3 * plain, 9 * np.stack([(g**2).sum(axis=1) for g in rows]))
    options = {"metric": metric, "aggregate": aggregate, "replicates": 200}
    one, other = (uncertainty.table(gram, TASKS, **options) for gram in (plain, scaled))
    for name in ("value", "low", "high", "p", "q", "nonpositive", "leverage"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-9, err_msg=name)
    assert (one.verdict == other.verdict).all()


def test_order_of_units_does_not_matter(vectors):
    steps, shuffled = stacked(vectors), np.random.default_rng(0).permutation(len(TASKS))
    moved = Preconditioned(steps.grams[:, shuffled][:, :, shuffled], steps.squares[:, shuffled])
    names = [TASKS[k] for k in shuffled]
    places = [list(dict.fromkeys(names)).index(task) for task in "abc"]
    found = metrics.delta(moved, names)[np.ix_(places, places)]
    np.testing.assert_allclose(found, metrics.delta(steps, TASKS), rtol=1e-12)
    table = uncertainty.table(moved, names, "delta", replicates=50)
    np.testing.assert_allclose(table.value[np.ix_(places, places)], metrics.delta(steps, TASKS), rtol=1e-12)


def test_the_null_halves_the_steps_too(vectors):
    rows = vectors[0]
    plain = np.stack([g @ g.T for g in rows])
    scaled = Preconditioned(3 * plain, 9 * np.stack([(g**2).sum(axis=1) for g in rows]))
    for aggregate in ("sum", "mean"):
        one, other = (uncertainty.split_half_null(gram, TASKS, aggregate=aggregate) for gram in (plain, scaled))
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-9)
    other = uncertainty.split_half_null(stacked(vectors), TASKS)
    assert not np.allclose(one.mean, other.mean)


def test_a_comparison_takes_both_steps(vectors):
    steps, plain = stacked(vectors), np.stack([g @ g.T for g in vectors[0]])
    found = uncertainty.compare(plain, steps, TASKS, "delta", replicates=50)
    np.testing.assert_allclose(found.difference, metrics.delta(steps, TASKS) - metrics.delta(plain, TASKS), rtol=1e-9)


@pytest.mark.parametrize("squares", [np.ones((2, 14)), np.full((2, 15), np.inf), np.full((2, 15), -1.0)])
def test_lengths_that_are_none_are_refused(vectors, squares):
    with pytest.raises(MeasurementError, match="must be 15 finite squared lengths"):
        metrics.delta(Preconditioned(stacked(vectors).grams, squares), TASKS)
