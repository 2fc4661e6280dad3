"""The promise "honest", by simulation: intervals cover, noise is not called conflict, a planted conflict is found.

Gradients are a task's mean plus isotropic Gaussian noise, so that the truth needs no simulation of gradients: with mean
m of length 1 and noise s in d coordinates, E[g / |g|] points along m with length E[x / sqrt(x^2 + s^2 chi2(d - 1))],
x ~ N(1, s^2). Seeds are fixed; sizes are small, so the bounds are the promise's own only for cells pooled over a law.
"""

from dataclasses import dataclass

import numpy as np
import pytest

from interference.statistics.uncertainty import compare, table


@dataclass(frozen=True)
class Law:
    """Three tasks: unit means drawn at random, noise of length `noise` beside them, `tail` the log-scale of units."""

    counts: tuple[int, ...]
    dim: int
    noise: float
    tail: float = 0.0

    def means(self) -> np.ndarray:
        means = np.random.default_rng(self.dim).normal(size=(len(self.counts), self.dim))
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def gram(self, rng: np.random.Generator) -> np.ndarray:
        units = sum(self.counts)
        scale = np.exp(self.tail * rng.normal(size=(units, 1)) - self.tail**2 / 2)  # of expectation 1
        gradients = scale * (
            np.repeat(self.means(), self.counts, axis=0)
            + self.noise / np.sqrt(self.dim) * rng.normal(size=(units, self.dim))
        )
        return gradients @ gradients.T

    def tasks(self) -> list[str]:
        return [str(task) for task, count in enumerate(self.counts) for _ in range(count)]

    def delta(self) -> np.ndarray:
        """The true Delta_j L_i: <m_i, m_j> times the length of E[g_j / |g_j|]."""
        rng, variance = np.random.default_rng(0), self.noise**2 / self.dim
        along = 1 + np.sqrt(variance) * rng.normal(size=400_000)
        length = (along / np.sqrt(along**2 + variance * rng.chisquare(self.dim - 1, size=400_000))).mean()
        return self.means() @ self.means().T * length


LAWS = [
    (Law((20, 20, 20), 50, 3.0), 120),
    (Law((20, 20, 20), 1000, 10.0), 120),
    (Law((50, 50, 50), 50, 10.0), 80),
    (Law((50, 50, 50), 200, 3.0, tail=0.7), 80),
    (Law((100, 100, 100), 1000, 3.0), 50),
    (Law((20, 50, 100), 200, 1.0), 80),
]


@pytest.mark.slow
@pytest.mark.parametrize(("law", "datasets"), LAWS, ids=str)
def test_intervals_of_delta_and_of_the_ratio_of_means_cover(law: Law, datasets: int) -> None:
    rng, tasks, truth = np.random.default_rng(1), law.tasks(), law.delta()
    ratio, off = truth / np.diagonal(truth)[:, None], ~np.eye(len(law.counts), dtype=bool)
    covered: dict[str, list[np.ndarray]] = {"delta": [], "interference": []}
    for seed in range(datasets):
        gram = law.gram(rng)
        fall = table(gram, tasks, "delta", replicates=500, seed=seed)
        covered["delta"].append((fall.low <= truth) & (truth <= fall.high))
        share = table(gram, tasks, reduce="ratio-of-means", replicates=500, seed=seed)
        # a row without signal has no meaningful ratio; its interval is wide and covers nearly always
        cells = off & (share.verdict != "no-signal")
        covered["interference"].append(((share.low <= ratio) & (ratio <= share.high))[cells])
    for metric, hits in covered.items():
        assert 0.92 <= np.concatenate([hit.ravel() for hit in hits]).mean() <= 0.99, metric


@pytest.mark.slow
@pytest.mark.parametrize(("count", "noise"), [(20, 3.0), (50, 10.0), (50, 0.5)])
def test_tasks_of_one_distribution_are_not_called_conflict(count: int, noise: float) -> None:
    rng, tasks = np.random.default_rng(2), [str(task) for task in range(5) for _ in range(count)]
    verdicts = []
    for length in (0.0, 1.0):  # without and with a common mean
        for seed in range(30):
            gradients = noise / np.sqrt(200) * rng.normal(size=(5 * count, 200))
            gradients[:, 0] += length
            verdicts.append(table(gradients @ gradients.T, tasks, "delta", replicates=300, seed=seed).verdict)
    off = ~np.eye(5, dtype=bool)
    assert np.mean([verdict[off] == "conflict" for verdict in verdicts]) <= 0.025
    assert np.mean([verdict[off] == "synergy" for verdict in verdicts[30:]]) > 0.5


@pytest.mark.slow
def test_a_planted_conflict_is_found() -> None:
    rng, tasks = np.random.default_rng(3), [str(task) for task in range(4) for _ in range(100)]
    means = np.eye(4, 1000)
    means[1, :2] = -0.1, np.sqrt(1 - 0.1**2)
    found, wrong = [], []
    for seed in range(20):
        gradients = np.repeat(means, 100, axis=0) + 3 / np.sqrt(1000) * rng.normal(size=(400, 1000))
        verdict = table(gradients @ gradients.T, tasks, replicates=400, seed=seed).verdict
        found += [verdict[0, 1] == "conflict", verdict[1, 0] == "conflict"]
        wrong.append((verdict[2:] == "conflict").mean())
    assert np.mean(found) >= 0.9
    assert np.mean(wrong) <= 0.025


@pytest.mark.slow
def test_intervals_of_a_paired_difference_cover() -> None:
    before, after = Law((30, 30, 30), 100, 3.0), Law((30, 30, 30), 100, 2.0)  # the same means, less noise
    tasks, rng, hits = before.tasks(), np.random.default_rng(4), []
    truth = after.delta() - before.delta()
    for seed in range(80):
        state = rng.integers(2**32)
        grams = [law.gram(np.random.default_rng(state)) for law in (before, after)]  # the same units in both
        got = compare(*grams, tasks, "delta", replicates=400, seed=seed)
        hits.append((got.low <= truth) & (truth <= got.high))
    assert 0.92 <= np.mean(hits) <= 0.99
