"""Real steps along the gradients of units, and up to which step the first-order claim holds."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from interference.errors import MeasurementError
from interference.gradients.state import activate, as_found
from interference.gradients.targets import Target
from mixlora.common.progress import Progress

SHARES = tuple(10 ** (k / 2) for k in range(-8, 1))
"""Sizes of the steps: the predicted change of a typical unit's loss, as a share of the mean loss."""


def real_steps(
    model: nn.Module,
    targets: Sequence[Target],
    gradients: Mapping[str, Tensor],
    gram: NDArray[np.float64],
    losses: Callable[[], NDArray[np.float64]],
    progress: Progress,
) -> pd.DataFrame:
    """Compare how every unit's step lowers every other unit's loss with the first-order prediction.

    Args:
        model: its parameters are moved, and restored to the bit.
        targets: the probed modules.
        gradients: {block: [units, ...]}.
        gram: [units, units], the inner products that predict the fall of the losses.
        losses: reads every unit's loss as the model is, [units].
        progress: called after every step size.

    Returns:
        One row per step size; see `Verification.steps`.

    Raises:
        MeasurementError: if no unit's step moves another unit's loss.
    """
    norms = np.sqrt(np.maximum(np.diagonal(gram), 0))
    slopes = gram / np.where(norms > 0, norms, np.inf)[:, None]  # [unit that steps, unit whose loss is read]
    apart = ~np.eye(len(gram), dtype=bool)
    typical = math.sqrt(float(np.mean(slopes[apart] ** 2)))
    if typical == 0:
        raise MeasurementError("no step of a unit that was drawn moves another's loss; draw more (--units)")
    weights = {tap.block.name: tap.weight for target in targets for tap in target.taps.values()}
    with as_found(model), torch.no_grad():
        activate(model, targets[0].adapter)
        model.eval()
        before = losses()
        rows = []
        for done, share in enumerate(SHARES):
            step = share * float(before.mean()) / typical
            fallen = np.zeros_like(gram)
            for k in np.flatnonzero(norms):
                with _moved({weight: gradients[name][k] for name, weight in weights.items()}, -step / float(norms[k])):
                    fallen[k] = before - losses()
            rows.append({"step": step, **agreement(step * slopes[apart], fallen[apart]), "pairs": int(apart.sum())})
            progress("steps", done + 1, len(SHARES))
    return pd.DataFrame(rows)


def linear_until(steps: pd.DataFrame) -> float:
    """The largest step up to which every step is as predicted (slope within 10 %, correlation 0.99); 0 if none."""
    good = (steps["slope"].sub(1).abs() <= 0.1) & (steps["correlation"] >= 0.99)
    inside = steps.loc[good.cummin(), "step"]
    return float(inside.max()) if len(inside) else 0.0


def agreement(predicted: NDArray[np.float64], real: NDArray[np.float64]) -> dict[str, float]:
    """Root mean square of the predicted falls, slope of the real ones on them, and correlation."""
    return {
        "predicted": float(np.sqrt(np.mean(predicted**2))),
        "slope": float(predicted @ real / (predicted @ predicted)),
        "correlation": float(np.corrcoef(predicted, real)[0, 1]),
    }


@contextmanager
def _moved(directions: Mapping[Tensor, Tensor], step: float) -> Iterator[None]:
    """Move parameters along directions; restore them to the bit on leaving."""
    kept = [(parameter, parameter.detach().clone()) for parameter in directions]
    try:
        for parameter, direction in directions.items():
            parameter.add_(direction.to(parameter), alpha=step)
        yield
    finally:
        for parameter, value in kept:
            parameter.copy_(value)
