"""How many groups a verdict needs: the power that is reached with so many is the one that was asked for.

Gradients are means of length 1, of which the first two have a planted cosine, plus isotropic Gaussian noise; a share of
the noise, `intraclass`, is common to a group, and that of two tasks that share their groups has a `correlation`. In
such a law the interference of the first two tasks is the cosine.
"""

from dataclasses import dataclass

import numpy as np
import pytest

from interference.errors import ConfigError, ScopeError
from interference.statistics.power import needs
from interference.statistics.uncertainty import table

DIM = 200


@dataclass(frozen=True)
class Law:
    cosine: float
    noise: float
    size: int = 1
    intraclass: float = 0.0
    correlation: float | None = None
    tasks: int = 2

    def names(self, groups: int) -> list[str]:
        return [str(task) for task in range(self.tasks) for _ in range(groups * self.size)]

    def labels(self, groups: int) -> np.ndarray:
        own = np.repeat(np.arange(groups), self.size)
        shared = self.correlation is not None
        return np.concatenate([own + (0 if shared and task < 2 else task * groups) for task in range(self.tasks)])

    def gram(self, groups: int, rng: np.random.Generator) -> np.ndarray:
        means = np.eye(self.tasks, DIM)
        means[1] = self.cosine * means[0] + np.sqrt(1 - self.cosine**2) * means[1]
        noises = [rng.normal(size=(self.tasks, count, DIM)) for count in (groups, groups * self.size)]
        if self.correlation is not None:
            for one in noises:
                one[1] = self.correlation * one[0] + np.sqrt(1 - self.correlation**2) * one[1]
        common, own = noises
        noise = np.sqrt(self.intraclass) * np.repeat(common, self.size, 1) + np.sqrt(1 - self.intraclass) * own
        gradients = (means[:, None] + self.noise / np.sqrt(DIM) * noise).reshape(-1, DIM)
        return gradients @ gradients.T

    def needs(self, groups: int, rng: np.random.Generator, effect: float | None, **options):
        return needs(self.gram(groups, rng), self.names(groups), effect, groups=self.labels(groups), **options)

    def power(self, groups: int, rng: np.random.Generator, datasets: int) -> float:
        """The share of data sets in which the first two tasks conflict."""
        found = [
            table(self.gram(groups, rng), self.names(groups), "delta", groups=self.labels(groups), replicates=200)
            for _ in range(datasets)
        ]
        return float(np.mean([one.verdict[0, 1] == "conflict" for one in found]))


LAWS = [
    Law(-0.2, 3.0),
    Law(-0.2, 6.0, size=5, intraclass=0.3),
    Law(-0.1, 3.0, size=5, intraclass=0.6),
    Law(-0.2, 6.0, size=5, intraclass=0.3, tasks=3),
    Law(-0.2, 3.0, correlation=-0.5),
    Law(-0.2, 6.0, size=5, intraclass=0.3, correlation=0.5),
]


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_power_that_is_reached_is_the_one_that_was_asked_for(law: Law) -> None:
    rng, reached = np.random.default_rng(0), []
    for _ in range(8):  # pilots, each of which errs in its own way
        count = int(law.needs(60, rng, law.cosine).groups[0, 1])
        reached.append(law.power(count, rng, 40))
    assert 0.65 <= np.mean(reached) <= 0.95


@pytest.mark.parametrize("law", [LAWS[0], LAWS[1], LAWS[4]], ids=str)
def test_one_large_pilot_tells_a_number_with_which_the_power_is_reached(law: Law) -> None:
    rng = np.random.default_rng(3)
    count = int(law.needs(150, rng, law.cosine).groups[0, 1])
    assert 0.7 <= law.power(count, rng, 120) <= 0.9  # its standard error is 0.04


def test_the_number_follows_the_closed_form_of_the_law() -> None:
    """With little noise, s along an axis, Var = s^2 (1 + 1 - c^2) / n, and n = (z_.975 + z_.8)^2 n Var / Delta^2."""
    law, rng = Law(-0.2, 0.5), np.random.default_rng(0)
    gram, own = law.gram(800, rng), law.noise**2 / DIM
    for effect in (-0.02, 0.01):
        expected = (1.960 + 0.842) ** 2 * own * (2 - law.cosine**2) / effect**2
        assert needs(gram, law.names(800), effect).groups[0, 1] == pytest.approx(expected, rel=0.12)


