"""Runs of known gradients for the tests of a report: every unit is its task's mean plus noise, block by block."""

import numpy as np
import pandas as pd

from interference import blocks
from interference.run import Run
from interference.run.grams import pack

MODULES = {"q_proj": "attention", "up_proj": "mlp"}
DIMENSION = 8


def made(
    means, noise=0.1, units=12, seed=0, layers=(0, 3), loss=1.0, zero="", selections=None, meta=None, ids="r", drop=()
) -> Run:
    """A run of tasks {name: mean gradient of a block [DIMENSION]}.

    Blocks: layers x q_proj, up_proj x A, B. `zero`: a side whose gradients are zero. `drop`: names of units left out.
    """
    rng = np.random.default_rng(seed)
    frame = blocks.to_frame(
        blocks.Block(blocks.Component.LANGUAGE, layer, module, group, side, DIMENSION)
        for layer in layers
        for module, group in MODULES.items()
        for side in (blocks.Side.A, blocks.Side.B)
    )
    tasks = [task for task in means for _ in range(units)]
    names = [f"{ids}{k}" for _ in means for k in range(units)]
    kept = [k for k, task in enumerate(tasks) if (task, names[k]) not in drop]
    middle = np.array([means[task] for task in tasks], dtype=float)
    packed = {}
    for name, side in zip(frame["name"], frame["side"], strict=True):
        rows = (middle + noise * rng.normal(size=middle.shape))[kept] * (side != zero)
        packed[name] = pack((rows @ rows.T).astype(np.float32))
    losses = loss if isinstance(loss, dict) else dict.fromkeys(means, loss)
    probes = pd.DataFrame({
        "task": [tasks[k] for k in kept],
        "loss": [losses[tasks[k]] for k in kept],
        "tokens": 1,
        "ids": [names[k] for k in kept],
        "source": [f"{tasks[k]}.jsonl:{names[k]}" for k in kept],
    })  # fmt: skip
    return Run(probes, frame, packed, {"seed": 3, "config": None, **(meta or {})}, selections)


def axis(*places, size=1.0):
    """A mean gradient along axes: +k for axis k - 1, -k against it."""
    found = np.zeros(DIMENSION)
    for place in places:
        found[abs(place) - 1] += size * np.sign(place)
    return found


# a and b help each other, c and d too, and the two pairs undo each other
TWO_GROUPS = {"a": axis(1, 2), "b": axis(1, 3), "c": axis(-1, 4), "d": axis(-1, 5)}
# nothing in common
APART = {"a": axis(1), "b": axis(2), "c": axis(3)}
MIXLORA = {"unit": np.zeros(1, dtype=np.int32)}
