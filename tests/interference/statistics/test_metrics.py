"""Metrics against closed forms, the golden file, and an obvious double loop over literally resampled units."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from safetensors.numpy import load_file

from interference.errors import ConfigError, MeasurementError, ScopeError
from interference.statistics import metrics
from interference.statistics.estimand import Estimand, estimate
from interference.statistics.metrics import METRICS, Aggregate, Norms, Pairs, Reduce
from tests.support.paths import GOLDEN

MATRICES = GOLDEN / "interference_matrix.safetensors"


def gram_of(gradients: np.ndarray) -> np.ndarray:
    return gradients @ gradients.T


def loop_delta(
    gram: np.ndarray, names: list[int], ranks: list[int], tasks: list[str], pairs: str, v: int, j: str
) -> float:
    """Delta_j L(v) over literal units; `names` and `ranks` say which original unit each is a copy of."""
    if pairs == "same-example" and tasks[v] == j:
        return float(np.sqrt(gram[v, v]))
    total, count = 0.0, 0
    for u in range(len(tasks)):
        if tasks[u] != j:
            continue
        same = names[u] == names[v]
        if pairs == "uni-perceiver":
            same = ranks[u] == ranks[v]
        if pairs in ("leave-one-out", "uni-perceiver") and same:
            continue
        total += gram[u, v] / np.sqrt(gram[u, u]) if gram[u, u] > 0 else 0.0
        count += 1
    return total / count


def loop_interference(
    gram: np.ndarray, names: list[int], ranks: list[int], tasks: list[str], pairs: str, reduce: str
) -> np.ndarray:
    order = list(dict.fromkeys(tasks))
    result = np.full((len(order), len(order)), np.nan)
    for a, i in enumerate(order):
        for b, j in enumerate(order):
            affected = [v for v in range(len(tasks)) if tasks[v] == i]
            top = [loop_delta(gram, names, ranks, tasks, pairs, v, j) for v in affected]
            own = [loop_delta(gram, names, ranks, tasks, pairs, v, i) for v in affected]
            ratios = [t / o for t, o in zip(top, own, strict=True) if o != 0]
            if reduce == "ratio-of-means":
                result[a, b] = np.mean(top) / np.mean(own)
            else:
                result[a, b] = np.mean(ratios) if reduce == "mean-of-ratios" else np.median(ratios)
    return result


def synthetic(seed: int, counts: tuple[int, ...] = (5, 5, 5), dim: int = 12) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    tasks = [f"task{t}" for t, count in enumerate(counts) for _ in range(count)]
    means = {task: rng.normal(size=dim) for task in set(tasks)}
    return np.stack([means[task] + rng.normal(size=dim) for task in sorted(tasks)]), sorted(tasks)


def test_uni_perceiver_matches_the_original_notebook() -> None:
    golden = load_file(MATRICES)
    gradients = np.concatenate([golden[f"gradients.{t}"] for t in range(3)]).astype(np.float64)
    tasks = [str(t) for t in range(3) for _ in range(20)]
    got = metrics.interference(gram_of(gradients), tasks, pairs="uni-perceiver", reduce="mean-of-ratios")
    assert_allclose(got, golden["interference_uni_perceiver"], atol=1e-6, rtol=1e-6)


def test_two_units_a_task_by_hand() -> None:
    # a: (3, 4) and (1, 0); b: (0, 2) and (0, 1). Steps: (.6, .8), (1, 0); (0, 1), (0, 1).
    gram = gram_of(np.array([[3.0, 4], [1, 0], [0, 2], [0, 1]]))
    tasks = ["a", "a", "b", "b"]
    # own: a1 on a2's step 3, a2 on a1's .6; b1 2, b2 1. b's steps: a1 4, a2 0. a's steps: b1 (1.6 + 0)/2, b2 .4
    assert_allclose(metrics.delta(gram, tasks), [[1.8, 2.0], [0.6, 1.5]])
    assert_allclose(metrics.delta(gram, tasks, step=0.1), [[0.18, 0.2], [0.06, 0.15]])
    equation_3 = metrics.interference(gram, tasks, reduce="mean-of-ratios")
    assert_allclose(equation_3, [[1, (4 / 3 + 0) / 2], [(0.4 + 0.4) / 2, 1]])
    assert_allclose(metrics.interference(gram, tasks), [[1, 2 / 1.8], [0.4, 1]])
    assert_allclose(metrics.delta(gram, tasks, pairs="all"), [[(5 + 0.6 + 3 + 1) / 4, 2.0], [0.6, 1.5]])
    assert_allclose(metrics.delta(gram, tasks, pairs="same-example"), [[3, 2.0], [0.6, 1.5]])
    # mean gradients: a (2, 2), b (0, 1.5)
    assert_allclose(metrics.cosine(gram, tasks), [[1, 0.5**0.5], [0.5**0.5, 1]])
    assert_allclose(metrics.cosine(gram, tasks, norms="unbiased")[0, 1], 3 / np.sqrt(3 * 2))
    similarity = 2 * np.sqrt(8) * 1.5 / (8 + 2.25)
    assert_allclose(metrics.magnitude_similarity(gram, tasks), [[1, similarity], [similarity, 1]])
    bound = (1 - 0.5) * (4 + 0.25) / (4 + 12.25)
    assert_allclose(metrics.curvature(gram, tasks), [[0, bound], [bound, 0]], atol=1e-12)
    assert_allclose(metrics.pair_cosine(gram, tasks), [[0.6, 0.4], [0.4, 1]])
    assert_allclose(metrics.conflict_rate(-gram + 2 * np.diag(gram.diagonal()), tasks), [[1, 0.5], [0.5, 1]])


def test_same_example_is_the_mean_pair_cosine() -> None:
    gradients, tasks = synthetic(1)
    gram = gram_of(gradients)
    got = metrics.interference(gram, tasks, pairs="same-example", reduce="mean-of-ratios")
    cosines, off = metrics.pair_cosine(gram, tasks), ~np.eye(3, dtype=bool)
    assert_allclose(got[off], cosines[off])
    assert (np.diagonal(got) == 1).all()


@pytest.mark.parametrize("aggregate", Aggregate)
@pytest.mark.parametrize("reduce", Reduce)
@pytest.mark.parametrize("pairs", Pairs)
def test_resampling_weights_equal_resampled_data(pairs: Pairs, reduce: Reduce, aggregate: Aggregate) -> None:
    counts = (5, 5, 5) if pairs is Pairs.UNI_PERCEIVER else (4, 5, 6)
    blocks, tasks = zip(*(synthetic(seed, counts) for seed in (0, 1)), strict=True)
    stack, names = np.stack([gram_of(block) for block in blocks]), tasks[0]
    rank = [names[:unit].count(names[unit]) for unit in range(len(names))]
    rng = np.random.default_rng(2)
    weights = np.concatenate([rng.multinomial(count, [1 / count] * count, size=6) for count in counts], axis=1)
    weights = np.concatenate([np.ones((1, len(names)), dtype=int), weights])
    got = estimate(Estimand("interference", pairs, reduce, aggregate), stack, names, weights)
    for row, expected in zip(weights, got, strict=True):
        drawn = np.repeat(np.arange(len(names)), row)
        literal, labels = stack[:, drawn][:, :, drawn], [names[u] for u in drawn]
        scopes = [literal.sum(axis=0)] if aggregate is Aggregate.SUM else list(literal)
        ranks = [rank[u] for u in drawn]
        loops = [loop_interference(scope, drawn.tolist(), ranks, labels, pairs, reduce) for scope in scopes]
        assert_allclose(expected, np.mean(loops, axis=0), rtol=1e-9)


@pytest.mark.parametrize("norms", Norms)
def test_companions_equal_their_definition_on_gradients(norms: Norms) -> None:
    gradients, tasks = synthetic(3, (6, 7, 8))
    gram = gram_of(gradients)
    labels = np.array(tasks)
    units = [gradients[labels == task] for task in dict.fromkeys(tasks)]
    means = [g.mean(axis=0) for g in units]
    squares = [
        m @ m if norms is Norms.PLAIN else (m @ m - (g**2).sum() / len(g) ** 2) * len(g) / (len(g) - 1)
        for m, g in zip(means, units, strict=True)
    ]
    dot, a, b = means[0] @ means[1], squares[0], squares[1]
    assert_allclose(metrics.cosine(gram, tasks, norms)[0, 1], dot / np.sqrt(a * b))
    assert_allclose(metrics.magnitude_similarity(gram, tasks, norms)[0, 1], 2 * np.sqrt(a * b) / (a + b))
    expected = (1 - dot**2 / (a * b)) * (a + b - 2 * dot) / (a + b + 2 * dot)
    assert_allclose(metrics.curvature(gram, tasks, norms)[0, 1], expected)
    u, v = units[0], units[1]
    cosines = (u @ v.T) / np.outer(np.linalg.norm(u, axis=1), np.linalg.norm(v, axis=1))
    assert_allclose(metrics.pair_cosine(gram, tasks)[0, 1], cosines.mean())
    assert_allclose(metrics.conflict_rate(gram, tasks)[0, 1], (cosines < 0).mean())


def test_plain_cosine_is_attenuated_by_the_reliability_of_both_means() -> None:
    gradients, tasks = synthetic(4, (30, 40))
    gram = gram_of(gradients)
    shrunk = metrics.cosine(gram, tasks, "unbiased") * np.sqrt(np.prod(metrics.signal(gram, tasks).reliability))
    assert_allclose(metrics.cosine(gram, tasks)[0, 1], shrunk[0, 1])


def test_unbiased_norms_without_signal_are_nan() -> None:
    gram = gram_of(np.array([[1.0, 0], [-1, 0.1], [1, 1], [1, 2]]))  # task a's two units point apart
    got = metrics.cosine(gram, ["a", "a", "b", "b"], norms="unbiased")
    assert np.isnan(got[0]).all() and np.isnan(got[1, 0]) and got[1, 1] == 1


def test_signal_by_hand() -> None:
    gram = gram_of(np.array([[2.0, 1], [2, -1], [-1, 1], [-1, -1]]))
    got = metrics.signal(gram, ["a", "a", "b", "b"])
    assert_allclose(got.squared_norm, [3, 0])  # (2,1).(2,-1) = 3; (-1,1).(-1,-1) = 0
    assert_allclose(got.unit_noise, [2, 2])
    assert_allclose(got.snr, [3, 0])
    assert_allclose(got.reliability, [3 / 4, 0])
    assert_allclose(got.balance, [(3 - 2) / 3, np.nan])


def test_balance_is_zero_where_the_summed_loss_is_stationary() -> None:
    mean = np.array([[3.0, 0, 0], [-1, 2, 0], [-2, -2, 0]])
    noise = np.array([[0, 0, 1.0], [0, 0, -1.0]])
    gradients = (mean[:, None] + 0 * noise).reshape(-1, 3)
    tasks = ["a", "a", "b", "b", "c", "c"]
    assert_allclose(metrics.signal(gram_of(gradients), tasks).balance, 0, atol=1e-12)


def test_ratio_health_by_hand() -> None:
    gradients = np.array([[1.0, 0], [1, 0], [-0.5, 1], [0, 1], [0, 2]])
    got = metrics.ratio_health(gram_of(gradients), ["a", "a", "a", "b", "b"])
    third = np.array([-0.5, 1]) / np.hypot(0.5, 1)
    own = np.array([(1 + third[0]) / 2, (1 + third[0]) / 2, -0.5])
    assert_allclose(got.nonpositive, [[1 / 3, 1 / 3], [0, 0]])
    ratios = np.array([0, 0, 1.0]) / own
    assert_allclose(got.leverage[0], [1 / 3, abs(ratios).max() / abs(ratios).sum()])


def test_zero_gradients_step_nowhere_and_have_no_ratio() -> None:
    gradients = np.array([[1.0, 0], [0, 0], [2, 1], [1, 1], [1, 2]])
    tasks = ["a", "a", "a", "b", "b"]
    gram = gram_of(gradients)
    step = np.array([2, 1]) / np.sqrt(5)
    assert_allclose(metrics.delta(gram, tasks)[0, 0], (step[0] / 2 + 0 + 2 / 2) / 3)
    b = (np.array([1, 1]) / np.sqrt(2) + np.array([1, 2]) / np.sqrt(5)) / 2
    ratios = [b[0] / (step[0] / 2), (b @ [2, 1]) / 1.0]
    assert_allclose(metrics.interference(gram, tasks, reduce="mean-of-ratios")[0, 1], np.mean(ratios))
    assert_allclose(metrics.interference(gram, tasks, reduce="median-of-ratios")[0, 1], np.median(ratios))


def test_a_task_without_gradient_is_nan_in_its_row_alone() -> None:
    gradients = np.array([[1.0, 0], [1, 1], [0, 0], [0, 0]])
    for reduce in Reduce:
        got = metrics.interference(gram_of(gradients), ["a", "a", "b", "b"], reduce=reduce)
        assert_allclose(got[0], [1, 0])
        assert np.isnan(got[1]).all()


@pytest.mark.parametrize("metric", METRICS)
def test_all_zero_blocks_do_not_count_in_the_mean(metric: str) -> None:
    gram = gram_of(synthetic(5)[0])
    tasks, estimand = synthetic(5)[1], Estimand(metric, aggregate="mean")
    stack = np.stack([np.zeros_like(gram), gram])
    assert_allclose(estimate(estimand, stack, tasks), estimate(estimand, gram, tasks))
    assert_allclose(estimate(estimand, [gram, 0 * gram], tasks), estimate(Estimand(metric), gram, tasks))


@pytest.mark.parametrize("metric", METRICS)
@given(seed=st.integers(0, 10_000), data=st.data())
@settings(max_examples=15, deadline=None)
def test_permuting_units_permutes_the_matrix(metric: str, seed: int, data: st.DataObject) -> None:
    gradients, tasks = synthetic(seed, (3, 4, 2))
    order = data.draw(st.permutations(range(len(tasks))))
    shuffled = [tasks[u] for u in order]
    before = estimate(Estimand(metric), gram_of(gradients), tasks)[0]
    after = estimate(Estimand(metric), gram_of(gradients[order]), shuffled)[0]
    place = [list(dict.fromkeys(tasks)).index(task) for task in dict.fromkeys(shuffled)]
    assert_allclose(after, before[np.ix_(place, place)], rtol=1e-7, atol=1e-9)


@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3), pairs=st.sampled_from(Pairs))
@settings(max_examples=40, deadline=None)
def test_scaling(seed: int, scale: float, pairs: Pairs) -> None:
    gradients, tasks = synthetic(seed)
    before, gram = metrics.interference(gram_of(gradients), tasks, pairs), gram_of(scale * gradients)
    assert_allclose(metrics.interference(gram, tasks, pairs), before, rtol=1e-6, atol=1e-9)
    assert_allclose(metrics.delta(gram, tasks, pairs), scale * metrics.delta(gram_of(gradients), tasks, pairs))
    one = gradients.copy()
    one[:5] *= scale  # the step of a task is normalised, and its own loss cancels in I
    assert_allclose(metrics.interference(gram_of(one), tasks, pairs), before, rtol=1e-6, atol=1e-9)


def test_one_distribution_under_two_names_gives_one() -> None:
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=40) + 0.5 * rng.normal(size=(400, 40))
    got = metrics.interference(gram_of(gradients), ["a", "b"] * 200)
    assert_allclose(got, 1, atol=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pairs": "loo"},
            "pairs is 'loo', but must be one of 'leave-one-out', 'uni-perceiver', 'all', 'same-example'",
        ),
        ({"reduce": 3}, "reduce is 3, but must be one of 'ratio-of-means', 'mean-of-ratios', 'median-of-ratios'"),
        ({"aggregate": "max"}, "aggregate is 'max', but must be one of 'sum', 'mean'"),
        ({"norms": ""}, "norms is '', but must be one of 'plain', 'unbiased'"),
        ({"metric": "angle"}, "metric is 'angle', but must be one of 'interference', 'delta', 'cosine', 'pair_cosine'"),
    ],
)
def test_a_setting_that_is_not_there_names_those_that_are(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Estimand(**settings)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("gram", "tasks", "pairs", "kind", "message"),
    [
        (np.eye(3), ["a", "a", "b"], "all", ScopeError, "every task needs at least 2 units, but 'b' has 1: probe more"),
        (np.eye(0), [], "all", ScopeError, "there are no units"),
        (np.eye(5), list("aabbb"), "uni-perceiver", ScopeError, "so tasks need equally many units, but have: a 2, b 3"),
        (
            np.eye(3),
            list("aabb"),
            "all",
            MeasurementError,
            r"Gram block 0 has shape \(3, 3\), but `tasks` names 4 units",
        ),
        (np.diag([1, 1, np.nan, 1]), list("aabb"), "all", MeasurementError, "Gram block 0 has numbers that are not"),
        (
            np.zeros((2, 4, 4)),
            list("aabb"),
            "all",
            MeasurementError,
            "every Gram is zero throughout: no unit has a gra",
        ),
    ],
)
def test_what_cannot_be_measured_says_why(
    gram: np.ndarray, tasks: list[str], pairs: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        metrics.interference(gram, tasks, pairs=pairs)
