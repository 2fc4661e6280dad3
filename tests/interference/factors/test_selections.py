"""What selections say of tasks: closed forms on selections made by hand, slow references, and invariances."""

from itertools import permutations
from math import log2

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import mutual_info_score

from interference.errors import MeasurementError, ScopeError
from interference.factors import neighbours, selections
from tests.support.selections import activated, chosen, random_mixture

QUICK = {"permutations": 100}


def test_multi_hots_and_standardised_activations():
    made = chosen("ab", [[2, 0], [1, 3]], [[0], [1]], factors=4)
    assert selections.features(made).tolist() == [[1, 0, 1, 0, 1, 0, 0, 0], [0, 1, 0, 1, 0, 1, 0, 0]]
    lora = activated("abcd", [[1, 5], [3, 5], [1, 5], [3, 5]])
    assert selections.features(lora).tolist() == [[-1, 0], [1, 0], [-1, 0], [1, 0]]  # what does not vary says nothing


def test_usage_of_factors_by_hand():
    made = chosen("aabb", [[0, 1], [0, 2], [0, 1], [0, 2]], [[0, 1], [2, 3], [0, 1], [2, 3]], layers=[7, 7])
    assert {name: share.tolist() for name, share in selections.shares(made).items()} == {
        "b0": [0.5, 0.25, 0.25, 0],
        "b1": [0.25] * 4,
    }
    found = selections.usage(made).set_index("name")
    assert found["entropy"].tolist() == [1.5, 2]
    assert found["evenness"].tolist() == [0.75, 1]
    assert found["effective"].tolist() == [2**1.5, 4]
    assert found["largest"].tolist() == [0.5, 0.25]
    assert found["dead"].tolist() == [1, 0]
    (layer,) = selections.usage_by_layer(made).to_dict("records")
    assert layer == {"component": "language", "layer": 7, "blocks": 2, "factors": 8, "dead": 1, "evenness": 0.875,
                     "largest": 0.375}  # fmt: skip


def test_usage_of_rank_directions_is_the_share_of_squared_activation():
    made = activated("ab", [[3, 0, 1], [-3, 0, 1]], [[0], [0]])
    assert selections.shares(made)["b0"] == pytest.approx([0.9, 0, 0.1])
    found = selections.usage(made)
    assert found["dead"].tolist() == [1, 1] and found["factors"].tolist() == [3, 1]
    assert found["entropy"][0] == pytest.approx(-0.9 * log2(0.9) - 0.1 * log2(0.1))


def test_tasks_that_choose_alike_tell_nothing():
    made = chosen("aaaabbbb", [[0, 1], [2, 3]] * 4)
    (row,) = selections.information(made, **QUICK).to_dict("records")
    assert row["bits"] == pytest.approx(0, abs=1e-12) and row["p"] == 1


@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_factors_of_one_task_alone_give_the_task_away(tasks):
    names = [name for name in "abcd"[:tasks] for _ in range(8)]
    made = chosen(names, [["abcd".index(name) * 2, "abcd".index(name) * 2 + 1] for name in names], factors=8)
    (row,) = selections.information(made, **QUICK).to_dict("records")
    assert row["bits"] == pytest.approx(log2(tasks))
    assert row["p"] == pytest.approx(1 / 101) and 0 < row["null"] < row["null_high"] < log2(tasks) / 2
    assert row["corrected"] == pytest.approx(row["bits"] - row["null"])


def test_information_is_that_of_the_table_of_choices():
    made = random_mixture(planted=0.4)
    found = selections.information(made, **QUICK)
    for row, values in zip(found.itertuples(), made.values.values(), strict=True):
        slow = mutual_info_score(np.repeat(made.tasks, 2), values.ravel()) / np.log(2)
        assert row.bits == pytest.approx(slow, abs=1e-9)


