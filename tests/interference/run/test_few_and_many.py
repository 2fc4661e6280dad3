"""Tables of runs at their edges: equal examples, two units a task, two thousand."""

import warnings

import numpy as np
import pandas as pd
import pytest

from interference.blocks import Block, Side, to_frame
from interference.run import Run
from interference.run.grams import pack
from interference.statistics import metrics


def run_of(rows, names):
    """A run of one block whose gradients are these rows."""
    places = [str(k) for k in range(len(names))]
    probes = pd.DataFrame({"task": names, "loss": 1.0, "tokens": 1, "ids": places, "source": places})
    blocks = to_frame([Block("language", 0, "q_proj", "attention", Side.A, rows.shape[1])])
    gram = (rows @ rows.T).astype(np.float32)
    return Run(probes, blocks, {name: pack(gram) for name in blocks["name"]}, {"seed": 0})


def test_identical_examples_have_no_noise():
    rows = np.repeat([[1.0, 0.0], [1.0, 1.0]], 4, axis=0)
    run = run_of(rows, ["a"] * 4 + ["b"] * 4)
    expected = [[1.0, np.sqrt(0.5)], [np.sqrt(0.5), 1.0]]
    table = run.table("delta")
    np.testing.assert_allclose(table["low"], table["value"], rtol=1e-5)
    np.testing.assert_allclose(table["high"], table["value"], rtol=1e-5)
    np.testing.assert_allclose(run.matrix("interference"), expected, rtol=1e-5)
    assert (run.signal()["unit_noise"].abs() < 1e-6).all()


@pytest.mark.parametrize("metric", ["interference", "delta", "cosine", "pair_cosine", "conflict_rate", "curvature"])
def test_two_units_a_task_give_values_and_no_warning(metric):
    rows = np.random.default_rng(0).normal(size=(6, 20)) + 1
    run = run_of(rows, ["a", "a", "b", "b", "c", "c"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = run.table(metric)
    assert np.isfinite(table["value"]).all()
    assert table["verdict"].isin(["self", "conflict", "synergy", "unclear", "no-signal"]).all()


@pytest.mark.slow
def test_two_thousand_units_a_task_find_a_small_effect():
    """Cosine -0.1 of the means beneath three times as much noise: plain at 2,000 units, with tight intervals."""
    generator = np.random.default_rng(0)
    means = np.zeros((2, 400))
    means[0, 0], means[1, 0], means[1, 1] = 1, -0.1, np.sqrt(0.99)
    rows = np.repeat(means, 2000, axis=0) + 3 * generator.normal(size=(4000, 400)) / np.sqrt(400)
    run = run_of(rows, ["a"] * 2000 + ["b"] * 2000)
    table = run.table("interference", reduce="ratio-of-means", replicates=200).set_index(["affected", "stepped"])
    cell = table.loc["a", "b"]
    assert cell["verdict"] == "conflict" and cell["low"] < -0.1 < cell["high"]
    assert cell["high"] - cell["low"] < 0.1
    assert metrics.signal(run.gram(), list(run.probes["task"])).reliability == pytest.approx(1, abs=0.01)
