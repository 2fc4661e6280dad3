"""Ranking: against scipy, on the tasks and on resamples written out; its intervals, and where there is none."""

import numpy as np
import pytest
from scipy import stats

from interference.errors import ConfigError, ScopeError
from interference.statistics.agreement import agreement
from interference.statistics.ranking import SCORES, Ranking, Score, _correlations


def matrices(seeds=3, tasks=6, noise=0.5, seed=0):
    """A common matrix, and one of every seed around it."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(tasks, tasks))
    return common, common + noise * rng.normal(size=(seeds, tasks, tasks))


def test_scores_are_means_over_seeds_of_those_of_scipy():
    common, truth = matrices()
    truth[:, 0, 1] = truth[:, 0, 2]  # a tie
    found = Ranking(truth, replicates=10).of(common)
    off = ~np.eye(6, dtype=bool)
    for name, function in {"spearman": stats.spearmanr, "kendall": stats.kendalltau}.items():
        over = [function(common[off], own[off]).statistic for own in truth]
        rows = [np.mean([function(common[i, off[i]], own[i, off[i]]).statistic for i in range(6)]) for own in truth]
        assert found[f"{name}_overall"].value == pytest.approx(np.mean(over))
        assert found[f"{name}_within"].value == pytest.approx(np.mean(rows))
    agreed = [agreement(common, own) for own in truth]
    assert found["spearman_within"].value == pytest.approx(np.mean([each.within for each in agreed]))


def test_an_item_counts_as_often_as_its_weight_says():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=7), rng.integers(0, 4, size=7).astype(float)
    weights = rng.multinomial(7, np.full(7, 1 / 7), size=30).astype(float)
    spearman, kendall = _correlations(x, y, weights)
    for k, times in enumerate(weights.astype(int)):
        a, b = np.repeat(x, times), np.repeat(y, times)
        if (times > 0).sum() < 3 or np.ptp(b) == 0:
            assert np.isnan(spearman[k]) and np.isnan(kendall[k])
        else:
            assert spearman[k] == pytest.approx(stats.spearmanr(a, b).statistic)
            assert kendall[k] == pytest.approx(stats.kendalltau(a, b).statistic)


def test_seeds_agree_as_they_predict_each_other_and_the_ceiling_is_the_root():
    _, truth = matrices()
    ranking = Ranking(truth, replicates=10)
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = np.mean([agreement(truth[a], truth[b]).within for a, b in pairs])
    assert ranking.agreement["spearman_within"].value == pytest.approx(expected)
    assert ranking.ceiling["spearman_within"].value == pytest.approx(expected**0.5)
    assert set(ranking.agreement) == set(ranking.ceiling) == set(SCORES)


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_the_truth_without_its_noise_reaches_the_ceiling(noise):
    """A prediction that knows all but the noise of seeds scores about the ceiling, not above and not below."""
    shares = []
    for seed in range(40):
        common, truth = matrices(tasks=8, noise=noise, seed=seed)
        ranking = Ranking(truth, replicates=2)
        shares.append(ranking.of(common)["spearman_within"].value / ranking.ceiling["spearman_within"].value)
    assert 0.93 <= np.median(shares) <= 1.07


def test_two_seeds_agree_without_an_interval():
    for seed in range(8):
        ranking = Ranking(matrices(seeds=2, tasks=8)[1], seed=seed)
        score = ranking.agreement["spearman_within"]
        assert np.isfinite(score.value) and np.isnan(score.interval()).all()
        assert np.isnan(
            ranking.of(matrices(tasks=8)[0])["spearman_within"].of(ranking.ceiling["spearman_within"]).value
        )


def test_only_ranks_count_and_a_sign_turns_them():
    common, truth = matrices(tasks=5)
    ranking = Ranking(truth, replicates=50)
    here, scaled, turned = (ranking.of(each) for each in (common, np.exp(common), -common))
    for name in SCORES:
        assert scaled[name].value == pytest.approx(here[name].value)
        assert turned[name].value == pytest.approx(-here[name].value)
        np.testing.assert_allclose(turned[name].draws, -here[name].draws)


def test_a_perfect_prediction_of_a_sure_truth_is_surely_perfect():
    common, truth = matrices(noise=0)
    ranking = Ranking(truth)
    for name, score in ranking.of(common).items():
        assert score.value == pytest.approx(1) and score.interval() == pytest.approx((1, 1))
        assert score.of(ranking.ceiling[name]).interval() == pytest.approx((1, 1))


def test_intervals_hold_what_is_true_of_all_tasks():
    """Tasks of a population in which a prediction and the truth correlate by 0.8: intervals hold its Spearman's."""
    held, expected = [], 6 / np.pi * np.arcsin(0.8 / 2)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        predicted = rng.normal(size=(12, 12))
        truth = 0.8 * predicted + 0.6 * rng.normal(size=(12, 12))
        low, high = (
            Ranking(np.stack([truth] * 3), replicates=300, seed=seed).of(predicted)["spearman_overall"].interval()
        )
        held.append(low <= expected <= high)
    assert np.mean(held) >= 0.85