def test_bias_is_what_the_null_takes_away_and_p_is_uniform_where_nothing_is_planted():
    blocks = random_mixture(seed=3, examples=(10, 10, 10), blocks=200)
    found = selections.information(blocks, permutations=200)
    assert found["bits"].mean() > 0.05
    assert found["corrected"].mean() == pytest.approx(0, abs=0.006)
    assert 0.01 < (found["p"] <= 0.05).mean() < 0.1 and found["q"].min() > 0.05
    planted = random_mixture(seed=3, examples=(10, 10, 10), blocks=20, planted=0.7)
    assert (selections.information(planted, permutations=200)["q"] < 0.05).all()


def test_information_is_the_same_however_permutations_are_grouped(monkeypatch):
    made = random_mixture()
    whole = selections.information(made, permutations=60, seed=4)
    assert whole.equals(selections.information(made, permutations=60, seed=4))
    monkeypatch.setattr(selections, "_TOGETHER", 7)
    assert whole.equals(selections.information(made, permutations=60, seed=4))


def test_overlap_by_hand():
    made = chosen("aabb", [[0, 1], [1, 0], [1, 2], [2, 3]], [[0, 1], [0, 1], [2, 3], [2, 3]])
    found = selections.overlap(made)
    assert found.loc["a", "a"] == pytest.approx(1)
    assert found.loc["b", "b"] == pytest.approx((0.5 + 1) / 2)
    assert found.loc["a", "b"] == found.loc["b", "a"] == pytest.approx((0.25 + 0) / 2)


@pytest.mark.parametrize("mixture", [True, False])
def test_overlap_is_the_mean_over_pairs_of_different_examples(mixture):
    made = random_mixture()
    if not mixture:
        random = np.random.default_rng(0)
        made = activated(made.tasks, *(random.normal(size=(len(made.tasks), rank)) for rank in (3, 2)))
    expected = dict.fromkeys([(s, t) for s in "abc" for t in "abc"], 0.0)
    counts = dict.fromkeys(expected, 0)
    parts = [part.astype(float) for _, part in made.parts()]
    for u, v in permutations(range(len(made.tasks)), 2):
        pair = made.tasks[u], made.tasks[v]
        counts[pair] += 1
        cosines = [part[u] @ part[v] / np.linalg.norm(part[u]) / np.linalg.norm(part[v]) for part in parts]
        expected[pair] += np.mean(cosines)
    found = selections.overlap(made)
    for (s, t), total in expected.items():
        assert found.loc[s, t] == pytest.approx(total / counts[s, t])


def test_a_task_of_one_example_has_no_overlap_with_itself():
    found = selections.overlap(chosen("aab", [[0], [0], [0]]))
    assert np.isnan(found.loc["b", "b"]) and found.loc["a", "b"] == 1


def test_purity_of_tasks_that_choose_alike_is_chance():
    tasks = "aaaaabbb"
    found = neighbours.purity(neighbours.distances(chosen(tasks, [[0, 1]] * 8)), tasks, k=3, **QUICK)
    chance = (5 * 4 + 3 * 2) / (8 * 7)
    assert (found.value, found.chance, found.low, found.high) == pytest.approx((chance,) * 4)
    assert found.p == 1 and found.k == 3
    assert found.by_task.loc["b"].tolist() == pytest.approx([3, 2 / 7, 2 / 7])


def test_purity_of_tasks_that_share_nothing_is_1():
    tasks = "a" * 12 + "b" * 12
    distances = neighbours.distances(chosen(tasks, [[0, 1]] * 12 + [[2, 3]] * 12))
    found = neighbours.purity(distances, tasks, **QUICK)
    assert found.value == 1 and found.p == pytest.approx(1 / 101) and found.low < found.chance < found.high < 0.8
    assert neighbours.silhouette(distances, tasks).to_dict() == {"a": 1, "b": 1}


