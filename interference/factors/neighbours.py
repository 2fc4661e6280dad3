"""Neighbours: whether examples of one task lie together, by their selections or on a map of these.

Distances, purity of the nearest neighbours, silhouettes, and the t-SNE map; all on arrays. An example's neighbours are
looked for in other groups: that a copy or another question on the same picture is near says nothing of its task.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from interference.errors import MeasurementError, ScopeError
from interference.factors.selections import PERMUTATIONS, Array, Selections, check_tasks, features, unit_rows
from interference.factors.shuffles import orders
from interference.statistics.groups import Codes, codes_of

NEIGHBOURS = 10
PERPLEXITY = 30.0
WIDTH = 50  # principal components that t-SNE sees


@dataclass(frozen=True)
class Purity:
    """How often the neighbours of an example are of its task.

    Attributes:
        value: share of the nearest neighbours, mean over examples.
        chance: its expectation if neighbours were drawn at random from the other groups.
        low: lower end of the interval that holds 95% of the values under permuted labels, those of a group together.
        high: its upper end.
        p: share of permutations that are at least as pure.
        k: neighbours looked at.
        by_task: one row per task: examples, purity, chance; with groups also their number.
    """

    value: float
    chance: float
    low: float
    high: float
    p: float
    k: int
    by_task: pd.DataFrame


@dataclass(frozen=True)
class Embedding:
    """A map of the examples, and how pure neighbourhoods are by the selections and on the map.

    Attributes:
        points: [examples, 2].
        perplexity: perplexity of the t-SNE.
        seed: seed of everything random.
        purity: of neighbours by their selections.
        map_purity: of neighbours on the map, which t-SNE may have pulled together.
    """

    points: Array
    perplexity: float
    seed: int
    purity: Purity
    map_purity: Purity


def distances(selections: Selections) -> Array:
    """[examples, examples]: Hamming distances (share of entries) for a mixture, cosine distances for a LoRA."""
    rows = features(selections)
    if selections.mixture:
        common = (rows @ rows.T).astype(np.float64)
        sizes = np.diag(common)
        return (sizes[:, None] + sizes - 2 * common) / rows.shape[1]
    directions = unit_rows(rows)
    found = np.round(1 - directions @ directions.T, 9)  # so that equal distances are equal
    np.fill_diagonal(found, 0)
    return np.maximum(found, 0)


def on_map(points: NDArray) -> Array:
    """Euclidean distances [examples, examples] of points [examples, 2]."""
    points = points.astype(np.float64)
    return np.linalg.norm(points[:, None] - points, axis=-1)


def purity(
    distances: NDArray,
    tasks: Sequence[str],
    k: int = NEIGHBOURS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    groups: Codes | None = None,
) -> Purity:
    """The share of every example's k nearest others of other groups that are of its own task.

    If several are as near as the k-th, each counts in part, so that order does not matter. Chance is exact: the share
    of an example's own task among the examples of other groups, mean over examples; where all are independent, with
    n_t of n examples of task t, sum_t n_t (n_t - 1) / (n (n - 1)).

    Args:
        distances: [examples, examples].
        tasks: of the examples.
        k: neighbours looked at.
        permutations: of the labels, for the interval and p.
        seed: seed of the permutations.
        groups: [examples]; None if they are independent.

    Raises:
        ScopeError: if there is only one task or group, or an example has fewer than k others of other groups.
    """
    check_tasks(tasks)
    count, most = len(tasks), most_neighbours(len(tasks), groups)
    if not most:
        raise ScopeError(
            f"all {count} examples belong to one group, so none has a neighbour in another; give examples of other "
            "groups"
        )
    if not 1 <= k <= most:
        has = f"each of {count} examples has {most} others"
        if most < count - 1:
            has = f"{count - most} of {count} examples are in one group and have {most} others"
        raise ScopeError(f"k is {k}, but {has}; take more examples, or a k from 1 to {most}")
    names, labels = np.unique(list(tasks), return_inverse=True)
    weights = nearest(distances, k, groups)
    rows, columns = weights.nonzero()
    shares = weights[rows, columns]

    def mean_purity(given: NDArray) -> float:
        return float(shares[given[rows] == given[columns]].sum() / count)

    shuffled = orders(count, groups, permutations, np.random.default_rng(seed))
    null = np.array([mean_purity(labels[order]) for order in shuffled])
    value = mean_purity(labels)
    sizes = np.bincount(labels)
    own, expected = (weights * (labels[:, None] == labels)).sum(axis=1), _chances(labels, groups)
    numbers = {
        "examples": sizes,
        "purity": np.bincount(labels, own) / sizes,
        "chance": np.bincount(labels, expected) / sizes,
    }
    if groups is not None:
        numbers["groups"] = np.array([len(np.unique(groups[labels == place])) for place in range(len(names))])
    by_task = pd.DataFrame(numbers, index=pd.Index(names, name="task")).loc[list(dict.fromkeys(tasks))]
    low, high = np.quantile(null, [0.025, 0.975])
    p = (1 + (null >= value - 1e-9).sum()) / (1 + permutations)
    return Purity(value, float(expected.mean()), float(low), float(high), float(p), k, by_task)


def most_neighbours(count: int, groups: Codes | None = None) -> int:
    """The largest k that `purity` can look at: the examples outside the largest group."""
    return count - (1 if groups is None else int(np.unique(groups, return_counts=True)[1].max()))


def silhouette(distances: NDArray, tasks: Sequence[str], groups: Codes | None = None) -> pd.Series:
    """Every task's mean silhouette: from -1 (nearer to another task) over 0 to 1 (apart).

    (b - a) / max(a, b) of an example, a its mean distance to its own task, b that to the nearest other task (Rousseeuw
    1987), both to examples of other groups; 0 if there are none.

    Args:
        distances: [examples, examples].
        tasks: of the examples.
        groups: [examples]; None if they are independent.

    Returns:
        Indexed by task, by first appearance.

    Raises:
        ScopeError: if there is only one task, or no task has examples of two groups.
    """
    check_tasks(tasks)
    names, labels = list(dict.fromkeys(tasks)), codes_of(tasks)
    other = _others(len(tasks), groups)
    one_hot = np.eye(len(names))[labels]
    counts = other @ one_hot
    if not counts[np.arange(len(labels)), labels].any():
        kind = "example" if groups is None else "group of examples"
        raise ScopeError(
            f"each of the {len(names)} tasks has only one {kind}, so nothing can be compared within a task; raise "
            "samples"
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(counts > 0, (np.where(other, distances, 0) @ one_hot) / counts, np.inf)
    own = means[np.arange(len(labels)), labels].copy()
    means[np.arange(len(labels)), labels] = np.inf
    near = means.min(axis=1)
    both = np.isfinite(own) & np.isfinite(near) & (np.maximum(own, near) > 0)
    found = np.zeros(len(labels))
    found[both] = (near - own)[both] / np.maximum(own, near)[both]
    series = pd.Series(found, name="silhouette")
    return series.groupby(pd.Index(list(tasks), name="task")).mean().loc[names]


def tsne(rows: NDArray, perplexity: float = PERPLEXITY, seed: int = 0) -> Array:
    """A t-SNE map of rows [examples, features]: points [examples, 2] whose neighbours are those of the rows.

    It starts from the first two principal components; rows wider than 50 are first reduced to 50 of them. Distances
    between groups, sizes and densities on such a map have no meaning (van der Maaten and Hinton 2008).

    Args:
        rows: such as `features`.
        perplexity: roughly the number of neighbours that each point keeps.
        seed: seed of everything random.

    Raises:
        ScopeError: if the perplexity is not above 0 and below the number of examples.
        MeasurementError: if all rows are alike.
    """
    count = len(rows)
    if not 0 < perplexity < count:
        raise ScopeError(
            f"perplexity is {perplexity:g}, but must be above 0 and below the number of examples, {count}; set a "
            "smaller perplexity or draw more samples"
        )
    rows = rows.astype(np.float64)
    if not np.ptp(rows, axis=0).any():
        raise MeasurementError("all examples selected the same, so there is nothing to map; look at the usage instead")
    if rows.shape[1] > WIDTH:
        rows = PCA(min(WIDTH, count), random_state=seed).fit_transform(rows)
    if rows.shape[1] == 1:
        rows = np.column_stack([rows, np.zeros(count)])  # the map has two axes
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows).astype(np.float64)


def embed(
    selections: Selections,
    perplexity: float | None = None,
    k: int | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    alike: bool = False,
) -> Embedding:
    """The map of what examples select, and the purity of their k nearest neighbours on it and by the selections.

    Args:
        selections: of the examples.
        perplexity: perplexity of the t-SNE; None for 30, or a third of the other examples where that is less.
        k: neighbours looked at; None for 10, or all of other groups where these are fewer.
        permutations: of the labels.
        seed: seed of everything random.
        alike: whether examples that all selected the same are put into one point, as a control may.

    Raises:
        ScopeError: if the perplexity or k is too large for the number of examples.
        MeasurementError: if all examples selected the same.
    """
    rows = features(selections)
    count = len(rows)
    perplexity = min(PERPLEXITY, max(1.0, (count - 1) / 3)) if perplexity is None else perplexity
    k = min(NEIGHBOURS, max(1, most_neighbours(count, selections.groups))) if k is None else k
    same = alike and not np.ptp(rows, axis=0).any()
    points = np.zeros((count, 2)) if same else tsne(rows, perplexity, seed)
    purities = (
        purity(found, selections.tasks, k, permutations, seed, selections.groups)
        for found in (distances(selections), on_map(points))
    )
    return Embedding(points, perplexity, seed, *purities)


def nearest(distances: NDArray, k: int, groups: Codes | None = None) -> Array:
    """[examples, examples]: each row is spread evenly over the k nearest of other groups; ties share the rest."""
    others = np.where(_others(len(distances), groups), distances, np.inf)
    kth = np.partition(others, k - 1, axis=1)[:, k - 1 : k]
    closer, tied = others < kth, others == kth
    left = (k - closer.sum(axis=1)) / tied.sum(axis=1)
    return (closer + tied * left[:, None]) / k


def _others(count: int, groups: Codes | None) -> NDArray[np.bool_]:
    """[examples, examples]: whether two are of different groups."""
    group = np.arange(count) if groups is None else groups
    return group[:, None] != group


def _chances(labels: NDArray, groups: Codes | None) -> Array:
    """[examples]: the share of an example's own task among the examples of other groups."""
    other = _others(len(labels), groups)
    return (other & (labels[:, None] == labels)).sum(axis=1) / other.sum(axis=1)
