"""Intervals: how often they hold the truth, closed forms, and a bootstrap unit by unit."""

import numpy as np
import pytest
from scipy import stats

from mixlora.common.errors import ConfigError
from mixlora.evaluation.scoring import intervals
from mixlora.evaluation.scoring.intervals import (
    Dice,
    Sample,
    Share,
    adjusted,
    around,
    differences,
    estimates,
    percentiles,
    wilson,
)

ACCURACY = {"accuracy": Share(1, 0)}


def binary(right, n):
    return np.stack([np.ones(n), np.arange(n) < right], axis=1).astype(float)


def interval(right, n, draws=400):
    found = estimates(Sample(binary(right, n)), ACCURACY, draws, seed=0)["accuracy"]
    return found.low, found.high


@pytest.mark.parametrize("n", [30, 60, 100])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.98])
def test_accuracy_is_covered(n, p):
    """Exactly: an interval depends on the number of right answers alone, whose law is known."""
    held = [low <= p <= high for low, high in (interval(right, n) for right in range(n + 1))]
    assert 0.92 <= stats.binom.pmf(np.arange(n + 1), n, p) @ held <= 0.995


@pytest.mark.parametrize("n", [30, 60])
@pytest.mark.parametrize(("gain", "loss"), [(0.2, 0.2), (0.15, 0.05), (0.3, 0.1), (0.05, 0), (0.02, 0.02)])
def test_a_paired_difference_is_covered(n, gain, loss):
    """Exactly, by the law of how many examples only the first and only the second gets right."""
    coverage = 0.0
    for better in range(n + 1):
        for worse in range(n + 1 - better):
            weight = stats.multinomial.pmf([better, worse, n - better - worse], n, [gain, loss, 1 - gain - loss])
            if weight > 1e-5:
                coverage += weight * covered(better, worse, n, gain - loss)
    assert coverage >= 0.92
    if gain + loss > 0.1:  # where hardly an example differs, an interval of some width holds nearly always
        assert coverage <= 0.995


def covered(better, worse, n, truth):
    first, second = np.ones((n, 2)), np.ones((n, 2))
    first[:better, 1], second[better : better + worse, 1] = 0, 0
    found = differences(Sample(np.hstack([first, second])), ACCURACY, draws=300, seed=1)["accuracy"]
    return found.low <= truth + 1e-12 and truth - 1e-12 <= found.high


@pytest.mark.parametrize("values", [(0, 1 / 3, 2 / 3, 1), (0, 0.25, 1)])
@pytest.mark.parametrize("n", [30, 100])
def test_a_mean_of_soft_credit_is_covered(values, n):
    rng, held, p = np.random.default_rng(n), 0, np.array([1.0, *[1] * (len(values) - 2), 6])
    p /= p.sum()
    for _ in range(300):
        columns = np.stack([np.ones(n), rng.choice(values, n, p=p)], axis=1)
        found = estimates(Sample(columns), ACCURACY, 300, seed=0)["accuracy"]
        held += found.low <= p @ values <= found.high
    assert 0.92 <= held / 300 <= 0.995


def test_f1_is_covered():
    rng, held, shares = np.random.default_rng(0), 0, {"f1": Dice(1, 0)}
    for _ in range(300):
        true, said = rng.random(60) < 0.5, rng.random(60) < 0.9
        yes = np.where(said, true, ~true)
        columns = np.stack([yes | true, yes & true], axis=1).astype(float)
        found = estimates(Sample(columns), shares, 300, seed=0)["f1"]
        held += found.low <= 0.9 <= found.high  # true positives 0.45; false ones of either kind 0.05
    assert 0.92 <= held / 300 <= 0.995


@pytest.mark.parametrize(("right", "n"), [(20, 20), (0, 20), (15, 20), (1, 300), (1, 1)])
def test_wilson_is_wilsons(right, n):
    known = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(Sample(binary(right, n)), Share(1, 0)) == pytest.approx((known.low, known.high), abs=1e-9)