def test_purity_is_that_of_counting_neighbours_one_by_one():
    random = np.random.default_rng(1)
    points, tasks = random.normal(size=(30, 2)), list("abc" * 10)
    distances = neighbours.on_map(points)
    same = 0
    for i in range(30):
        nearest = sorted((j for j in range(30) if j != i), key=lambda j: np.linalg.norm(points[i] - points[j]))[:7]
        same += sum(tasks[j] == tasks[i] for j in nearest)
    found = neighbours.purity(distances, tasks, k=7, **QUICK)
    assert found.value == pytest.approx(same / 210)
    assert (found.by_task["purity"] * 10).sum() / 30 == pytest.approx(found.value)


def test_purity_under_chance_has_its_expectation_and_its_interval():
    values, inside = [], 0
    for seed in range(60):
        made = random_mixture(seed)
        found = neighbours.purity(neighbours.distances(made), made.tasks, k=5, **QUICK)
        values.append(found.value)
        inside += found.low <= found.value <= found.high
    assert np.mean(values) == pytest.approx(found.chance, abs=0.015)
    assert inside >= 52


def test_distances_are_shares_of_entries_and_cosines():
    made = chosen("aab", [[0, 1], [0, 2], [2, 3]], factors=4)
    assert neighbours.distances(made).tolist() == [[0, 0.5, 1], [0.5, 0, 0.5], [1, 0.5, 0]]
    lora = activated("abcd", [[1, 0], [-1, 0], [0, 2], [0, -2]])
    found = neighbours.distances(lora)
    assert found[0] == pytest.approx([0, 2, 1, 1]) and found[2] == pytest.approx([1, 1, 0, 2])


@given(st.integers(0, 1000))
@limits(max_examples=15, deadline=None)
def test_order_of_examples_names_of_factors_and_of_tasks_do_not_matter(seed):
    made, random = random_mixture(seed, planted=0.3), np.random.default_rng(seed)
    order = random.permutation(len(made.tasks))
    renamed = [random.permutation(5) for _ in made.values]
    values = [new[value][order] for new, value in zip(renamed, made.values.values(), strict=True)]
    called = dict(zip("abc", random.permutation(["x", "y", "z"]), strict=True))
    other = chosen([str(called[made.tasks[k]]) for k in order], *values, factors=5)
    for numbers in ("usage", "usage_by_layer"):
        pd.testing.assert_frame_equal(getattr(selections, numbers)(made), getattr(selections, numbers)(other))
    assert selections.information(other, permutations=1)["bits"].to_numpy() == pytest.approx(
        selections.information(made, permutations=1)["bits"].to_numpy(), abs=1e-9
    )
    overlap, others = selections.overlap(made), selections.overlap(other)
    moved, distances = neighbours.distances(other), neighbours.distances(made)
    np.testing.assert_array_equal(moved, distances[np.ix_(order, order)])
    purities = [neighbours.purity(d, m.tasks, 4, 1) for d, m in ((distances, made), (moved, other))]
    assert purities[0].value == pytest.approx(purities[1].value)
    silhouettes = neighbours.silhouette(distances, made.tasks), neighbours.silhouette(moved, other.tasks)
    for name, new in called.items():
        assert silhouettes[0][name] == pytest.approx(silhouettes[1][new])
        for second, newer in called.items():
            assert overlap.loc[name, second] == pytest.approx(others.loc[new, newer])


def matrix(values, names="abcdefgh"):
    names = list(names[: len(values)])
    return pd.DataFrame(values, names, names)


def test_correlation_is_spearmans_and_its_p_counts_orders_of_tasks():
    random = np.random.default_rng(2)
    first, second = matrix(random.normal(size=(4, 4))), matrix(random.normal(size=(4, 4)))
    found = selections.correlate(first, second)
    off = ~np.eye(4, dtype=bool)
    assert found.spearman == pytest.approx(spearmanr(first.to_numpy()[off], second.to_numpy()[off]).statistic)
    slow = [
        spearmanr(first.to_numpy()[np.ix_(order, order)][off], second.to_numpy()[off]).statistic
        for order in permutations(range(4))
    ]
    assert found.exact and found.tasks == 4
    assert found.p == pytest.approx(np.mean(np.abs(slow) >= abs(found.spearman) - 1e-9))


