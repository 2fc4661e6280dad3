"""Weighting: weights of the tasks' losses, where a step on their plain sum raises the loss of one.

With G_i the mean gradient of task i, a step along the sum changes the loss of i by -<G_i, sum_j G_j> to first order.
Where that is surely a rise, UPGrad (Quinton and Rey 2024) gives the weights of a step that raises none.

Not here: combining gradients in every step of a training (`mixlora.training.combining`).
"""

from dataclasses import dataclass

import numpy as np

from interference.errors import ConfigError
from interference.run import Run
from interference.run.phrases import interval, number, several
from interference.statistics.estimand import Estimand
from interference.statistics.intervals import interval as ends_of
from interference.statistics.layout import Array
from interference.statistics.resamples import Resamples
from interference.statistics.significance import benjamini_hochberg, p_value
from mixlora.training.config import Combine, RecipeSection

_LEVEL = 0.95
_PRODUCTS = Estimand("cosine")
"""Its pair means are inner products of gradients of different groups."""


@dataclass(frozen=True)
class Weighting:
    """Weights of the tasks' losses.

    Attributes:
        weights: {task: its weight}, 1 in the mean; none where no step on the sum surely raises a loss.
        words: why, or why not, as a clause.
    """

    weights: dict[str, float]
    words: str


def weighting(run: Run) -> Weighting:
    """The weights that a run supports.

    Args:
        run: Of the checkpoint from which training goes on.

    Returns:
        The weights; none where nothing asks for them, or TorchJD is not installed.
    """
    resamples = Resamples(run.theta(), list(run.probes["task"]), seed=run.seed, groups=run.groups)
    means = resamples.pair_means(_PRODUCTS)
    own, progress = np.diagonal(means.value), means.value.sum(axis=1)
    draws = means.draws.sum(axis=2)
    low, high = ends_of(draws, _LEVEL)
    q = benjamini_hochberg(p_value(progress, draws.var(axis=0), np.full(len(own), np.inf)))
    raised = np.flatnonzero((high < 0) & (q <= 1 - _LEVEL) & (own > 0))
    if not len(raised):
        return Weighting({}, "a step on the sum of the losses raises no task's loss beyond noise")
    shares = zip(*(each[raised] / own[raised] for each in (progress, low, high)), strict=True)
    told = several([
        f"{run.tasks[i]} ({number(value)} {interval(least, most)} of its own progress)"
        for i, (value, least, most) in zip(raised, shares, strict=True)
    ])  # fmt: skip
    why = f"a step on the sum of the losses raises the loss of {told}"
    try:
        found = _upgrad(means.value, run.tasks)
    except ConfigError as error:
        return Weighting({}, f"{why}; for weights, {str(error).partition(': ')[2]}")
    return Weighting(found, why)


def _upgrad(products: Array, tasks: list[str]) -> dict[str, float]:
    """UPGrad's weights of the tasks' mean gradients, 1 in the mean.

    Raises:
        ConfigError: If TorchJD is not installed.
    """
    import torch  # which advice alone does not need

    from mixlora.training.combining import Combination

    values, vectors = np.linalg.eigh((products + products.T) / 2)
    # without pairs of one group the products need not be those of any vectors
    gram = (vectors * np.maximum(values, 0)) @ vectors.T
    combination = Combination(RecipeSection.model_validate({"combine": Combine.UPGRAD}), tasks)
    found = combination.coefficients(torch.from_numpy(gram), 0).numpy()
    scaled = found / found.mean()
    return {task: max(round(float(weight), 3), 1e-3) for task, weight in zip(tasks, scaled, strict=True)}
