"""Trials of known outcome, made without training: losses of arms that are given, with noise."""

from pathlib import Path

import numpy as np
import pandas as pd

from interference.advice.arms import arms, possible, split_of
from interference.advice.tried import Trial
from interference.prediction.holding import measured

SEEDS = 3


def made(run, groups, gain, noise=0.02, random=3, seed=0, weights=None) -> Trial:
    """A trial of a run's groups: all arms have a loss of 2, those of the advised groups are lower by `gain`.

    With `weights` there is an arm of weighed losses, which are lower by this.
    """
    rng, tasks, count = np.random.default_rng(seed), run.tasks, 6
    found = arms(tasks, groups, random, seed, [] if weights is None else ["weights"])
    owner = np.repeat(tasks, count)
    losses = 2 + noise * rng.normal(size=(SEEDS, len(found), len(owner)))
    names = [arm.name for arm in found]
    if groups:
        losses[:, names.index("advised groups")] -= gain
    if weights is not None:
        losses[:, names.index("together, weights")] -= weights
    right = (rng.random(losses.shape) < 0.5).astype(float)
    examples = pd.DataFrame({"task": owner, "id": "x", "source": "a:1", "group": range(len(owner)), "tokens": 1})
    told = [
        {"name": arm.name, "groups": [list(piece.tasks) for piece in arm.pieces], "parameters": 64 * len(arm.pieces)}
        for arm in found
    ]
    meta = {
        "arms": told, "among": possible(split_of(groups, tasks)) - 1 if groups else 0, "steps": 12, "share": 2,
        "seeds": [7, 8, 9], "seed": 0, "runs": [list(measured(run.meta))], "recipe": {"of": "runs/lora"},
    }  # fmt: skip
    return Trial(examples, losses, right, meta)


def beside(run, place: Path, trial: Trial) -> Path:
    """The directories of a run and of the trial of its advice."""
    run.save(place)
    trial.save(place.with_name(f"{place.name}-advice-trial"))
    return place
