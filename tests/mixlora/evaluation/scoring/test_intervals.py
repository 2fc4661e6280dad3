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


# --- groups of dependent units ---


def soft(n=20):
    rng = np.random.default_rng(0)
    whole = (rng.random(n) < 0.8).astype(float)
    return np.stack([np.ones(n), whole, whole * rng.choice([0, 0.3, 0.6, 0.9, 1], n)], axis=1)


def clustered(rng, pictures, each, p=0.8, intraclass=0.3):
    """Right or wrong answers to `each` questions about every picture, by the beta-binomial law, and their pictures."""
    often = 1 / intraclass - 1
    picture = np.repeat(np.arange(pictures), each)
    right = rng.random(len(picture)) < rng.beta(p * often, (1 - p) * often, pictures)[picture]
    return np.stack([np.ones(len(picture)), right], axis=1).astype(float), picture


def within(columns, groups):
    """Sums within groups, group by group."""
    return np.array([columns[groups == group].sum(axis=0) for group in np.unique(groups)])


@pytest.mark.parametrize("shares", [{"a": Share(2, 1)}, {"a": Share(2, 1, 200)}, {"a": Dice(2, 1)}])
def test_groups_of_one_change_nothing(shares):
    """To the bit, in any order."""
    columns, alone = soft(), np.random.default_rng(1).permutation(20)
    paired = np.hstack([columns, columns * [1, 1, 0.5]])
    assert estimates(Sample(columns, alone), shares, 200, 3) == estimates(Sample(columns), shares, 200, 3)
    assert differences(Sample(paired, alone), shares, 200, 3) == differences(Sample(paired), shares, 200, 3)


def test_independent_units_have_the_intervals_of_before_there_were_groups():
    columns, shares = soft(), {"a": Share(2, 1)}
    score = estimates(Sample(columns, np.arange(20)), shares, 200, 3)["a"]
    paired = Sample(np.hstack([columns, columns * [1, 1, 0.5]]), np.arange(20))
    change = differences(paired, shares, 200, 3)["a"]
    assert [score.value, score.low, score.high] == [0.6071428571428571, 0.38894667420774176, 0.8]
    assert [change.value, change.low, change.high] == [-0.30357142857142855, -0.46704325321593526, -0.06420674678406474]


def test_the_order_of_units_does_not_matter():
    columns, groups = soft(), np.arange(20) % 6
    order = np.random.default_rng(2).permutation(20)
    one, other = Sample(columns, groups), Sample(columns[order], 7 - groups[order])
    assert np.array_equal(one.rows, other.rows) and np.array_equal(one.counts, other.counts)


def test_a_resample_of_groups_has_the_cluster_robust_variance():
    columns, groups = clustered(np.random.default_rng(0), 60, 6)
    sums = within(columns, groups)
    mean, n = columns[:, 1].mean(), len(columns)
    robust = ((sums[:, 1] - mean * sums[:, 0]) ** 2).sum() / n**2
    draws = Share(1, 0).of(Sample(columns, groups).resampled(50_000, seed=1))
    assert draws.mean() == pytest.approx(mean, abs=1e-3)
    assert draws.var() == pytest.approx(robust, rel=0.03)
    assert robust > 1.5 * mean * (1 - mean) / n


@pytest.mark.parametrize(("low", "copies"), [(0, 1.92), (-1, 1)])
def test_a_padded_variance_is_the_cluster_robust_one_of_the_groups_with_those_added(low, copies):
    rng = np.random.default_rng(3)
    groups = np.sort(rng.integers(0, 9, 40))
    columns = np.stack([np.ones(40), rng.choice([low, 0.25, 1], 40)], axis=1)
    sample = Sample(columns, groups)
    size = intervals.added_size(sample, lambda rows: rows[:, 1], 0)
    sums = np.vstack([within(columns, groups), [size, size], [size, low * size]])
    counts = np.array([*[1] * (len(sums) - 2), copies, copies])
    n = counts @ sums[:, 0]
    mean = counts @ sums[:, 1] / n
    expected = mean, counts @ (sums[:, 1] - mean * sums[:, 0]) ** 2 / n, n
    assert intervals.padded(sample, lambda rows: rows[:, 1], 0, low, copies) == pytest.approx(expected)