def test_noise_is_not_called_a_prediction():
    """Of predictions that know nothing, few have an interval above 0."""
    called = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        truth = rng.normal(size=(8, 8)) + 0.3 * rng.normal(size=(3, 8, 8))
        low, _ = Ranking(truth, replicates=300).of(rng.normal(size=(8, 8)))["spearman_within"].interval()
        called.append(low > 0)
    assert np.mean(called) <= 0.07


def test_what_is_no_number_is_left_out():
    common, truth = matrices()
    holed = common.copy()
    holed[0] = np.nan
    rows = [
        np.mean([stats.spearmanr(np.delete(common[i], i), np.delete(own[i], i)).statistic for i in range(1, 6)])
        for own in truth
    ]
    assert Ranking(truth, replicates=5).of(holed)["spearman_within"].value == pytest.approx(np.mean(rows))
    nothing = Ranking(truth, replicates=5).of(np.full((6, 6), np.nan))["spearman_within"]
    assert np.isnan(nothing.value) and np.isnan(nothing.interval()).all()


def test_four_tasks_have_no_interval():
    """Of four tasks, a resample rarely holds three others for a row: what is left would be of the seeds alone."""
    common, truth = matrices(tasks=4)
    score = Ranking(truth).of(common)["spearman_within"]
    assert np.isfinite(score.value) and np.isfinite(score.draws).mean() < 0.5
    assert np.isnan(score.interval()).all()
    assert np.isfinite(Ranking(matrices()[1]).of(matrices()[0])["spearman_within"].interval()).all()


def test_two_tasks_have_no_ranks():
    found = Ranking(np.ones((2, 2, 2)), replicates=5).of(np.ones((2, 2)))
    assert all(np.isnan(score.value) for score in found.values())


def test_no_share_of_a_ceiling_that_is_not_surely_above_0():
    """Resamples without agreement would be dropped, and what is left would look sure."""
    one, unsure = Score(0.3, np.full(1000, 0.3)), Score(0.02, np.repeat([0.05, -0.2], [550, 450]))
    share = one.of(unsure)
    assert np.isnan(share.value) and np.isnan(share.interval()).all()
    assert one.of(Score(0.6, np.full(1000, 0.6))).interval() == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 4, 3)])
def test_a_truth_of_another_shape(shape):
    with pytest.raises(ScopeError, match="must be at least 2 seeds x tasks x tasks"):
        Ranking(np.ones(shape))


def test_a_prediction_of_another_shape():
    with pytest.raises(ScopeError, match=r"the prediction is \(3, 3\), but the truth \(4, 4\)"):
        Ranking(np.ones((2, 4, 4))).of(np.ones((3, 3)))


def test_a_level_that_is_no_share():
    with pytest.raises(ConfigError, match="level"):
        Score(0.5, np.ones(3)).interval(1.5)