def test_all_right_is_not_certain():
    found = estimates(Sample(binary(20, 20)), ACCURACY, 200, seed=0)["accuracy"]
    assert found.value == found.high == 1
    assert found.low == pytest.approx(20 / (20 + 1.959964**2))


def test_soft_credit_narrows_wilsons_interval():
    half = np.stack([np.ones(50), np.full(50, 0.5)], axis=1)
    low, high = wilson(Sample(half), Share(1, 0))
    assert 0.4 < low < 0.5 < high < 0.6
    hard_low, hard_high = wilson(Sample(binary(25, 50)), Share(1, 0))
    assert hard_low < low < high < hard_high


def test_a_perfect_score_on_its_scale():
    low, high = wilson(Sample(binary(20, 20)), Share(1, 0, scale=200))
    assert (low, high) == pytest.approx((200 * 20 / (20 + 1.959964**2), 200))
    low, _ = wilson(Sample(binary(20, 20)), Dice(1, 0))
    share = 20 / (20 + 1.959964**2)
    assert low == pytest.approx(2 * share / (1 + share))


def test_an_adjusted_difference_by_hand():
    # 10 units, 3 gained, 1 lost: (3 - 1) / 12, variance ((3 + 1 + 2) / 12 - (1/6)^2) / 12
    first, second = np.ones((10, 2)), np.ones((10, 2))
    first[:3, 1], second[3, 1] = 0, 0
    half = 1.959964 * np.sqrt((0.5 - 1 / 36) / 12)
    found = adjusted(Sample(np.hstack([first, second])), Share(1, 0), Share(3, 2))
    assert found == pytest.approx((1 / 6 - half, 1 / 6 + half))


def test_a_resample_is_one_of_units(monkeypatch):
    """The grouped, chunked draws have the mean and covariance of sums over units drawn one by one."""
    columns = np.random.default_rng(0).integers(0, 3, (40, 3)) / 2
    monkeypatch.setattr(intervals, "_WEIGHTS_AT_ONCE", 1000)  # chunks that do not divide the draws
    grouped = Sample(columns).resampled(20_011, seed=1)
    single = columns[np.random.default_rng(2).integers(0, 40, (20_000, 40))].sum(axis=1)
    assert grouped.shape == (20_011, 3)
    np.testing.assert_allclose(grouped.mean(axis=0), columns.sum(axis=0), atol=0.15)
    np.testing.assert_allclose(np.cov(grouped.T), np.cov(single.T), atol=0.35)
    np.testing.assert_allclose(np.cov(grouped.T), 40 * np.cov(columns.T, bias=True), atol=0.35)


def test_many_units_are_few_rows():
    columns = np.stack([np.ones(100_000), np.arange(100_000) % 4 == 0], axis=1).astype(float)
    sample = Sample(columns)
    assert sample.rows.shape == (2, 2)
    found = estimates(sample, ACCURACY, 1000, seed=0)["accuracy"]
    half = 1.96 * np.sqrt(0.25 * 0.75 / 100_000)
    assert (found.low, found.high) == pytest.approx((0.25 - half, 0.25 + half), abs=3e-4)


def test_undefined_draws_are_passed_over():
    draws = np.array([np.nan, *np.arange(1, 40)])
    assert percentiles(draws) == pytest.approx((1, 39))
    assert np.isnan(percentiles(np.full(3, np.nan))).all()
    nowhere = np.stack([np.zeros(5), np.zeros(5)], axis=1)
    found = estimates(Sample(nowhere), ACCURACY, 10, seed=0)["accuracy"]
    assert np.isnan([found.value, found.low, found.high]).all()


def test_around_holds_everything():
    assert around(0.5, (0.6, 0.7), (np.nan, np.nan)) == intervals.Estimate(0.5, 0.5, 0.7)


def test_draws_must_be_some():
    with pytest.raises(ConfigError, match="draws is 0, but an interval needs at least 1"):
        Sample(binary(1, 2)).resampled(0, seed=0)
