"""Neighbours: whether examples of one task lie together, by their selections or on a map of these.

Distances, purity of the nearest neighbours, silhouettes, and the t-SNE map; all on arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_samples

from interference.errors import MeasurementError, ScopeError
from interference.factors.selections import PERMUTATIONS, Array, Selections, check_tasks, features, unit_rows

NEIGHBOURS = 10
PERPLEXITY = 30.0
WIDTH = 50  # principal components that t-SNE sees


@dataclass(frozen=True)
class Purity:
    """How often the neighbours of an example are of its task.

    Attributes:
        value: share of the nearest neighbours, mean over examples.
        chance: its expectation if task labels had nothing to do with distances.
        low: lower end of the interval that holds 95% of the values under permuted labels.
        high: its upper end.
        p: share of permutations that are at least as pure.
        k: neighbours looked at.
        by_task: one row a task: examples, purity, chance.
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
        perplexity: of the t-SNE.
        seed: of everything random.
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
) -> Purity:
    """The share of every example's k nearest others that are of its own task.

    If several are as near as the k-th, each counts in part, so that order does not matter. Chance is exact: with n
    examples, n_t of them of task t, it is sum_t n_t (n_t - 1) / (n (n - 1)).

    Args:
        distances: [examples, examples].
        tasks: of the examples.
        k: neighbours looked at.
        permutations: of the labels, for the interval and p.
        seed: of the permutations.

    Raises:
        ScopeError: if there is only one task, or there are fewer than k others.
    """
    check_tasks(tasks)
    count = len(tasks)
    if not 1 <= k < count:
        raise ScopeError(
            f"k is {k}, but each of {count} examples has {count - 1} others; take more examples, or a k from 1 to "
            f"{count - 1}"
        )
    names, labels = np.unique(list(tasks), return_inverse=True)
    weights = _weights(distances, k)
    rows, columns = weights.nonzero()
    shares = weights[rows, columns]

    def mean_purity(given: NDArray) -> float:
        return float(shares[given[rows] == given[columns]].sum() / count)

    random = np.random.default_rng(seed)
    null = np.array([mean_purity(random.permutation(labels)) for _ in range(permutations)])
    value = mean_purity(labels)
    sizes = np.bincount(labels)
    own = (weights * (labels[:, None] == labels)).sum(axis=1)
    by_task = pd.DataFrame(
        {
            "examples": sizes,
            "purity": np.bincount(labels, own) / sizes,
            "chance": (sizes - 1) / (count - 1),
        },
        index=pd.Index(names, name="task"),
    ).loc[list(dict.fromkeys(tasks))]
    chance = float((sizes * (sizes - 1)).sum() / (count * (count - 1)))
    low, high = np.quantile(null, [0.025, 0.975])
    p = (1 + (null >= value - 1e-9).sum()) / (1 + permutations)
    return Purity(value, chance, float(low), float(high), float(p), k, by_task)


def silhouette(distances: NDArray, tasks: Sequence[str]) -> pd.Series:
    """Every task's mean silhouette: from -1 (nearer to another task) over 0 to 1 (apart).

    Args:
        distances: [examples, examples].
        tasks: of the examples.

    Returns:
        Indexed by task, by first appearance.

    Raises:
        ScopeError: if there is only one task, or no task has two examples.
    """
    check_tasks(tasks)
    names = list(dict.fromkeys(tasks))
    if len(names) == len(tasks):
        raise ScopeError(f"each of the {len(names)} tasks has one example, and none lies apart; raise samples")
    found = pd.Series(silhouette_samples(distances, np.array(list(tasks)), metric="precomputed"), name="silhouette")
    return found.groupby(pd.Index(list(tasks), name="task")).mean().loc[names]


def tsne(rows: NDArray, perplexity: float = PERPLEXITY, seed: int = 0) -> Array:
    """A t-SNE map of rows [examples, features]: points [examples, 2] whose neighbours are those of the rows.

    It starts from the first two principal components; rows wider than 50 are first reduced to 50 of them. Distances
    between groups, sizes and densities on such a map have no meaning (van der Maaten and Hinton 2008).

    Args:
        rows: such as `features`.
        perplexity: roughly the number of neighbours that each point keeps.
        seed: of everything random.

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
    perplexity: float = PERPLEXITY,
    k: int = NEIGHBOURS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Embedding:
    """The map of what examples select, and the purity of their k nearest neighbours on it and by the selections.

    Raises:
        ScopeError: if the perplexity or k is too large for the number of examples.
        MeasurementError: if all examples selected the same.
    """
    points = tsne(features(selections), perplexity, seed)
    purities = (
        purity(found, selections.tasks, k, permutations, seed) for found in (distances(selections), on_map(points))
    )
    return Embedding(points, perplexity, seed, *purities)


def _weights(distances: NDArray, k: int) -> Array:
    """[examples, examples]: each row is spread evenly over the k nearest others; ties share the rest."""
    others = np.array(distances, dtype=np.float64)
    np.fill_diagonal(others, np.inf)
    kth = np.partition(others, k - 1, axis=1)[:, k - 1 : k]
    closer, tied = others < kth, others == kth
    left = (k - closer.sum(axis=1)) / tied.sum(axis=1)
    return (closer + tied * left[:, None]) / k
