"""Bootstrap, verdicts, null and comparison: closed forms, invariances, failures. Coverage is in test_coverage.py."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file
from scipy import stats

from interference.errors import ConfigError, ScopeError
from interference.statistics import metrics
from interference.statistics.estimand import Estimand
from interference.statistics.layout import Layout, Pairs
from interference.statistics.metrics import METRICS
from interference.statistics.pairs import Kernel
from interference.statistics.significance import (
    at_odds,
    benjamini_hochberg,
    changes,
    interval_p_value,
    p_value,
    pair_mean_variance,
    verdicts,
)
from interference.statistics.uncertainty import (
    Resamples,
    bootstrap_weights,
    change_of,
    compare,
    interval,
    split_half_null,
    table,
    table_of,
)
from tests.support.paths import GOLDEN

MATRICES = GOLDEN / "interference_matrix.safetensors"


def synthetic(seed: int = 0, count: int = 20, noise: float = 1.0) -> tuple[np.ndarray, list[str]]:
    """Gram of three tasks: a and b pull apart, c is orthogonal to both; unit means, `noise` a coordinate of 30."""
    rng = np.random.default_rng(seed)
    means = np.zeros((3, 30))
    means[0, 0], means[1, 0], means[1, 1], means[2, 2] = 2, -1, 1, 2
    gradients = np.repeat(means, count, axis=0) + noise * rng.normal(size=(3 * count, 30)) / np.sqrt(30)
    return gradients @ gradients.T, [name for name in "abc" for _ in range(count)]


def test_bootstrap_weights_draw_every_task_anew() -> None:
    tasks = list("ababb")
    weights = bootstrap_weights(tasks, replicates=500, seed=3)
    assert weights.shape == (500, 5)
    assert_array_equal(weights[:, [0, 2]].sum(axis=1), 2)
    assert_array_equal(weights[:, [1, 3, 4]].sum(axis=1), 3)
    assert_allclose(weights.mean(axis=0), 1, atol=0.1)
    assert_array_equal(weights, bootstrap_weights(tasks, replicates=500, seed=3))
    assert (weights != bootstrap_weights(tasks, replicates=500, seed=4)).any()


def test_two_way_variance_is_the_textbook_one() -> None:
    rng = np.random.default_rng(0)
    layout = Layout.of(["a"] * 5 + ["b"] * 4)
    values = rng.normal(size=(9, 9))
    block = values[5:, :5]  # stepped b, affected a: [4, 5]
    mean, rows, columns = block.mean(), block.mean(axis=1), block.mean(axis=0)
    residual = ((block - rows[:, None] - columns + mean) ** 2).sum() / (3 * 4)
    terms = [columns.var(ddof=1) - residual / 4, rows.var(ddof=1) - residual / 5]
    parts = np.array([max(terms[0], 0) / 5, max(terms[1], 0) / 4, residual / 20])
    variance, degrees = pair_mean_variance(Kernel(values), layout, Pairs.LEAVE_ONE_OUT)
    assert_allclose(variance[0, 1], parts.sum())
    assert_allclose(degrees[0, 1], parts.sum() ** 2 / (parts**2 / [4, 3, 12]).sum())


def test_variance_is_unbiased_for_two_samples_and_for_a_u_statistic() -> None:
    rng = np.random.default_rng(1)
    layout, truth = Layout.of(["a"] * 6 + ["b"] * 8), []
    estimates = []
    for _ in range(3000):
        effects = 2 * rng.normal(size=14)  # large, so that the floor at 0 does not bind
        noise = rng.normal(size=(14, 14))
        values = effects[:, None] + effects + noise + noise.T
        variance, _ = pair_mean_variance(Kernel(values), layout, Pairs.LEAVE_ONE_OUT)
        own = values[:6, :6]
        truth.append([values[6:, :6].mean(), (own.sum() - np.trace(own)) / 30])
        estimates.append([variance[0, 1], variance[0, 0]])
    assert_allclose(np.mean(estimates, axis=0), np.var(truth, axis=0), rtol=0.1)
    assert_allclose(np.mean(estimates, axis=0), [4 / 6 + 4 / 8 + 2 / 48, 4 * 4 / 6 + 2 * 2 / 30], rtol=0.05)


def test_p_values() -> None:
    assert_allclose(p_value(np.array([2.0]), np.array([1.0]), np.array([10.0])), 2 * stats.t.sf(2, 10))
    without = p_value(np.array([2.0, 0.0, 2.0]), np.array([0.0, 0.0, np.nan]), np.array([10.0, 10.0, 1.0]))
    assert_allclose(without, [0, 1, np.nan])
    value, low, high = np.array([2.0, -2.0, 0.0]), np.array([0.0, -3.0, -1.0]), np.array([5.0, 0.0, 1.0])
    assert_allclose(interval_p_value(value, low, high, 0.95, np.array(7.0)), [0.05, 0.05, 1])


def test_benjamini_hochberg_by_hand_skips_nan() -> None:
    got = benjamini_hochberg(np.array([[0.01, np.nan], [0.04, 0.03]]))
    assert_allclose(got, [[0.03, np.nan], [0.04, 0.04]])
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()


def test_verdicts_need_interval_and_adjusted_p() -> None:
    low = np.array([[1.0, -2, -2], [0.1, 1, 0.2], [-3, 1, -1]])
    high = np.array([[2.0, -1, 1], [0.3, 2, 0.4], [-2, 2, 1]])
    q = np.array([[np.nan, 0.01, 0.5], [0.01, np.nan, 0.06], [np.nan, np.nan, np.nan]])
    expected = [
        ["self", "conflict", "unclear"],
        ["synergy", "self", "unclear"],
        ["no-signal", "no-signal", "self"],
    ]
    assert verdicts(low, high, np.diagonal(low), q, 0.95, np.zeros(3, dtype=bool)).tolist() == expected
    expected[0] = ["self", "carried", "carried"]  # a row without a signal stays so
    assert verdicts(low, high, np.diagonal(low), q, 0.95, np.array([True, False, True])).tolist() == expected
    assert changes(low[:2], high[:2], q[:2], 0.95).tolist() == [
        ["unclear", "lower", "unclear"],
        ["higher", "unclear", "unclear"],
    ]


def test_interval_is_nan_where_too_many_resamples_have_no_value() -> None:
    draws = np.tile(np.arange(101.0)[:, None], (1, 3))
    draws[:2, 1], draws[:50, 2] = np.nan, np.nan
    low, high = interval(draws, 0.9)
    assert_allclose(low, [0.05 * 102 - 1, 2 + 0.05 * 100 - 1, np.nan])  # 101 draws 0 .. 100, and 99 draws 2 .. 100
    assert_allclose(high, [0.95 * 102 - 1, 2 + 0.95 * 100 - 1, np.nan])


@pytest.mark.parametrize("metric", METRICS)
def test_table_holds_the_metric_and_the_verdicts_of_delta(metric: str) -> None:
    gram, tasks = synthetic()
    got = table(gram, tasks, metric, replicates=300)
    assert_allclose(got.value, getattr(metrics, metric)(gram, tasks), atol=1e-12)
    assert ((got.low <= got.value + 1e-9) & (got.value <= got.high + 1e-9)).all()
    assert got.verdict.tolist() == [
        ["self", "conflict", "unclear"],
        ["conflict", "self", "unclear"],
        ["unclear", "unclear", "self"],
    ]
    delta = table(gram, tasks, "delta", replicates=300)
    assert_array_equal(got.p, delta.p)
    assert_array_equal(np.isnan(got.q), np.eye(3, dtype=bool))
    assert delta.high[0, 1] < 0 < delta.low[0, 0]


@pytest.mark.parametrize("aggregate", metrics.Aggregate)
@pytest.mark.parametrize("reduce", metrics.Reduce)
@pytest.mark.parametrize("pairs", Pairs)
def test_every_interval_holds_its_value_and_narrows_around_it(pairs: str, reduce: str, aggregate: str) -> None:
    widths = []
    for noise in (0.5, 2.0):
        gram, tasks = synthetic(noise=noise)
        got = table(np.stack([gram, gram]), tasks, pairs=pairs, reduce=reduce, aggregate=aggregate, replicates=300)
        assert_allclose(got.value, metrics.interference(gram, tasks, pairs, reduce))
        assert ((got.low <= got.value) & (got.value <= got.high)).all()
        assert_array_equal(np.diagonal(got.high - got.low), 0)
        widths.append(got.high - got.low)
    off = ~np.eye(3, dtype=bool)
    assert (widths[0][off] < widths[1][off]).all()
    assert (widths[0][off] > 0).all()


def test_table_columns_are_tidy() -> None:
    gram, tasks = synthetic()
    got = table(gram, tasks, replicates=100)
    columns = got.columns()
    assert list(columns)[:6] == ["affected", "stepped", "value", "low", "high", "verdict"]
    assert columns["affected"].tolist()[:4] == ["a", "a", "a", "b"]
    assert columns["stepped"].tolist()[:4] == ["a", "b", "c", "a"]
    assert columns["value"][1] == got.value[0, 1]


def test_a_task_of_noise_is_no_signal() -> None:
    rng = np.random.default_rng(5)
    gradients = rng.normal(size=(60, 500))
    gradients[:30, 0] += 30
    got = table(gradients @ gradients.T, ["a"] * 30 + ["b"] * 30, replicates=300)
    assert got.verdict.tolist() == [["self", "unclear"], ["no-signal", "self"]]
    assert np.isnan(got.q[1]).all()
    assert got.nonpositive[1, 0] > 0.2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("reduce", metrics.Reduce)
@pytest.mark.parametrize("aggregate", metrics.Aggregate)
@pytest.mark.parametrize("norms", metrics.Norms)
def test_a_task_without_gradient_is_no_signal_and_warns_of_nothing(
    metric: str, reduce: str, aggregate: str, norms: str
) -> None:
    gram, tasks = synthetic()
    gram[20:40], gram[:, 20:40] = 0, 0
    got = table(gram, tasks, metric, reduce=reduce, aggregate=aggregate, norms=norms, replicates=50)
    assert got.verdict[1].tolist() == ["no-signal", "self", "no-signal"]
    assert_array_equal(np.isnan(got.low), np.isnan(got.value))
    if metric == "interference":
        assert np.isnan(got.value[1]).all()
    change = compare(gram, 2 * gram, tasks, metric, reduce=reduce, aggregate=aggregate, norms=norms, replicates=50)
    assert (change.verdict[1] == "unclear").all()


@pytest.mark.parametrize("reduce", metrics.Reduce)
def test_a_cell_of_noise_is_told_from_a_conflict(reduce: metrics.Reduce) -> None:
    golden = load_file(MATRICES)
    gradients = np.concatenate([golden[f"gradients.{t}"] for t in range(3)]).astype(np.float64)
    got = table(gradients @ gradients.T, [t for t in "abc" for _ in range(20)], reduce=reduce)
    truth = np.array([[1, -0.09, 0.01], [-0.12, 1, 0.10], [0.02, 0.17, 1]])
    assert ((got.low <= truth) & (truth <= got.high)).all()  # though the mean of ratios prints 3.6 and -7.1 in row c
    assert ((got.low <= got.value) & (got.value <= got.high)).all()
    assert set(got.verdict.ravel()) == {"self", "unclear"}
    assert (got.leverage[2, :2] > 0.5).all()


def test_gradients_without_scatter_are_certain() -> None:
    gradients = np.repeat(np.array([[1.0, 0], [-1, 1], [0, 1]]), 5, axis=0)
    got = table(gradients @ gradients.T, [name for name in "abc" for _ in range(5)], "delta", replicates=50)
    assert_array_equal(got.low, got.value)
    assert got.verdict.tolist() == [
        ["self", "conflict", "unclear"],
        ["conflict", "self", "synergy"],
        ["unclear", "synergy", "self"],
    ]


def test_intervals_do_not_depend_on_the_order_in_which_blocks_or_units_come() -> None:
    gram, tasks = synthetic()
    order = np.random.default_rng(0).permutation(20)
    order = np.concatenate([order, order + 20, order + 40])
    stack = np.stack([gram, 2 * gram + np.eye(60)])
    for aggregate in ("sum", "mean"):
        before = table(stack, tasks, aggregate=aggregate, reduce="ratio-of-means")
        turned = table(stack[::-1], tasks, aggregate=aggregate, reduce="ratio-of-means")
        assert_allclose(turned.low, before.low, rtol=1e-4, atol=1e-6)
        shuffled = table(stack[:, order][:, :, order], tasks, aggregate=aggregate, reduce="ratio-of-means")
        assert_allclose(shuffled.low, before.low, atol=0.05)


def test_blocks_in_single_precision_give_the_intervals_of_double_precision() -> None:
    gram, tasks = synthetic()
    one = table(gram, tasks, reduce="ratio-of-means")
    mean = table(np.stack([gram, gram]).astype(np.float32), tasks, reduce="ratio-of-means", aggregate="mean")
    for name in ("value", "low", "high"):
        assert_allclose(getattr(mean, name), getattr(one, name), atol=1e-5)


def test_more_units_of_the_same_narrow_the_interval() -> None:
    few, many = (table(*synthetic(count=count), "delta") for count in (20, 180))
    ratio = (few.high - few.low) / (many.high - many.low)
    assert_allclose(ratio, 3, rtol=0.4)


def test_two_units_a_task_give_values_and_no_false_certainty() -> None:
    gram = np.array([[2.0, 1, 0.5, 0.4], [1, 2, 0.1, 0.3], [0.5, 0.1, 2, 1], [0.4, 0.3, 1, 2]])
    for metric in METRICS:
        got = table(gram, list("aabb"), metric, replicates=50)
        assert_allclose(got.value, getattr(metrics, metric)(gram, list("aabb")))
        assert got.verdict.tolist() == [["self", "no-signal"], ["no-signal", "self"]]


def test_split_half_null_is_one_and_widens_with_noise() -> None:
    gram, tasks = synthetic(count=40)
    calm = split_half_null(gram, tasks)
    noisy = split_half_null(synthetic(count=40, noise=4)[0], tasks)
    assert calm.tasks == ("a", "b", "c")
    assert_allclose(calm.mean, 1, atol=0.05)
    assert (calm.low < 1).all() and (calm.high > 1).all()
    assert ((noisy.high - noisy.low) > 2 * (calm.high - calm.low)).all()


def test_split_half_null_by_literal_halves() -> None:
    gram, tasks = synthetic(count=6)
    stack = np.stack([gram, gram + np.eye(18)])
    got = split_half_null(stack, tasks, splits=1, seed=7, aggregate="mean", reduce="median-of-ratios")
    half = np.random.default_rng(7).permuted(np.arange(6)[None] < 3, axis=1)[0]
    order = np.concatenate([np.flatnonzero(half), np.flatnonzero(~half)])
    literal = stack[:, order][:, :, order]
    expected = metrics.interference(literal, list("xxxyyy"), aggregate="mean", reduce="median-of-ratios")
    assert_allclose(got.mean[0], expected[0, 1])
    assert_allclose([got.low[0], got.high[0]], expected[0, 1])


@pytest.mark.parametrize("metric", ["interference", "delta", "cosine", "curvature"])
@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_a_run_beside_itself_has_not_changed(metric: str, aggregate: str) -> None:
    gram, tasks = synthetic()
    got = compare(gram, gram, tasks, metric, aggregate=aggregate, replicates=100)
    assert_array_equal(got.difference, np.zeros((3, 3)))
    assert (got.verdict == "unclear").all()


@pytest.mark.parametrize("metric", ["interference", "delta", "pair_cosine"])
def test_a_cured_conflict_is_higher_and_nothing_else_is(metric: str) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(120, 30)) / np.sqrt(30)
    before, after = noise.copy(), noise.copy()
    before[:, 0] += np.repeat([2.0, -1, 0], 40)
    after[:, 0] += np.repeat([2.0, 1, 0], 40)
    before[40:80, 1] += 2
    after[40:80, 1] += 2
    before[80:, 2] += 2
    after[80:, 2] += 2
    tasks = [name for name in "abc" for _ in range(40)]
    got = compare(before @ before.T, after @ after.T, tasks, metric, reduce="ratio-of-means")
    assert got.verdict[0, 1] == got.verdict[1, 0] == "higher"
    assert np.delete(got.verdict.ravel(), [1, 3]).tolist() == ["unclear"] * 7
    assert_allclose(got.difference, got.b - got.a)
    back = compare(after @ after.T, before @ before.T, tasks, metric, reduce="ratio-of-means")
    assert back.verdict[0, 1] == "lower"
    assert_allclose([back.low, back.high], [-got.high, -got.low], atol=1e-12)


def test_pairing_the_resamples_narrows_the_difference() -> None:
    gram, tasks = synthetic()
    got = compare(gram, gram + 0.01 * np.eye(60), tasks, "cosine")
    alone = table(gram, tasks, "cosine")
    off = ~np.eye(3, dtype=bool)
    assert ((got.high - got.low)[off] < 0.1 * (alone.high - alone.low)[off]).all()


def test_a_ratio_without_signal_is_not_compared() -> None:
    rng = np.random.default_rng(5)
    gradients = rng.normal(size=(60, 500))
    gradients[:30, 0] += 30
    gram = gradients @ gradients.T
    got = compare(gram, gram * 2 + 0.1 * np.eye(60), ["a"] * 30 + ["b"] * 30)
    assert np.isnan(got.q[1]).all()
    assert (got.verdict[1] == "unclear").all()


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"level": 95}, ConfigError, "level is 95, but must lie between 0 and 1"),
        ({"replicates": 1}, ConfigError, "replicates is 1, but a bootstrap needs at least 2"),
        ({"metric": "angle"}, ConfigError, "metric is 'angle', but must be one of 'interference'"),
        ({"pairs": "none"}, ConfigError, "pairs is 'none', but must be one of 'leave-one-out'"),
    ],
)
def test_bad_settings_say_what_is_allowed(settings: dict[str, Any], kind: type[Exception], message: str) -> None:
    gram, tasks = synthetic()
    with pytest.raises(kind, match=message):
        table(gram, tasks, **settings)
    with pytest.raises(kind, match=message):
        compare(gram, gram, tasks, **settings)


def test_split_half_null_needs_two_units_a_half() -> None:
    with pytest.raises(ScopeError, match="a split-half null needs 4 units per task, but 'b' has 3"):
        split_half_null(np.eye(7), list("aaaabbb"))


def test_split_half_null_of_a_task_without_gradient_is_nan() -> None:
    gram, tasks = synthetic(count=6)
    gram[:6], gram[:, :6] = 0, 0
    got = split_half_null(gram, tasks, splits=10)
    assert np.isnan(got.mean[0]) and np.isnan(got.low[0])
    assert not np.isnan(got.mean[1:]).any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("reduce", metrics.Reduce)
@pytest.mark.parametrize("aggregate", metrics.Aggregate)
def test_two_units_warn_of_nothing(reduce: str, aggregate: str) -> None:
    gram = np.array([[2.0, 1, 0.5, 0.4], [1, 2, 0.1, 0.3], [0.5, 0.1, 2, 1], [0.4, 0.3, 1, 2]])
    for seed in range(8):  # in some, neither resample has a second unit
        got = table(gram, list("aabb"), reduce=reduce, aggregate=aggregate, replicates=2, seed=seed)
        assert np.isfinite(got.value).all() and not (got.low > got.high).any()


def test_tables_of_one_scope_share_resamples_and_nothing_else() -> None:
    gram, tasks = synthetic()
    shared, other = (Resamples(matrix, tasks, replicates=100, seed=5) for matrix in (gram, gram + np.eye(60)))
    for _ in range(2):  # in any order, and again
        for metric in METRICS:
            for reduce in ("mean-of-ratios", "ratio-of-means"):
                estimand = Estimand(metric, reduce=reduce)
                options: dict[str, Any] = {"reduce": reduce, "replicates": 100, "seed": 5}
                pairs = [
                    (table_of(shared, estimand), table(gram, tasks, metric, **options)),
                    (change_of(shared, other, estimand), compare(gram, gram + np.eye(60), tasks, metric, **options)),
                ]
                for got, alone in pairs:
                    for name, values in got.columns().items():
                        assert_array_equal(values, alone.columns()[name], err_msg=f"{metric} {name}")


def test_names_keep_their_last_characters() -> None:
    gram, tasks = synthetic()
    names = [{"a": "x", "b": "x\0", "c": "x\0\0"}[task] for task in tasks]
    for found in (table(gram, names, replicates=10), compare(gram, gram, names, replicates=10)):
        assert list(dict.fromkeys(found.columns()["affected"])) == ["x", "x\0", "x\0\0"]


def test_a_value_is_at_odds_with_a_verdict_by_its_sign_or_by_its_interval() -> None:
    cells = [
        ("conflict", 0.5, 0.1, 1.0, "sign"), ("conflict", 0.5, -1.0, 1.0, "sign"), ("lower", 0.5, 0.1, 1.0, "sign"),
        ("conflict", -0.5, -1.0, 0.1, "interval"), ("conflict", 0.0, -1.0, 1.0, "interval"),
        ("conflict", -0.5, -1.0, -0.1, ""), ("synergy", -0.1, -0.2, 0.3, "sign"), ("synergy", 0.2, 0.1, 0.3, ""),
        ("synergy", 0.2, 0.0, 0.3, "interval"), ("higher", 0.5, -0.1, 1.0, "interval"), ("unclear", 0.5, 0.1, 1.0, ""),
        ("no-signal", 0.5, -1.0, 1.0, ""), ("self", 1.0, 1.0, 1.0, ""), ("conflict", np.nan, np.nan, np.nan, ""),
        ("conflict", -0.5, np.nan, np.nan, ""),
    ]  # fmt: skip
    verdict, *numbers = (np.array(column) for column in list(zip(*cells, strict=True))[:4])
    assert at_odds(*numbers, verdict).tolist() == [cell[4] for cell in cells]
    assert at_odds(*numbers, verdict, even=None).tolist() == [""] * len(cells)
    value, low, high = (0.5 - column for column in numbers)
    rates = at_odds(value, high, low, verdict, even=0.5, helps=-1)
    assert rates.tolist() == [cell[4] for cell in cells]


def test_no_cell_of_delta_is_at_odds_with_its_own_verdict() -> None:
    gradients = np.random.default_rng(3).normal(size=(60, 20)) + 0.4 * np.eye(3).repeat(20, axis=0) @ np.ones((3, 20))
    got = table(gradients @ gradients.T, [t for t in "abc" for _ in range(20)], "delta", replicates=200)
    assert {"synergy"} <= set(got.verdict.ravel()) and not (got.at_odds != "").any()
