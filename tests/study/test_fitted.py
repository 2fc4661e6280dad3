"""Weights of parts that fit one suite: where training follows one part, they find it on another suite."""

import sys

import numpy as np
import pandas as pd
import pytest

from interference import blocks
from interference.prediction import load_validation
from interference.prediction.predictors import of_metric
from interference.run import Run
from tests.study import fitted
from tests.support import runs, validated

TASKS, UNITS, SIZE, PART = tuple("abcdef"), 5, 6, "up_proj"


def measured(seed):
    """A run whose tasks have other gradients in every block."""
    rng = np.random.default_rng(seed)
    kinds = [(layer, *kind) for layer in range(4) for kind in (("q_proj", "attention"), (PART, "mlp"))]
    frame = blocks.to_frame(blocks.Block("language", *kind, side, SIZE) for kind in kinds for side in "AB")
    packed = {}
    for name in frame["name"]:
        rows = np.repeat(rng.normal(size=(len(TASKS), SIZE)), UNITS, axis=0)
        rows += 0.2 * rng.normal(size=rows.shape)
        packed[name] = runs.pack((rows @ rows.T).astype(np.float32))
    ids = [f"{task}{k}" for task in TASKS for k in range(UNITS)]
    probes = pd.DataFrame({"task": [own[0] for own in ids], "loss": 1.0, "tokens": 1, "ids": ids, "source": ids})
    return Run(probes, frame, packed, {"seed": seed})


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two validations: T is the interference in one module."""
    found = []
    for seed in (0, 1):
        run = measured(seed)
        truth = of_metric(run, "interference", modules=[PART]).to_numpy()
        found.append(validated.write(tmp_path_factory.mktemp("suite") / "run", run, {10: truth, 20: truth}, noise=0.02))
    return found


def test_the_part_that_training_follows_is_found(places):
    source, target = map(load_validation, places)
    names = sorted(fitted.parts(source, 10))
    found = dict(zip(names, fitted.weights(source, 10, names), strict=True))
    assert {f"quarter {k}" for k in range(1, 5)} < set(names)
    assert max(found, key=found.get) in (PART, "mlp") and found[PART] + found["mlp"] > 0.5  # which are the same here
    judged = fitted.judged(source, target)
    assert list(judged["horizon"]) == [10, 20] and (judged["value"] > 0.9).all()
    whole = target.table(parts=False).query("prediction == 'interference'")["value"].max()
    assert judged["value"].min() > whole + 0.1


def test_what_it_prints(places, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fitted", *map(str, places)])
    assert fitted.main() == 0
    said = capsys.readouterr().out
    assert "weighted parts" in said and len(said.splitlines()) == 3
