"""Predictors that the study tests beside those of `interference validate`: functions of a run, from its Gram alone.

With mean gradients G_i, training on i and j together follows G_i + G_j, where i alone follows G_i. Each idea says what
that does to task i.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from interference import Run
from interference.prediction.predictors import Predictor, products

Array = NDArray[np.float64]
SHRINKAGE = 0.1
"""Of the curvature in `natural`, relative to its mean eigenvalue."""


def _of(run: Run) -> tuple[Array, Array]:
    """The Gram [units, units], and which units are of which task [tasks, units]."""
    owner = run.probes["task"].to_numpy()
    return run.gram().astype(float), np.array([owner == task for task in run.tasks], dtype=float)


def inner(run: Run) -> pd.DataFrame:
    """<G_i, G_j>: a fall without any normalisation, so that the length of j's gradient counts.

    Args:
        run: Of a checkpoint.

    Returns:
        [tasks, tasks], rows affected, columns stepped.
    """
    return pd.DataFrame(products(run), run.tasks, run.tasks)


def pull(run: Run) -> pd.DataFrame:
    """Minus |G_j - G_i|^2: how far j's gradient pulls from i's own.

    Args:
        run: Of a checkpoint.

    Returns:
        [tasks, tasks], rows affected, columns stepped.
    """
    found = products(run)
    own = np.diagonal(found)
    return pd.DataFrame(found + found.T - own[:, None] - own[None, :], run.tasks, run.tasks)


def clash(run: Run) -> pd.DataFrame:
    """min(cos, 0) |G_j|: only a conflict counts, by the length of j's gradient.

    Args:
        run: Of a checkpoint.

    Returns:
        [tasks, tasks], rows affected, columns stepped; NaN where a mean gradient is lost in noise.
    """
    found = products(run)
    own = np.diagonal(found)
    length = np.sqrt(np.where(own > 0, own, np.nan))
    return pd.DataFrame(np.minimum(found, 0) / length[:, None], run.tasks, run.tasks)


def natural(run: Run) -> pd.DataFrame:
    """What a natural-gradient step on i and j lowers i's loss by, less than one on i alone.

    The curvature is that of the units' gradients g, F = mean of g g^T + lambda. With w the weights of the units in a
    mean gradient, D = diag(w) and K the Gram, G^T F^-1 G_i is K (D K + lambda)^-1 w: the Gram is all that is needed.

    Args:
        run: Of a checkpoint.

    Returns:
        [tasks, tasks], rows affected, columns stepped.
    """
    kernel, member = _of(run)
    own = member / member.sum(axis=1, keepdims=True)
    found = np.empty((len(own), len(own)))
    for i, first in enumerate(own):
        base = first @ _step(kernel, first)
        for j, second in enumerate(own):
            found[i, j] = first @ _step(kernel, (first + second) / 2) - base
    return pd.DataFrame(found, run.tasks, run.tasks)


def _step(kernel: Array, weights: Array) -> Array:
    """How far a natural step on the mean of the weighted units lowers every unit's loss [units]."""
    used = weights > 0
    curvature = weights[used, None] * kernel[np.ix_(used, used)]
    ridge = SHRINKAGE * np.trace(curvature) / used.sum()
    found: Array = kernel[:, used] @ np.linalg.solve(curvature + ridge * np.eye(used.sum()), weights[used])
    return found


IDEAS: Mapping[str, Predictor] = MappingProxyType({"inner": inner, "pull": pull, "clash": clash, "natural": natural})
"""By name."""