def test_no_more_groups_are_needed_for_less_power_a_larger_effect_or_one_pair_of_fewer() -> None:
    law, rng = Law(-0.2, 6.0, size=3, intraclass=0.3, tasks=3), np.random.default_rng(0)
    gram, names, labels = law.gram(60, rng), law.names(60), law.labels(60)
    numbers = [needs(gram, names, -0.2, power=power, groups=labels).groups for power in (0.5, 0.8, 0.95)]
    off = ~np.eye(3, dtype=bool)
    assert (numbers[0] < numbers[1])[off].all() and (numbers[1] < numbers[2])[off].all()
    assert (needs(gram, names, 0.2, groups=labels).groups == numbers[1])[off].all()  # synergy needs as many
    assert (needs(gram, names, -0.4, groups=labels).groups < numbers[1])[off].all()
    two = slice(0, 2 * 180)
    alone = needs(gram[two, two], names[two], -0.2, groups=labels[two]).groups
    assert alone[0, 1] < numbers[1][0, 1]  # one pair is tested, not three
    assert np.isnan(np.diagonal(alone)).all()


@pytest.mark.parametrize("law", [LAWS[1], LAWS[2], LAWS[5]], ids=str)
def test_the_intraclass_correlation_is_that_of_the_law_and_says_whether_more_units_help(law: Law) -> None:
    found = law.needs(200, np.random.default_rng(1), law.cosine)
    np.testing.assert_allclose(found.intraclass, law.intraclass, atol=0.03)
    assert found.size.tolist() == [5, 5] and found.grouped
    many = Law(law.cosine, law.noise, 40, law.intraclass, law.correlation)
    more = many.needs(60, np.random.default_rng(2), law.cosine)
    assert found.unlimited[0, 1] == pytest.approx(more.groups[0, 1], rel=0.25)  # 40 are nearly any number
    assert found.unlimited[0, 1] < found.groups[0, 1]


def test_units_without_groups_are_counted_themselves() -> None:
    law, rng = Law(-0.2, 3.0), np.random.default_rng(0)
    gram, names = law.gram(60, rng), law.names(60)
    alone, own = needs(gram, names, -0.2), needs(gram, names, -0.2, groups=law.labels(60))
    np.testing.assert_array_equal(alone.groups, own.groups)
    assert not alone.grouped and np.isnan(alone.unlimited).all() and np.isnan(alone.intraclass).all()
    shuffled = rng.permutation(len(names))
    again = needs(gram[np.ix_(shuffled, shuffled)], [names[k] for k in shuffled], -0.2)
    place = [alone.tasks.index(name) for name in again.tasks]
    np.testing.assert_array_equal(again.groups, alone.groups[np.ix_(place, place)])


def test_the_pilots_own_delta_is_the_effect_where_it_is_asked_for() -> None:
    law, rng = Law(-0.2, 3.0), np.random.default_rng(0)
    gram, names = law.gram(100, rng), law.names(100)
    values = table(gram, names, "delta", replicates=20).value
    found = needs(gram, names, None)
    np.testing.assert_allclose(found.delta[0, 1], values[0, 1])
    np.testing.assert_allclose(needs(gram, names, -0.1).delta[0, 1], -0.1 * values[0, 0])
    nothing = Law(0.0, 3.0).gram(400, rng)
    assert needs(nothing, law.names(400), None).groups[0, 1] > 500  # of a Delta near 0


def test_a_task_without_signal_is_not_known_and_an_absurd_need_is_infinite() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(40, DIM))
    gradients = np.concatenate([noise, rng.normal(size=(40, DIM)) + 3])
    found = needs(gradients @ gradients.T, ["a"] * 40 + ["b"] * 40, -0.1)
    assert np.isnan(found.groups[0, 1]) and np.isnan(found.delta[0, 1]) and np.isfinite(found.groups[1, 0])
    assert needs(gradients @ gradients.T, ["a"] * 40 + ["b"] * 40, 1e-7).groups[1, 0] == np.inf


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"effect": 0},
            ConfigError,
            "effect is 0, which no number of groups can detect; give an interference such as -0.1",
        ),
        ({"effect": np.nan}, ConfigError, "effect is nan, which no number of groups can detect"),
        ({"power": 1}, ConfigError, r"power is 1, but must lie between 0 and 1 \(0\.8 is usual\)"),
        ({"level": 2}, ConfigError, "level is 2, but must lie between 0 and 1"),
        ({"groups": [0, 0, 1, 2, *range(3, 9)]}, ScopeError, "a pilot needs 4 groups of each task, but has 3 of 'a'"),
        ({"tasks": ["a"] * 3 + ["b"] * 7}, ScopeError, "a pilot needs 4 units of each task, but has 3 of 'a'; measure"),
    ],
)
def test_what_cannot_be_planned_is_refused(options, kind, message) -> None:
    gradients = np.random.default_rng(0).normal(size=(10, 20)) + 1
    given = {"tasks": ["a"] * 4 + ["b"] * 6, "effect": -0.1} | options
    with pytest.raises(kind, match=message):
        needs(gradients @ gradients.T, given.pop("tasks"), given.pop("effect"), **given)