def test_a_matrix_correlates_with_itself_in_any_order_and_with_what_has_more_tasks():
    random = np.random.default_rng(5)
    first = matrix(random.normal(size=(8, 8)))
    found = selections.correlate(first, (first**3).iloc[::-1, ::-1])
    assert found.spearman == pytest.approx(1) and not found.exact and found.p == pytest.approx(1 / 1001)
    assert selections.correlate(first.iloc[:5, :5], -first).spearman == pytest.approx(-1)


def test_correlations_under_chance_have_uniform_p():
    random = np.random.default_rng(8)
    found = [
        selections.correlate(matrix(random.normal(size=(5, 5))), matrix(random.normal(size=(5, 5)))).p
        for _ in range(100)
    ]
    assert 0.01 <= np.mean(np.array(found) <= 0.1) <= 0.2


def test_a_map_keeps_neighbours_and_is_the_same_again():
    made = random_mixture(examples=(20, 20, 20), blocks=16, planted=0.8)
    first = neighbours.embed(made, perplexity=10, **QUICK)
    again = neighbours.embed(made, perplexity=10, **QUICK)
    np.testing.assert_array_equal(first.points, again.points)
    assert first.points.shape == (60, 2)
    assert first.purity.value > 0.95 and first.map_purity.value > 0.9
    assert selections.features(made).shape[1] > neighbours.WIDTH  # so that it was reduced first


def test_a_map_of_one_rank_direction_can_be_drawn():
    made = activated("ab" * 10, np.arange(20.0)[:, None])
    assert np.isfinite(neighbours.embed(made, perplexity=5, **QUICK).points).all()


def refused(error, words, function, *arguments, **options):
    with pytest.raises(error) as found:
        function(*arguments, **options)
    assert words in str(found.value)


def test_a_map_of_few_examples_keeps_fewer_neighbours():
    few, many = (neighbours.embed(random_mixture(examples=sizes), **QUICK) for sizes in ((5, 5), (60, 60)))
    assert (few.perplexity, few.purity.k, few.map_purity.k) == (3, 9, 9)
    assert (many.perplexity, many.purity.k) == (30, 10)


def test_what_cannot_be_told_is_refused_in_words():
    made = random_mixture(examples=(5, 5))
    refused(ScopeError, "perplexity is 30, but must be above 0 and below the number of examples, 10; set a smaller",
            neighbours.embed, made, perplexity=30)  # fmt: skip
    refused(ScopeError, "perplexity is 0,", neighbours.embed, made, perplexity=0)
    refused(ScopeError, "k is 10, but each of 10 examples has 9 others; take more examples, or a k from 1 to 9",
            neighbours.embed, made, k=10)  # fmt: skip
    alike = chosen("ab" * 8, [[0, 1]] * 16)
    refused(MeasurementError, "all examples selected the same", neighbours.embed, alike, perplexity=5)
    refused(ScopeError, "there is only task 'a'", selections.information, chosen("aa", [[0], [1]]))
    refused(ScopeError, "there is only task 'a'", neighbours.silhouette, np.zeros((2, 2)), "aa")
    refused(ScopeError, "each of the 2 tasks has only one example", neighbours.silhouette, np.zeros((2, 2)), "ab")
    refused(ScopeError, "is for MixLoRA adapters", selections.information, activated("ab", [[1.0], [2]]))
    values = matrix(np.arange(9.0).reshape(3, 3))
    refused(ScopeError, "2 tasks are in both matrices", selections.correlate, values, values.iloc[:2, :2])
    refused(MeasurementError, "one value for all pairs", selections.correlate, values, values * 0)
    refused(
        MeasurementError, "the value of 'a' and 'c' is nan", selections.correlate, values.replace(2, np.nan), values
    )
