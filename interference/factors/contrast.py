"""Contrast: how much purer the neighbourhoods of a trained adapter are than those of the same adapter untrained.

Random factors tell pictures and questions apart, too, and a map of what they select has clusters. Only what training
adds to purity speaks of learning. On arrays alone; how the untrained adapter is made is in `untrained`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from interference.factors import neighbours
from interference.factors.neighbours import Embedding, distances, most_neighbours, nearest
from interference.factors.selections import Array, Selections
from interference.statistics.groups import Codes, codes_of

SPLITS = 200
LEAST_GROUPS = 6
"""Groups of every task below which no interval is given."""
_PER_NEIGHBOUR = 6
"""Examples for every neighbour below which no interval is given."""


@dataclass(frozen=True)
class Contrast:
    """The untrained adapter's map, and how much purer the trained one's neighbourhoods by selections are.

    Attributes:
        embedding: of the untrained adapter: its map and purities.
        difference: purity of the trained adapter minus that of the untrained one.
        low: lower end of its 95% interval; NaN if that is withheld.
        high: upper end.
        withheld: why there is no interval; None if there is one.
        groups: of the examples.
    """

    embedding: Embedding
    difference: float
    low: float
    high: float
    withheld: str | None
    groups: int

    @property
    def verdict(self) -> str:
        """The conclusion from the interval."""
        if self.withheld is not None:
            return f"no interval: {self.withheld}"
        if self.low <= 0 <= self.high:
            return "the interval contains 0: no sign that training made the clusters"
        return "training made neighbourhoods purer" if self.low > 0 else "training made neighbourhoods less pure"


def contrast(trained: Selections, untrained: Selections, embedding: Embedding, splits: int = SPLITS) -> Contrast:
    """The untrained adapter beside the trained one, on the same examples.

    Examples share neighbours, so their own purities are not independent, and a bootstrap, which repeats examples, has
    no neighbours of its own. The interval therefore comes from the scatter of halves: the groups of each kind (the
    tasks that they have examples of) are split at random, the difference d is taken in both halves alone, and, as the
    halves are independent and a mean over half the groups has twice the variance,

        Var(d) = mean over splits of (d_1 - d_2)^2 / 4.

    A half has k / sqrt(2) neighbours, between the same number (k) and the same radius (k / 2). The quantile is
    Student's with as many degrees of freedom as groups, less one for each kind.

    Args:
        trained: what the examples select of the trained adapter.
        untrained: what the same examples select of the untrained one.
        embedding: `neighbours.embed` of `trained`, with the perplexity, k and seed of both.
        splits: random halves.
    """
    purity, seed = embedding.purity, embedding.seed
    beside = neighbours.embed(untrained, embedding.perplexity, purity.k, seed=seed, alike=True)
    found = purity.value - beside.purity.value
    labels = trained.labels
    groups = np.arange(len(labels)) if trained.groups is None else codes_of(trained.groups.tolist())
    withheld, half = _withheld(trained.names, labels, groups, purity.k), float("nan")
    if withheld is None:
        both = distances(trained), distances(untrained)
        kinds = _kinds(labels, groups)
        sides = _sides(kinds, groups, splits, np.random.default_rng(seed))
        squares = [(_own(both, labels, groups, side, purity.k) - _own(both, labels, groups, ~side, purity.k)) ** 2
                   for side in sides]  # fmt: skip
        freedom = len(kinds) - len(np.unique(kinds))
        half = float(stats.t.ppf(0.975, freedom) * np.sqrt(np.mean(squares) / 4))
    return Contrast(beside, found, found - half, found + half, withheld, int(groups.max()) + 1)


def _withheld(names: list[str], labels: NDArray[np.intp], groups: Codes, k: int) -> str | None:
    """Why there is no interval: halves of few groups, or of few examples for k neighbours, scatter too little."""
    for place, name in enumerate(names):
        if (count := len(np.unique(groups[labels == place]))) < LEAST_GROUPS:
            return f"task {name!r} has {count} groups of examples, and {LEAST_GROUPS} are needed"
    if len(labels) < _PER_NEIGHBOUR * k:
        return f"{len(labels)} examples are too few for {k} neighbours; {_PER_NEIGHBOUR * k} are needed"
    return None


def _kinds(labels: NDArray[np.intp], groups: Codes) -> Codes:
    """[groups]: the same number for groups that have examples of the same tasks."""
    has = np.zeros((groups.max() + 1, labels.max() + 1), bool)
    has[groups, labels] = True
    return codes_of(map(tuple, has.tolist()))


def _sides(kinds: Codes, groups: Codes, splits: int, random: np.random.Generator) -> Iterator[NDArray[np.bool_]]:
    """Random halves of the groups of each kind: [examples], whether an example is in the first one."""
    for _ in range(splits):
        side, odd = np.empty(len(kinds), bool), 0
        for kind in range(kinds.max() + 1):
            members = random.permutation(np.flatnonzero(kinds == kind))
            side[members] = (np.arange(len(members)) + odd) % 2 == 0
            odd = (odd + len(members)) % 2  # one that is left over goes to the half that has fewer
        yield side[groups]


def _own(both: tuple[Array, Array], labels: NDArray[np.intp], groups: Codes, kept: NDArray[np.bool_], k: int) -> float:
    """The difference of purity among the examples that are kept."""
    rows, label, group = np.ix_(kept, kept), labels[kept], groups[kept]
    fewer = min(max(1, round(k / np.sqrt(2))), most_neighbours(len(label), group))
    same = label[:, None] == label
    trained, untrained = (float((nearest(one[rows], fewer, group) * same).sum()) for one in both)
    return (trained - untrained) / len(label)
