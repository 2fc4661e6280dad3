"""Selections made by hand or at random, of a mixture or a LoRA, and the factors that they make."""

import numpy as np
import pandas as pd

from interference.factors import Factors
from interference.factors.selections import Selections


def chosen(tasks, *values, factors=4, layers=None) -> Selections:
    """A mixture's selections: `values[b]` [examples, r] of block b, one module a layer."""
    layers = layers or list(range(len(values)))
    rows = [("language", layer, "q_proj", "attention", "A") for layer in layers]
    blocks = pd.DataFrame(rows, columns=["component", "layer", "module", "group", "side"]).assign(factors=factors)
    blocks.insert(0, "name", [f"b{k}" for k in range(len(values))])
    arrays = {f"b{k}": np.array(value, np.int32) for k, value in enumerate(values)}
    return Selections(list(tasks), blocks.astype({"layer": "Int64"}), arrays, True)


def activated(tasks, *values) -> Selections:
    """A LoRA's selections: `values[b]` [examples, rank]."""
    made = chosen(tasks, *(np.zeros((len(tasks), 1)) for _ in values))
    arrays = {f"b{k}": np.array(value, np.float32) for k, value in enumerate(values)}
    ranks = [value.shape[1] for value in arrays.values()]
    return Selections(made.tasks, made.blocks.assign(factors=ranks), arrays, False)


def random_mixture(seed=0, examples=(12, 9, 7), blocks=3, r=2, factors=5, planted=0.0):
    """Tasks a, b, c, whose examples choose at random, or with probability `planted` their task's own factors."""
    random = np.random.default_rng(seed)
    tasks = [name for name, count in zip("abc", examples, strict=False) for _ in range(count)]
    values = []
    for _ in range(blocks):
        drawn = np.array([random.permutation(factors)[:r] for _ in tasks])
        own = np.array([[(ord(task) + k) % factors for k in range(r)] for task in tasks])
        values.append(np.where(random.random((len(tasks), 1)) < planted, own, drawn))
    return chosen(tasks, *values, factors=factors)


def factors(made) -> Factors:
    """These selections with an id and a source an example."""
    examples = pd.DataFrame({"task": made.tasks, "id": [f"e{k}" for k in range(len(made.tasks))], "source": "x"})
    return Factors(made, examples, {"adapter_kind": "MIXLORA" if made.mixture else "LORA", "seed": 3})
