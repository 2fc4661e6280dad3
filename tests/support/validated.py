"""Validations of known truth, made without training: trainings on pairs whose losses follow a matrix."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from interference.prediction import validation
from interference.prediction.outcomes import Outcomes
from interference.prediction.predictors import matrices

SEEDS = 3


def write(place: Path, run, truths, steps=(10,), noise=0.05, seed=0) -> Path:
    """The validation of a run, whose checkpoints are all alike: {horizon: T [tasks i, tasks j]} is the truth.

    `place / "runs" / "step-N"` is the run, with a fingerprint of its own for each step.
    """
    rng, tasks, count = np.random.default_rng(seed), run.tasks, 6
    sets = [*combinations(tasks, 1), *combinations(tasks, 2)]
    owner = np.repeat(np.arange(len(tasks)), count)
    losses = np.full((SEEDS, len(sets), len(truths), len(owner)), 3.0)
    for at, truth in enumerate(truths.values()):
        seen = truth + noise * rng.normal(size=(SEEDS, *truth.shape))
        for k, own in enumerate(sets[len(tasks) :]):
            for i, j in (map(tasks.index, own), map(tasks.index, own[::-1])):
                losses[:, len(tasks) + k, at, owner == i] -= seen[:, i, j][:, None]
    examples = pd.DataFrame({"task": np.repeat(tasks, count), "id": "x", "source": "a:1", "group": range(len(owner))})
    known = {"tasks": tasks, "sets": [list(own) for own in sets], "horizons": list(truths), "seeds": [7, 8, 9]}
    recipe = {"learning_rate": 0.01, "of": "runs/lora"}
    Outcomes(
        examples.assign(tokens=1),
        losses + 0.01 * rng.normal(size=losses.shape),
        np.full((SEEDS, len(owner)), 4.0),
        {**known, "truth": ["pairs"], "share": 8, "seed": 0, "recipe": recipe},
    ).save(place / validation.OUTCOMES)
    pairs = pd.MultiIndex.from_product([tasks, tasks], names=["affected", "stepped"]).to_frame(False)
    frames = [
        pairs.assign(prediction=name, step=step, value=matrix.ravel())
        for step in steps
        for name, matrix in matrices(run, {})
    ]
    validation.save(place, pd.concat(frames, ignore_index=True), {"seed": 0})
    for step in steps:
        run.meta["fingerprints"] = {"model": f"{step:032x}"}
        run.save(place / validation.RUNS / f"step-{step}")
    return place
