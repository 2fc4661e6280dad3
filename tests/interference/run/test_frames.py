"""Tables as pandas and xarray have them: tasks keep their order, parts have their axes, nothing else changes."""

import sys

import numpy as np
import pandas as pd
import pytest

from interference.errors import ConfigError, MeasurementError, ScopeError
from interference.run import Run, compare, frames
from tests.support import runs

NAMES = ("zebra", "ant")
QUICK = {"replicates": 50}


@pytest.fixture(scope="module")
def run():
    return runs.grouped(names=NAMES)


@pytest.mark.parametrize("table", [lambda run: run.table(**QUICK), lambda run: compare(run, run, **QUICK)])
def test_tasks_keep_the_order_of_the_run(run, table):
    cells = table(run)
    for name in ("affected", "stepped"):
        assert cells[name].cat.ordered and list(cells[name].cat.categories) == run.tasks == list(NAMES)
    assert list(cells["affected"]) == ["zebra", "zebra", "ant", "ant"]
    assert list(cells.groupby("affected", observed=True).size().index) == list(NAMES)
    assert list(cells.sort_values("affected")["affected"]) == list(cells["affected"])


def test_a_pivot_of_the_table_is_the_matrix(run):
    square = run.table(**QUICK).pivot(index="affected", columns="stepped", values="value")
    assert list(square.index) == list(square.columns) == list(NAMES)
    np.testing.assert_allclose(square.to_numpy(), run.matrix().to_numpy(), rtol=1e-6)


def test_a_task_may_have_any_name():
    names = ("nul\0", "half \ud800 a character")
    assert list(frames.ordered(names[::-1], names)) == list(names[::-1])


def test_a_table_by_parts_is_the_tables_of_the_parts(run):
    whole = run.table(by=["group", "layer"], **QUICK)
    assert list(whole.columns[:2]) == ["group", "layer"] and whole["layer"].dtype == int
    assert list(whole["group"].cat.categories) == ["attention", "mlp"]
    assert sorted(set(zip(whole["group"], whole["layer"], strict=True))) == [
        ("attention", 0), ("attention", 2), ("attention", 5), ("mlp", 0), ("mlp", 2)
    ]  # fmt: skip
    part = whole[(whole["group"] == "mlp") & (whole["layer"] == 2)].drop(columns=["group", "layer"])
    alone = run.table(layers=[2], modules=["mlp"], **QUICK)
    pd.testing.assert_frame_equal(part.reset_index(drop=True), alone)
    mean = run.table(by="side", aggregate="mean", **QUICK)
    pd.testing.assert_frame_equal(
        mean[mean["side"] == "B"].drop(columns="side").reset_index(drop=True),
        run.table(side="B", aggregate="mean", **QUICK),
    )


def test_parts_without_a_gradient_are_left_out():
    run = runs.made(zero_a=True)
    assert list(dict.fromkeys(run.table(by="side", **QUICK)["side"])) == ["B"]
    with pytest.raises(MeasurementError, match="every gradient in this scope is zero; choose other blocks"):
        run.table(by="layer", side="A", **QUICK)


@pytest.mark.parametrize(
    ("by", "error", "said"),
    [
        ("task", ConfigError, "by is 'task', but must be one or more of: layer, module, group, side"),
        (["layer", "layer"], ConfigError, "by names a column twice: layer, layer"),
    ],
)
def test_wrong_parts_are_refused(run, by, error, said):
    with pytest.raises(error, match=said):
        run.table(by=by)


def test_blocks_outside_of_layers_have_no_table_by_layer(run):
    blocks = run.blocks.assign(layer=pd.array([pd.NA] * len(run.blocks), dtype="Int64"))
    with pytest.raises(ScopeError, match="no block in this scope belongs to a layer"):
        Run(run.probes, blocks, run._grams, run.meta).table(by="layer")


def test_a_dataset_has_the_cells_of_the_table(run):
    pytest.importorskip("xarray")
    found, table = run.to_xarray(**QUICK), run.table(**QUICK)
    assert found["value"].dims == ("affected", "stepped") and list(found["affected"].to_numpy()) == list(NAMES)
    for name in ("value", "low", "high", "p", "q"):
        np.testing.assert_array_equal(found[name].to_numpy().ravel(), table[name])
    assert list(found["verdict"].to_numpy().ravel()) == list(table["verdict"])


def test_a_dataset_has_a_dimension_for_metrics_and_parts(run):
    pytest.importorskip("xarray")
    found = run.to_xarray(["interference", "cosine"], by=["layer", "group"], **QUICK)
    assert dict(found.sizes) == {"metric": 2, "layer": 3, "group": 2, "affected": 2, "stepped": 2}
    cell = {"affected": "ant", "stepped": "zebra"}
    expected = run.table("cosine", layers=[2], modules=["mlp"], **QUICK).set_index(["affected", "stepped"])
    picked = found.sel(metric="cosine", layer=2, group="mlp", **cell)
    assert float(picked["value"]) == expected.loc[("ant", "zebra"), "value"]
    missing = found.sel(layer=5, group="mlp")  # not probed
    assert bool(missing["value"].isnull().all()) and set(missing["verdict"].to_numpy().ravel()) == {""}


@pytest.mark.parametrize("by", ["layer", "module"])
def test_a_dataset_has_parts_of_zero_gradients_without_values(run, by):
    pytest.importorskip("xarray")
    zero = {"layer": 2, "module": "up_proj"}[by]
    grams = {
        name: run._grams[name] * (value != zero) for name, value in zip(run.blocks["name"], run.blocks[by], strict=True)
    }
    found = Run(run.probes, run.blocks, grams, run.meta).to_xarray(by=by, **QUICK)
    expected = run.to_xarray(by=by, **QUICK)
    assert found[by].values.tolist() == expected[by].values.tolist()
    empty = found.sel({by: zero})
    assert bool(empty["value"].isnull().all()) and set(empty["verdict"].to_numpy().ravel()) == {""}
    assert bool(found.drop_sel({by: zero}).equals(expected.drop_sel({by: zero})))


def test_without_xarray_one_sentence_says_what_to_do(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ConfigError, match=r"not installed; run: pip install 'task-interference\[xarray\]'$"):
        run.to_xarray(**QUICK)


def test_a_dataset_of_no_metric_is_refused(run):
    with pytest.raises(ConfigError, match="metric is empty; name one or more of: interference, delta"):
        run.to_xarray([])
