"""Purity beside that of the untrained adapter: closed forms, when it is withheld, and coverage of its interval."""

from dataclasses import replace

import numpy as np
import pytest

from interference.factors import neighbours
from interference.factors.contrast import contrast
from interference.factors.neighbours import Embedding
from tests.support.selections import chosen, random_mixture


def embedded(given, k=10):
    """The embedding without a map, which contrasts do not look at."""
    found = neighbours.purity(neighbours.distances(given), given.tasks, k, 1, groups=given.groups)
    return Embedding(np.zeros((len(given.tasks), 2)), 5, 0, found, found)


@pytest.fixture
def no_maps(monkeypatch):
    monkeypatch.setattr(neighbours, "embed", lambda given, perplexity, k, seed, alike: embedded(given, k))


def test_the_same_selections_do_not_differ_at_all():
    made = random_mixture(examples=(20, 20, 20))
    found = contrast(made, made, neighbours.embed(made, 5, permutations=10))
    assert (found.difference, found.low, found.high, found.groups) == (0, 0, 0, 60)
    assert found.verdict == "the interval contains 0: no sign that training made the clusters"
    np.testing.assert_array_equal(found.embedding.points, neighbours.embed(made, 5).points)


def test_factors_of_one_task_alone_are_as_much_purer_as_chance_is_below_1():
    pure = chosen("a" * 30 + "b" * 30, [[0, 1]] * 30 + [[2, 3]] * 30)
    alike = chosen(pure.tasks, [[0, 1]] * 60)
    found = contrast(pure, alike, embedded(pure))
    assert found.difference == pytest.approx(1 - 29 / 59)  # where all select alike, neighbours are all others
    assert found.low == pytest.approx(found.difference) and found.high == pytest.approx(found.difference)
    assert found.verdict == "training made neighbourhoods purer" and not found.embedding.points.any()
    back = contrast(alike, pure, embedded(alike))
    assert back.difference == -found.difference and back.verdict == "training made neighbourhoods less pure"


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (np.arange(60) // 6, "no interval: task 'a' has 4 groups of examples, and 6 are needed"),
        (None, "no interval: 50 examples are too few for 10 neighbours; 60 are needed"),
    ],
)
def test_an_interval_that_would_promise_too_much_is_withheld(groups, words, no_maps):
    made = random_mixture(examples=(20, 20, 20) if groups is not None else (20, 20, 10))
    made = replace(made, groups=groups)
    found = contrast(made, made, embedded(made))
    assert found.verdict == words and np.isnan([found.low, found.high]).all() and found.difference == 0


LAWS = {  # groups, examples of each, tasks, whether tasks share the groups, how far tasks lie apart
    "independent": (60, 1, 3, False, 0.7),
    "fives": (30, 5, 3, False, 0.7),
    "shared": (40, 2, 2, True, 0.7),
    "no clusters": (100, 1, 3, False, 0.0),
    "far apart": (100, 1, 3, False, 2.0),
    "threes": (40, 3, 3, True, 0.7),
    "many": (150, 1, 6, False, 0.7),
}


def drawn(random, law, means, adapters):
    """What the same new examples select of two adapters: the top 2 of 8 factors by noisy scores of a hidden state."""
    count, size, tasks, shared, apart = LAWS[law]
    groups = np.repeat(np.arange(count), size)
    labels = np.tile(np.arange(size) % tasks, count) if shared else groups % tasks
    hidden = apart * means[labels] + 0.7 * random.normal(size=(count, 6))[groups]
    hidden = hidden + 0.7 * random.normal(size=hidden.shape)
    for blocks in adapters:
        scores = [hidden @ block + 0.8 * random.normal(size=(len(groups), 8)) for block in blocks]
        values = [np.argsort(-score, axis=1)[:, :2] for score in scores]
        yield replace(chosen([f"t{label}" for label in labels], *values, factors=8), groups=groups)


def coverage(law, replications, splits=60):
    """How often the interval holds the mean difference of purity, which is that of two adapters drawn alike."""
    random, found = np.random.default_rng(1), []
    means, adapters = random.normal(size=(6, 6)), random.normal(size=(2, 8, 6, 8))
    for _ in range(replications):
        trained, untrained = drawn(random, law, means, adapters)
        one = contrast(trained, untrained, embedded(trained), splits)
        found.append((one.low, one.difference, one.high))
    low, value, high = np.array(found).T
    return np.mean((low <= value.mean()) & (value.mean() <= high))


@pytest.mark.parametrize("law", ["independent", "shared"])
def test_intervals_hold_the_difference_of_two_adapters_alike(law, no_maps):
    assert 0.9 <= coverage(law, 80) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_intervals_hold_it_under_every_law(law, no_maps):
    assert 0.85 <= coverage(law, 60) <= 1  # 92 to 99% of 200
