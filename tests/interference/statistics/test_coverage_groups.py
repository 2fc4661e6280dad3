"""The promise "honest" for dependent examples, by simulation: with their groups known, intervals cover.

As in test_coverage.py, gradients are means of length 1 (or 0) plus isotropic Gaussian noise. A share of the noise, a
law's `intraclass`, is common to a group; that of two tasks that share their groups has a `correlation`. The truth is
the closed form of that file. Seeds are fixed. The slow tests hold the promise's bounds for cells pooled over a law; the
fast one tells known groups from unknown ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from interference.statistics.uncertainty import Comparison, Table, compare, table

DIM = 200
TASKS = 3


@dataclass(frozen=True)
class Law:
    """Three tasks of `groups` groups each; of the third the mean may be 0.

    Attributes:
        groups: of each task.
        size: units of a group; "unequal": 1 to 9, as often each.
        intraclass: share of the noise that the units of a group have in common.
        correlation: None where no task shares a group; else the first two share theirs, whose noise correlates so.
        noise: length of the noise beside a mean of length 1.
        silent: the third task's mean is 0.
    """

    groups: int
    size: int | str = 1
    intraclass: float = 0.0
    correlation: float | None = None
    noise: float = 3.0
    silent: bool = False

    @property
    def sizes(self) -> np.ndarray:
        """[groups]: units of each."""
        return np.arange(self.groups) % 9 + 1 if self.size == "unequal" else np.full(self.groups, self.size)

    @property
    def tasks(self) -> list[str]:
        """The task of every unit."""
        return [str(task) for task in range(TASKS) for _ in range(self.sizes.sum())]

    @property
    def labels(self) -> np.ndarray:
        """The group of every unit."""
        own = np.repeat(np.arange(self.groups), self.sizes)
        second = own if self.correlation is not None else own + self.groups
        return np.concatenate([own, second, own + 2 * self.groups])

    def means(self) -> np.ndarray:
        means = np.random.default_rng(5).normal(size=(TASKS, DIM))
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        means[2] *= not self.silent
        return means

    def gradients(self, rng: np.random.Generator) -> np.ndarray:
        common = rng.normal(size=(TASKS, self.groups, DIM))
        own = rng.normal(size=(TASKS, self.sizes.sum(), DIM))
        if self.correlation is not None:
            for noise in (common, own):
                noise[1] = self.correlation * noise[0] + np.sqrt(1 - self.correlation**2) * noise[1]
        noise = np.sqrt(self.intraclass) * np.repeat(common, self.sizes, axis=1) + np.sqrt(1 - self.intraclass) * own
        return (self.means()[:, None] + self.noise / np.sqrt(DIM) * noise).reshape(-1, DIM)

    def gram(self, rng: np.random.Generator) -> np.ndarray:
        gradients = self.gradients(rng)
        return gradients @ gradients.T

    def delta(self) -> np.ndarray:
        """The true Delta_j L_i: <m_i, m_j> times the length of E[g_j / |g_j|] along a mean of length 1."""
        rng, variance = np.random.default_rng(0), self.noise**2 / DIM
        along = 1 + np.sqrt(variance) * rng.normal(size=400_000)
        length = (along / np.sqrt(along**2 + variance * rng.chisquare(DIM - 1, size=400_000))).mean()
        return self.means() @ self.means().T * length


def tables(law: Law, datasets: int, metric: str, known: bool = True, replicates: int = 400) -> Iterator[Table]:
    """The tables of data sets of a law, whose groups are `known` or not."""
    rng, labels = np.random.default_rng(1), law.labels if known else None
    for seed in range(datasets):
        options = {"reduce": "ratio-of-means", "replicates": replicates, "seed": seed, "groups": labels}
        yield table(law.gram(rng), law.tasks, metric, **options)


def covered(found: Table | Comparison, truth: np.ndarray) -> np.ndarray:
    return (found.low <= truth) & (truth <= found.high)


OFF = ~np.eye(TASKS, dtype=bool)
FIVES = [Law(groups, 5, intraclass) for groups in (20, 50) for intraclass in (0.3, 0.6)]
SHARED = [Law(50, correlation=correlation) for correlation in (-0.5, 0.0, 0.5)]
LAWS = [
    Law(50),
    *FIVES,
    Law(100, 5, 0.3),
    Law(20, 5, 0.6, noise=10.0),
    Law(50, 2, 1.0),
    *SHARED,
    Law(20, correlation=-0.5, noise=10.0),
    Law(20, 5, 0.3, correlation=-0.5),
    Law(45, "unequal", 0.5),
    Law(45, "unequal", 0.5, correlation=0.5),
]


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_intervals_cover_and_nothing_is_called_what_it_is_not(law: Law) -> None:
    truth, datasets = law.delta(), 200 if law.groups < 100 else 80
    falls = list(tables(law, datasets, "delta"))
    hits = np.array([covered(one, truth) for one in falls])
    assert 0.92 <= hits[:, OFF].mean() <= 0.99
    assert 0.90 <= np.diagonal(hits, axis1=1, axis2=2).mean() <= 0.99
    for verdict, wrong in (("conflict", truth >= 0), ("synergy", truth <= 0)):
        assert np.mean([(one.verdict == verdict)[OFF & wrong] for one in falls]) <= 0.025
    ratio = truth / np.diagonal(truth)[:, None]
    shares = [covered(one, ratio)[OFF & (one.verdict != "no-signal")] for one in tables(law, datasets, "interference")]
    assert 0.92 <= np.concatenate(shares).mean() <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    "law", [Law(50, 5, 0.3, silent=True), Law(20, 5, 0.6, silent=True), Law(50, 2, 1.0, silent=True)]
)
def test_a_task_without_a_mean_is_not_said_to_have_signal(law: Law) -> None:
    assert np.mean([one.verdict[2, 0] != "no-signal" for one in tables(law, 200, "delta")]) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("law", [FIVES[0], Law(50, correlation=-0.5), Law(45, "unequal", 0.5)], ids=str)
def test_intervals_of_a_paired_difference_cover(law: Law) -> None:
    after = Law(law.groups, law.size, law.intraclass, law.correlation, noise=2.0)  # the same means, less noise
    rng, hits, wrong = np.random.default_rng(4), [], []
    truth = after.delta() - law.delta()
    for seed in range(150):
        state = rng.integers(2**32)
        first, second = (one.gram(np.random.default_rng(state)) for one in (law, after))  # the same units in both
        found = compare(first, second, law.tasks, "delta", replicates=400, seed=seed, groups=law.labels)
        hits.append(covered(found, truth))
        same = law.gram(np.random.default_rng(int(state) + 1))  # other noise, the same truth
        null = compare(first, same, law.tasks, "delta", replicates=400, seed=seed, groups=law.labels)
        wrong.append(null.verdict != "unclear")
    assert 0.92 <= np.mean(hits) <= 0.99
    assert np.mean(wrong) <= 0.05


@pytest.mark.parametrize(
    ("law", "cells"),
    [
        (Law(20, 5, 0.6), ([0, 1, 2], [0, 1, 2])),
        (Law(50, correlation=-0.5, noise=10.0), ([0, 1], [1, 0])),
    ],
    ids=str,
)
def test_known_groups_tell_right_intervals_from_wrong_ones(law: Law, cells: tuple[list[int], list[int]]) -> None:
    truth, hits = law.delta(), {}
    for known in (True, False):
        found = tables(law, 40, "delta", known, replicates=200)
        hits[known] = np.mean([covered(one, truth)[cells] for one in found])
    assert hits[True] >= 0.85
    assert hits[False] <= 0.5
