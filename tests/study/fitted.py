"""python -m tests.study.fitted FROM TO: interference in parts of the model, weighted as fits one suite, on another.

The parts are what models share: quarters of the depth, sides, and modules of the same name. Weights are a ridge
regression of the truth on interference in each part, both standardised within rows, over all checkpoints of FROM that
have every part. Prints how well the weighted matrix ranks the truth of TO, beside interference over all blocks.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from interference.prediction import Validation, load_validation
from interference.prediction.predictors import BY_PART

Array = NDArray[np.float64]
QUARTERS = 4
PENALTY = 1.0


def parts(found: Validation, step: int) -> dict[str, Array]:
    """Interference in each part at a checkpoint, [tasks, tasks] by name; layers as means of quarters of the depth.

    Args:
        found: the validation.
        step: of the checkpoint.
    """
    known = [(name, own) for (name, at), own in found.matrices() if at == step and name.startswith(BY_PART)]
    matrices = {name[len(BY_PART) :]: own for name, own in known}
    layers = [own for name, own in matrices.items() if name.startswith("layer ")]
    others = {name: own for name, own in matrices.items() if not name.startswith("layer ")}
    bounds = np.linspace(0, len(layers), QUARTERS + 1).round().astype(int)
    split = {f"quarter {k + 1}": layers[bounds[k] : bounds[k + 1]] for k in range(QUARTERS)}
    return {**{name: np.mean(own, axis=0) for name, own in split.items() if own}, **others}


def standardised(matrix: Array) -> Array:
    """A matrix without its diagonal, each row of mean 0 and deviation 1, NaN on the diagonal.

    Args:
        matrix: [tasks i, tasks j].
    """
    off = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)
    centred = off - np.nanmean(off, axis=1, keepdims=True)
    found: Array = centred / np.nanstd(off, axis=1, keepdims=True)
    return found


def weights(found: Validation, horizon: int, names: list[str]) -> Array:
    """The weight of each part, as fits what training did.

    Args:
        found: the validation.
        horizon: steps of training.
        names: of the parts.
    """
    truth = standardised(np.mean(found.outcomes.truth("pairs", horizon), axis=0))
    rows, wanted = [], []
    for step in sorted(set(found.predictions["step"])):
        own = parts(found, step)
        if all(_whole(own[name]) for name in names):
            rows.append(np.stack([standardised(own[name]) for name in names], axis=-1)[_off(truth)])
            wanted.append(truth[_off(truth)])
    fitted: Array = Ridge(alpha=PENALTY).fit(np.concatenate(rows), np.concatenate(wanted)).coef_
    return fitted


def judged(source: Validation, target: Validation) -> pd.DataFrame:
    """How well weights that fit one suite predict another, one row a horizon of both and checkpoint of the target.

    Args:
        source: whose truth is fitted.
        target: whose truth is predicted.
    """
    steps = sorted(set(target.predictions["step"]))
    names = sorted(set(parts(source, steps[-1])) & set(parts(target, steps[-1])))
    frames = []
    for horizon in [each for each in source.outcomes.horizons if each in target.outcomes.horizons]:
        found = weights(source, horizon, names)
        for step in steps:
            own = parts(target, step)
            if all(_whole(own[name]) for name in names):
                matrix = np.tensordot(found, [standardised(own[name]) for name in names], axes=1)
                rows = target.judged(np.nan_to_num(matrix))
                frames.append(rows[rows["horizon"] == horizon].assign(prediction="weighted parts", step=step))
    return pd.concat(frames, ignore_index=True)


def _off(matrix: Array) -> NDArray[np.bool_]:
    """Where a matrix is off its diagonal."""
    found: NDArray[np.bool_] = ~np.eye(len(matrix), dtype=bool)
    return found


def _whole(matrix: Array) -> bool:
    """Whether every cell off the diagonal is a number; before training, factors of A have no gradient."""
    return bool(np.isfinite(matrix[_off(matrix)]).all())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.study.fitted", description=__doc__)
    parser.add_argument("source", type=Path, help="a validation, as OUT/SUITE/run-validation")
    parser.add_argument("target", type=Path, help="another")
    given = parser.parse_args()
    found = judged(load_validation(given.source), load_validation(given.target))
    print(found.drop(columns=["truth"]).round(2).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