def test_the_size_of_an_added_group_by_hand():
    """Groups of three, all alike within: three dependent units are worth one. As if drawn alone: one is worth one."""
    right = np.repeat([1, 0, 1, 1, 0, 0, 1, 0], 3)
    columns, groups = np.stack([np.ones(24), right], axis=1).astype(float), np.repeat(np.arange(8), 3)
    value = lambda rows: rows[:, 1]  # noqa: E731
    # variances of sums: 8 groups of 3 deviate by 1.5, 24 units by 0.5; each with n / (n - 1)
    effect = (8 * 2.25 * 8 / 7) / (24 * 0.25 * 24 / 23)
    assert intervals.added_size(Sample(columns, groups), value, 0) == pytest.approx(np.sqrt(3 * min(effect, 3)))
    apart = np.tile(np.arange(8), 3)  # each group now has 1, 2 or 3 of eight different ones
    sums = within(columns, apart)[:, 1]
    effect = ((sums - 1.5) ** 2).sum() * 8 / 7 / (24 * 0.25 * 24 / 23)
    assert intervals.added_size(Sample(columns, apart), value, 0) == pytest.approx(np.sqrt(3 * np.clip(effect, 1, 3)))
    assert intervals.added_size(Sample(columns, np.zeros(24, int)), value, 0) == 24
    assert intervals.added_size(Sample(columns), value, 0) == 1


def test_all_right_in_groups_is_as_certain_as_one_answer_a_group():
    """Nothing is known of how answers about one picture go together, so they count as one."""
    columns = binary(60, 60)
    grouped = wilson(Sample(columns, np.arange(60) // 6), Share(1, 0))
    assert grouped == pytest.approx(wilson(Sample(binary(10, 10)), Share(1, 0)))


def test_doubled_answers_tell_no_more():
    """An interval of answers that are all there twice is that of the answers, once they are many."""
    columns = binary(300, 400)
    twice, groups = np.repeat(columns, 2, axis=0), np.repeat(np.arange(400), 2)
    once = estimates(Sample(columns), ACCURACY, 4000, seed=0)["accuracy"]
    both = estimates(Sample(twice, groups), ACCURACY, 4000, seed=0)["accuracy"]
    assert (both.low, both.high) == pytest.approx((once.low, once.high), abs=0.004)
    assert both.high - both.low > 1.3 * np.diff(wilson(Sample(twice), Share(1, 0)))[0]


@pytest.mark.parametrize(("pictures", "p"), [(20, 0.8), (50, 0.5), (50, 0.9)])
def test_six_questions_a_picture_are_covered(pictures, p):
    """Scores and paired differences, of answers with an intraclass correlation of 0.3."""
    rng, held, plain = np.random.default_rng(0), np.zeros(2), np.zeros(2)
    for _ in range(400):
        first, picture = clustered(rng, pictures, 6, p)
        second = np.where(rng.random((len(first), 1)) < 0.5, first, clustered(rng, pictures, 6, p)[0])
        for counts, groups in ((held, picture), (plain, None)):
            score = estimates(Sample(first, groups), ACCURACY, 200, seed=0)["accuracy"]
            change = differences(Sample(np.hstack([first, second]), groups), ACCURACY, 200, seed=0)["accuracy"]
            counts += [score.low <= p <= score.high, change.low <= 0 <= change.high]
    assert (held / 400 >= 0.92).all() and (held / 400 <= 0.995).all(), held / 400
    assert plain[0] / 400 < 0.85 and plain[1] < held[1], plain / 400


def test_f1_of_six_questions_a_picture_is_covered():
    rng, held, plain, shares = np.random.default_rng(0), 0, 0, {"f1": Dice(1, 0)}
    for _ in range(300):
        right, picture = clustered(rng, 50, 6, 0.9)
        true = rng.random(len(right)) < 0.5
        yes = np.where(right[:, 1] > 0, true, ~true)
        columns = np.stack([yes | true, yes & true], axis=1).astype(float)
        for groups in (picture, None):
            found = estimates(Sample(columns, groups), shares, 200, seed=0)["f1"]
            inside = found.low <= 0.9 <= found.high  # true positives 0.45; false ones of either kind 0.05
            held, plain = held + inside * (groups is not None), plain + inside * (groups is None)
    assert 0.92 <= held / 300 <= 0.995 and plain / 300 < 0.88, (held / 300, plain / 300)
