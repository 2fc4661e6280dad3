"""Numbers about selections where examples share pictures or are copies: closed forms, references, sizes of tests."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import silhouette_samples

from interference.errors import MeasurementError, ScopeError
from interference.factors import affinity, neighbours, selections, shuffles
from tests.support.selections import activated, chosen, random_mixture

QUICK = {"permutations": 100}


def line(points):
    points = np.array(points, float)
    return np.abs(points[:, None] - points)


def test_copies_are_no_evidence_of_purity():
    distances, groups = line([0, 0, 1, 1, 10, 10, 11, 11]), np.repeat(np.arange(4), 2)
    tasks = "aabbaabb"
    alone = neighbours.purity(distances, tasks, 1, **QUICK)
    assert alone.value == 1 and "groups" not in alone.by_task
    found = neighbours.purity(distances, tasks, 1, groups=groups, **QUICK)
    assert found.value == 0 and found.chance == pytest.approx(2 / 6)  # 2 of the 6 examples of other groups are its own
    assert found.by_task["groups"].tolist() == [2, 2] and found.by_task["chance"].tolist() == pytest.approx([1 / 3] * 2)


def test_another_question_on_a_picture_is_left_out_of_the_neighbours():
    tasks, groups = "abab", np.array([0, 0, 1, 1])  # two tasks ask of both pictures
    found = neighbours.purity(line([0, 0.1, 5, 5.1]), tasks, 1, groups=groups, **QUICK)
    assert found.value == pytest.approx(0.5)  # 0 and 0.1 have a at 5 next, 5 and 5.1 have b at 0.1
    assert found.by_task["purity"].tolist() == [0.5, 0.5] and found.chance == 0.5


def test_groups_of_one_example_change_nothing():
    made = random_mixture(planted=0.3)
    grouped = replace(made, groups=np.random.default_rng(0).permutation(len(made.tasks)))
    distances = neighbours.distances(made)
    for seed in (0, 1):
        plain = neighbours.purity(distances, made.tasks, 5, 100, seed)
        other = neighbours.purity(distances, made.tasks, 5, 100, seed, grouped.groups)
        assert [plain.value, plain.chance, plain.low, plain.high, plain.p] == pytest.approx(
            [other.value, other.chance, other.low, other.high, other.p], abs=1e-12
        )
    pd.testing.assert_frame_equal(selections.information(made, 50), selections.information(grouped, 50))
    np.testing.assert_allclose(selections.overlap(grouped), selections.overlap(made), atol=1e-12)
    tasks = np.array(made.tasks)
    np.testing.assert_allclose(
        neighbours.silhouette(distances, made.tasks, grouped.groups),
        pd.Series(silhouette_samples(distances, tasks, metric="precomputed")).groupby(tasks).mean(),
        atol=1e-12,
    )


@pytest.mark.parametrize("mixture", [True, False])
def test_overlap_is_the_mean_over_pairs_of_different_groups(mixture):
    made, random = random_mixture(), np.random.default_rng(1)
    if not mixture:
        made = activated(made.tasks, *(random.normal(size=(len(made.tasks), rank)) for rank in (3, 2)))
    made = replace(made, groups=random.integers(0, 9, len(made.tasks)))
    parts = [selections.unit_rows(part) for _, part in made.parts()]
    together = np.mean([part @ part.T for part in parts], axis=0)
    found, tasks = selections.overlap(made), np.array(made.tasks)
    for one, other in product("abc", repeat=2):
        pairs = np.outer(tasks == one, tasks == other) & (made.groups[:, None] != made.groups)
        assert found.loc[one, other] == pytest.approx(together[pairs].mean(), abs=1e-12)


def test_silhouettes_are_of_other_groups():
    distances, tasks, groups = line([0, 1, 4, 9, 2, 7]), "aaabbb", np.array([0, 0, 1, 1, 2, 3])
    slow = []
    for i, task in enumerate(tasks):
        means = {
            name: np.mean([distances[i, j] for j in range(6) if tasks[j] == name and groups[j] != groups[i]])
            for name in "ab"
        }
        own, other = means.pop(task), next(iter(means.values()))
        slow.append((other - own) / max(own, other))
    found = neighbours.silhouette(distances, tasks, groups)
    assert found.tolist() == pytest.approx([np.mean(slow[:3]), np.mean(slow[3:])])


def test_shuffled_groups_of_one_size_go_to_another_group_as_they_are():
    groups, random = np.array([0, 1, 2, 0, 1, 2]), np.random.default_rng(0)
    for order in shuffles.orders(6, groups, 50, random):
        for group in range(3):
            assert len(set(groups[order[groups == group]])) == 1
        assert sorted(order) == list(range(6))
    sizes = np.array([0, 0, 0, 1, 2, 2])
    drawn = shuffles.orders(6, sizes, 400, random)
    assert (np.sort(drawn, axis=1) == np.arange(6)).all()
    np.testing.assert_allclose([(drawn == k).mean() for k in range(6)], 1 / 6)


LAWS = {  # groups of the examples, tasks of the examples
    "fives": lambda: (np.repeat(np.arange(20), 5), np.repeat(np.arange(20) % 2, 5)),
    "shared": lambda: (np.repeat(np.arange(40), 2), np.tile([0, 1], 40)),
    "mixed": lambda: (np.concatenate([np.repeat(np.arange(40), 2), 40 + np.arange(40)]),
                      np.concatenate([np.tile([0, 1], 40), np.repeat([2, 3], 20)])),
}  # fmt: skip


@pytest.mark.parametrize("law", LAWS)
def test_p_of_purity_is_uniform_where_tasks_say_nothing(law):
    random, ps, values, naive = np.random.default_rng(4), [], [], []
    for _ in range(100):
        groups, labels = LAWS[law]()
        points = random.normal(size=(groups.max() + 1, 2))[groups] + 0.4 * random.normal(size=(len(groups), 2))
        tasks, distances = [f"t{label}" for label in labels], neighbours.on_map(points)
        found = neighbours.purity(distances, tasks, 10, 200, 0, groups)
        ps.append(found.p)
        values.append(found.value - found.chance)
        naive.append(neighbours.purity(distances, tasks, 10, 200).p)
    assert np.mean(np.array(ps) <= 0.05) <= 0.1 and np.mean(np.array(ps) <= 0.5) == pytest.approx(0.5, abs=0.15)
    assert np.mean(values) == pytest.approx(0, abs=0.02)
    if law == "fives":
        assert np.mean(np.array(naive) <= 0.05) > 0.8  # what groups are for


def test_information_under_chance_is_judged_by_groups():
    random, ps, naive = np.random.default_rng(2), [], []
    for _ in range(40):
        groups = np.repeat(np.arange(16), 5)
        values = [random.permutation(5)[:2] for _ in range(16)]
        made = chosen(["ab"[group % 2] for group in groups], [values[group] for group in groups], factors=5)
        ps.append(selections.information(replace(made, groups=groups), 100)["p"].item())
        naive.append(selections.information(made, 100)["p"].item())
    assert np.mean(np.array(ps) <= 0.05) <= 0.125 and np.mean(np.array(naive) <= 0.05) > 0.6


def refused(error, words, function, *arguments, **options):
    with pytest.raises(error) as found:
        function(*arguments, **options)
    assert str(found.value) == words


def test_what_cannot_be_told_is_refused_in_words():
    groups = np.array([0, 0, 0, 1])
    refused(
        ScopeError,
        "k is 2, but 3 of 4 examples are in one group and have 1 others; take more examples, or a k from 1 to 1",
        neighbours.purity, line([0, 1, 2, 3]), "abab", 2, groups=groups,
    )  # fmt: skip
    refused(
        ScopeError,
        "all 4 examples belong to one group, so none has a neighbour in another; give examples of other groups",
        neighbours.purity, line([0, 1, 2, 3]), "abab", 2, groups=np.zeros(4, int),
    )  # fmt: skip
    refused(
        ScopeError,
        "each of the 2 tasks has only one group of examples, so nothing can be compared within a task; raise samples",
        neighbours.silhouette, line([0, 1, 2, 3]), "aabb", np.array([0, 0, 1, 1]),
    )  # fmt: skip
    made = replace(chosen("aabb", [[0], [1], [0], [1]]), groups=np.zeros(4, int))
    refused(
        MeasurementError,
        "all examples of 'a' and 'b' belong to one group, so what the tasks share cannot be measured; give them "
        "examples of other groups",
        affinity.paired, made, [("a", "b")],
    )  # fmt: skip
