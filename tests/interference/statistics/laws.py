"""Laws of gradients, as data, whose Delta is known: what the intervals are simulated under.

The tasks' means have length 1 and lie on coordinates of their own, so that two are orthogonal. But the third has cosine
0.3 with the first and -0.3 with the second, and the last one's mean is 0. (Two tasks are the first two.) A unit's
gradient is

    g = scale (mean signal + noise),

the noise symmetric, so that the truth Delta_j L_i = E[scale] <mean_i, E[g_j / |g_j|]> needs one expectation of a
bounded number, and is exactly 0 wherever a mean is 0 or two means are orthogonal.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

COSINE = 0.3
OUTLIER = 30
_PAIRS = 20_000  # of mirrored noise, for the expectation of g / |g|; its error is below 5% of an interval's width


@dataclass(frozen=True)
class Law:
    """How the gradients of all tasks come about.

    Attributes:
        groups: of each task; one number for all.
        count: of tasks.
        size: units of a group; "unequal": 1 to 9, as often each.
        dim: coordinates of a gradient.
        noise: its length beside a mean of length 1.
        decay: the variance of the k-th coordinate's noise goes as k to the power of minus this.
        degrees: of Student's t that the noise has; infinite: Gaussian.
        whole: whether that t is of the noise vector, whose length it scatters, or of every coordinate.
        tail: standard deviation of the logarithm of a unit's scale; its expectation is 1.
        outliers: share of the units whose scale is 30.
        carriers: share of the units that have a signal, which is the stronger the fewer they are.
        intraclass: share of the noise that the units of a group have in common.
        correlation: None where no task shares a group; else the first two share theirs, whose noise correlates so.
        told: whether groups are given to the statistics, which find copies by themselves.
    """

    groups: int | tuple[int, ...] = 50
    count: int = 4
    size: int | str = 1
    dim: int = 200
    noise: float = 3.0
    decay: float = 0.0
    degrees: float = np.inf
    whole: bool = True
    tail: float = 0.0
    outliers: float = 0.0
    carriers: float = 1.0
    intraclass: float = 0.0
    correlation: float | None = None
    told: bool = True

    @property
    def counts(self) -> tuple[int, ...]:
        """Groups of each task."""
        return (self.groups,) * self.count if isinstance(self.groups, int) else self.groups

    @property
    def silent(self) -> bool:
        """Whether the last task's mean is 0."""
        return self.count > 2

    @property
    def sizes(self) -> list[np.ndarray]:
        """Of each task, units of each group [groups]."""
        unequal = self.size == "unequal"
        return [np.arange(count) % 9 + 1 if unequal else np.full(count, self.size) for count in self.counts]

    @property
    def tasks(self) -> list[str]:
        """The task of every unit."""
        return [str(task) for task, sizes in enumerate(self.sizes) for _ in range(sizes.sum())]

    @property
    def labels(self) -> np.ndarray | None:
        """The group of every unit; None where none has another unit, or they are not told."""
        if not self.told or (self.size == 1 and self.correlation is None):
            return None
        starts = np.cumsum((0, *self.counts))
        starts[1] = 0 if self.correlation is not None else starts[1]
        return np.concatenate(
            [start + np.repeat(np.arange(len(s)), s) for start, s in zip(starts, self.sizes, strict=False)]
        )

    def gram(self, seed: int, noise: float | None = None, again: int = 0) -> np.ndarray:
        """The Gram [units, units] of a data set: the same units by `seed`, with a noise of their own for each `again`.

        Args:
            seed: of the data set.
            noise: another length of the noise.
            again: 0 or another measurement of the same units.
        """
        gradients = self.gradients(np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1 + again]), noise)
        return gradients @ gradients.T

    def gradients(self, units: np.random.Generator, rng: np.random.Generator, noise: float | None) -> np.ndarray:
        """[units, dim]."""
        drawn = []
        for task, sizes in enumerate(self.sizes):
            common = np.repeat(self._noise(rng, len(sizes)), sizes, axis=0)
            own = self._noise(rng, len(common)) if self.intraclass < 1 else 0
            drawn.append(np.sqrt(self.intraclass) * common + np.sqrt(1 - self.intraclass) * own)
            if task == 1 and self.correlation is not None:
                drawn[1] = self.correlation * drawn[0] + np.sqrt(1 - self.correlation**2) * drawn[1]
        scattered = (self.noise if noise is None else noise) * np.concatenate(drawn)
        mean = np.repeat(self.means(), [sizes.sum() for sizes in self.sizes], axis=0)
        signal = (units.random((len(mean), 1)) < self.carriers) / self.carriers
        scale = np.exp(self.tail * units.normal(size=(len(mean), 1)) - self.tail**2 / 2)
        scale *= np.where(units.random((len(mean), 1)) < self.outliers, OUTLIER, 1)
        return scale * (signal * mean + scattered)

    def _noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """[count, dim], of expected squared length 1."""
        spectrum = np.arange(1, self.dim + 1) ** -self.decay
        found = rng.normal(size=(count, self.dim)) * np.sqrt(spectrum / spectrum.sum())
        if np.isfinite(self.degrees):
            of = (count, 1) if self.whole else found.shape
            found *= np.sqrt((self.degrees - 2) / rng.chisquare(self.degrees, size=of))
        return found

    def means(self) -> np.ndarray:
        """[tasks, dim]."""
        places = np.arange(self.dim) % max(self.count - 1, 2)
        axes = np.where(places == np.arange(self.count)[:, None], np.random.default_rng(5).normal(size=self.dim), 0)
        means = axes / np.maximum(np.linalg.norm(axes, axis=1, keepdims=True), 1e-300)
        if self.count > 2:
            means[2] = COSINE * (means[0] - means[1]) + np.sqrt(1 - 2 * COSINE**2) * means[2]
        return means

    def delta(self, noise: float | None = None) -> np.ndarray:
        """The true Delta_j L_i, [tasks i, tasks j].

        Args:
            noise: another length of the noise.
        """
        alone = replace(self, groups=0, size=1, correlation=None, intraclass=0.0, tail=0.0, told=True)
        scale = 1 + self.outliers * (OUTLIER - 1)
        return scale * _delta(replace(alone, noise=self.noise if noise is None else noise, outliers=0.0))


