"""Runs of random gradients: of two tasks with three units each, made without a model."""

import numpy as np
import pandas as pd

from interference import blocks
from interference.run import Run
from interference.run.grams import pack

TASKS = ["a", "a", "a", "b", "b", "b"]


def made(seed=0, zero_a=False, names=("a", "b"), ids=None, planted=0.0) -> Run:
    """A run of two tasks of three units over q_proj in layers 0 and 3; `planted` is added to every gradient."""
    rng = np.random.default_rng(seed)
    frame = blocks.to_frame(
        blocks.Block(blocks.Component.LANGUAGE, layer, "q_proj", "attention", side, 5)
        for layer in (0, 3)
        for side in (blocks.Side.A, blocks.Side.B)
    )
    packed = {}
    for name in frame["name"]:
        rows = rng.normal(size=(6, 5)) + planted
        rows *= 0 if zero_a and name.endswith("A") else 1
        packed[name] = pack((rows @ rows.T).astype(np.float32))
    probes = pd.DataFrame(
        {
            "task": [names[task == "b"] for task in TASKS],
            "loss": np.arange(6) / 2,
            "tokens": np.arange(6) + 1,
            "ids": ids or [f"r{k}" for k in range(6)],
            "source": [f"f.jsonl:{k}" for k in range(6)],
        }
    )
    return Run(probes, frame, packed, {"seed": 3, "config": None})


def grouped(layers=(0, 2, 5), names=("a", "b"), seed=5):
    """A run with attention and MLP blocks in some layers; the last has no MLP."""
    source = made(planted=0.5, names=names)
    kinds = [(k, "q_proj", "attention") for k in layers] + [(k, "up_proj", "mlp") for k in layers[:-1]]
    rows = [blocks.Block("language", *kind, side, 5) for kind in kinds for side in (blocks.Side.A, blocks.Side.B)]
    frame, random = blocks.to_frame(rows), np.random.default_rng(seed)
    packed = {}
    for name in frame["name"]:
        values = random.normal(size=(6, 5)) + 0.5
        packed[name] = pack((values @ values.T).astype(np.float32))
    return Run(source.probes, frame, packed, {"seed": 3})


def contradicted(seed=0, units=20, layers=(0, 3)):
    """A run in which a step of b hurts a (conflict), while Eq. 3 calls it help.

    One unit of a is hurt by a's own step a little and by b's much, so its ratio is large and positive.
    Noise in other directions keeps units from being copies.
    """
    rows = [blocks.Block("language", layer, "q_proj", "attention", side, 32) for layer in layers for side in "AB"]
    frame, random = blocks.to_frame(rows), np.random.default_rng(seed)
    a, b = np.zeros((units, 32)), np.zeros((units, 32))
    a[:, 0], b[:, :2] = 1, -1
    a[0, :2] = [-0.01, 1]
    packed = {}
    for name in frame["name"]:
        values = np.concatenate([a, b]) + random.normal(scale=[1e-3] * 2 + [0.02] * 30, size=(2 * units, 32))
        packed[name] = pack((values @ values.T).astype(np.float32))
    names = [task for task in "ab" for _ in range(units)]
    ids = [f"{task}{k}" for task in "ab" for k in range(units)]
    probes = pd.DataFrame({"task": names, "loss": 1.0, "tokens": 1, "ids": ids, "source": ids})
    return Run(probes, frame, packed, {"seed": 3})