@lru_cache(maxsize=128)
def _delta(law: Law) -> np.ndarray:
    """Delta of units of scale 1, of which the share `carriers` has a signal, the mean divided by that share."""
    rng, means = np.random.default_rng(0), law.means()
    noise = law.noise * law._noise(rng, _PAIRS)
    along, square, inner = noise @ means.T, (noise**2).sum(axis=1), means @ means.T / law.carriers
    found = np.zeros((law.count, law.count))
    for task in range(law.count):
        for sign in (-1, 1):
            length = np.sqrt(inner[task, task] / law.carriers + 2 * sign * along[:, task] / law.carriers + square)
            found[:, task] += ((inner[:, task] + sign * along) / length[:, None]).mean(axis=0) / 2
    return np.where(np.abs(inner) < 1e-12, 0, law.carriers * found)  # the noise of another's coordinates is symmetric


LAWS = {
    "isotropic, 20": Law(20),
    "isotropic, 32": Law(32),
    "isotropic, 50": Law(50),
    "isotropic, 100": Law(100),
    "isotropic, 50, ten times the noise": Law(50, noise=10.0),
    "spectrum k^-1": Law(decay=1.0),
    "spectrum k^-2": Law(decay=2.0),
    "t3 coordinates": Law(degrees=3.0, whole=False),
    "t3 lengths": Law(degrees=3.0),
    "lognormal 0.5": Law(tail=0.5),
    "lognormal 1": Law(tail=1.0),
    "lognormal 1.5": Law(tail=1.5),
    "lognormal 1.5, 100": Law(100, tail=1.5),
    "2% outliers x 30, 50": Law(outliers=0.02),
    "2% outliers x 30, 100": Law(100, outliers=0.02),
    "2% outliers x 30, 200": Law(200, outliers=0.02),
    "signal in 5%, 50": Law(carriers=0.05),
    "signal in 5%, 100": Law(100, carriers=0.05),
    "signal in 10%, 50": Law(carriers=0.1),
    "signal in 10%, 100": Law(100, carriers=0.1),
    "sizes 5/300": Law((5, 300, 300, 5)),
    "sizes 10/300": Law((10, 300, 300, 10)),
    "20 clusters of 5, 0.3": Law(20, size=5, intraclass=0.3),
    "20 clusters of 5, 0.6": Law(20, size=5, intraclass=0.6),
    "100 clusters of 5, 0.3": Law(100, size=5, intraclass=0.3),
    "100 clusters of 5, 0.6": Law(100, size=5, intraclass=0.6),
    "45 unequal clusters, 0.5": Law(45, size="unequal", intraclass=0.5),
    "every example twice": Law(50, size=2, intraclass=1.0, told=False),
    "shared, correlation -0.5": Law(correlation=-0.5),
    "shared, correlation 0": Law(correlation=0.0),
    "shared, correlation 0.5": Law(correlation=0.5),
    "2 tasks": Law(32, count=2),
    "6 tasks": Law(32, count=6),
    "40 tasks": Law(20, count=40),
    "20 shared clusters of 5, -0.5": Law(20, size=5, intraclass=0.3, correlation=-0.5),
}
