"""Figures, compared by the data they show."""

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from interference import blocks
from interference.errors import ScopeError
from interference.figures import canvas, matrices
from interference.figures.cells import SIGNED
from interference.run import Run, notebook
from interference.run.grams import pack
from interference.statistics.estimand import METRICS
from tests.support.figures import EVIL, QUICK, labels, mesh, texts
from tests.support.runs import grouped, made


@pytest.fixture(scope="module")
def shown():
    return made(planted=1.0)


@pytest.mark.parametrize("metric", METRICS)
def test_a_heatmap_shows_the_table(shown, metric):
    figure = matrices.heatmap(shown, metric, layers=[3], **QUICK)
    table = shown.table(metric, layers=[3], **QUICK)
    axes, bar = figure.axes
    cells = mesh(axes)
    np.testing.assert_allclose(np.asarray(cells.get_array()).ravel(), table["value"])
    low, high = cells.get_clim()
    assert high > 0 and low == (-high if metric in SIGNED else 0)
    assert (labels(axes.xaxis), labels(axes.yaxis)) == (["a", "b"], ["a", "b"])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("stepped task", "affected task")
    assert axes.get_title() == f"{metric}: {METRICS[metric].meaning}"
    assert bar.get_ylabel() == metric and bar.get_ylim() == (low, high)
    row = table.iloc[1]
    interval = f"[{row.low:.2f}, {row.high:.2f}]" if np.isfinite(row.low) else "[no interval]"
    assert texts(axes)[1].startswith(f"{row.value:.2f}\n{interval}")
    assert texts(axes)[0] == f"{table.value[0]:.2f}"  # a task with itself
    framed = (table["verdict"].isin(["conflict", "synergy"])).sum()
    assert sum(isinstance(patch, Rectangle) for patch in axes.patches) == framed


def test_verdicts_are_written_and_framed(shown, monkeypatch):
    table = shown.table(**QUICK).assign(verdict=["self", "conflict", "synergy", "no-signal"])
    monkeypatch.setattr(type(shown), "table", lambda self, *a, **k: table)
    axes = matrices.heatmap(shown).axes[0]
    assert [text.split("\n")[-1] for text in texts(axes)[1:]] == ["conflict", "synergy", "no signal"]
    assert [patch.get_linestyle() for patch in axes.patches] == ["-", (0, (3, 2))]
    assert [patch.get_xy() for patch in axes.patches] == [(1.04, 0.04), (0.04, 1.04)]


def test_a_cell_without_a_value_says_so(shown, monkeypatch):
    table = shown.table(**QUICK)
    table.loc[2, ["value", "low", "high"]] = np.nan
    monkeypatch.setattr(type(shown), "table", lambda self, *a, **k: table)
    axes = matrices.heatmap(shown).axes[0]
    dash = next(text for text in axes.texts if text.get_text() == "–")
    assert dash.get_position() == (0.5, 1.5) and len(axes.texts) == 4


def test_the_scale_is_not_bleached_by_one_cell(shown, monkeypatch):
    table = shown.table(**QUICK).assign(value=[1.0, -0.5, 300.0, 1.0])
    monkeypatch.setattr(type(shown), "table", lambda self, *a, **k: table)
    assert mesh(matrices.heatmap(shown).axes[0]).get_clim() == pytest.approx((-270.05, 270.05))
    small = table.assign(value=[1.0, -0.5, 0.2, 1.0])
    monkeypatch.setattr(type(shown), "table", lambda self, *a, **k: small)
    assert mesh(matrices.heatmap(shown).axes[0]).get_clim() == (-1, 1)


def test_a_series_shares_one_scale(shown):
    runs = {"early $x$": shown, "late": made(1, planted=0.2)}
    figure = matrices.series(runs, "delta", **QUICK)
    first, second, _ = figure.axes
    assert (first.get_title(), second.get_title()) == ("early $x$", "late")
    assert mesh(first).get_clim() == mesh(second).get_clim()
    for axes, run in zip((first, second), runs.values(), strict=True):
        np.testing.assert_allclose(np.asarray(mesh(axes).get_array()).ravel(), run.table("delta", **QUICK)["value"])
    assert labels(first.yaxis) == ["a", "b"] and labels(second.yaxis) == []


def test_a_series_draws_every_run_in_the_order_of_the_first(shown):
    turned = made(1, planted=0.2)
    turned.probes["task"] = ["b"] * 3 + ["a"] * 3
    figure = matrices.series({"one": shown, "two": turned}, "delta", **QUICK)
    assert turned.tasks == ["b", "a"] and labels(figure.axes[0].yaxis) == ["a", "b"]
    expected = turned.matrix("delta").loc[["a", "b"], ["a", "b"]]
    np.testing.assert_allclose(np.asarray(mesh(figure.axes[1]).get_array()), expected.to_numpy())
    cells = figure.data[figure.data["run"] == "two"].set_index(["affected", "stepped"])["value"]
    assert cells.loc[("a", "b")] == expected.loc["a", "b"]


def test_a_series_of_other_tasks_or_of_none_is_refused(shown):
    told = "a series is of runs of the same tasks, but 'one' has a, b and 'two' a, c; draw them apart"
    with pytest.raises(ScopeError, match=told):
        matrices.series({"one": shown, "two": made(names=("a", "c"))}, **QUICK)
    with pytest.raises(ScopeError, match="a series needs at least one run, but none was given"):
        matrices.series({})


@pytest.mark.parametrize("metric", ["interference", "delta", "conflict_rate"])
def test_a_figure_has_the_colour_scale_of_a_notebook(metric):
    run = grouped()
    table = run.table(metric, **QUICK)
    sizes = table.loc[table["affected"] != table["stepped"], "value"].abs()
    expected = max(1.0, sizes.quantile(0.9)) if metric == "interference" else sizes.quantile(0.95)
    assert mesh(matrices.heatmap(run, metric, **QUICK).axes[0]).get_clim()[1] == pytest.approx(expected)
    assert notebook.limit_of([table], metric) == pytest.approx(expected)


def test_panels_are_layers_by_sides(shown):
    figure = matrices.panels(shown, "delta", **QUICK)
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == [f"layer {k}, attention, {side}" for k in (0, 3) for side in "AB"]
    for axes, (layer, side) in zip(figure.axes, ((0, "A"), (0, "B"), (3, "A"), (3, "B")), strict=False):
        values = shown.matrix("delta", layers=[layer], modules=["attention"], side=side)
        np.testing.assert_allclose(np.asarray(mesh(axes).get_array()).ravel(), values.to_numpy().ravel())


def test_panels_are_the_modules_and_side_asked_for_with_signs_and_a_key(shown):
    figure = matrices.panels(shown, "delta", [3], ["q_proj", "language"], "B", **QUICK)
    assert [axes.get_title() for axes in figure.axes[:-1]] == ["layer 3, q_proj, B", "layer 3, language, B"]
    table = shown.table("delta", layers=[3], side="B", **QUICK)
    assert texts(figure.axes[0]) == texts(figure.axes[1]) == [f"{value:+.2f}" for value in table["value"]]
    assert figure.get_supxlabel() == (
        "" if table["verdict"].isin(["self", "unclear", "no-signal"]).all() else matrices.KEY
    )


def test_panels_of_the_weight_space_have_one_column_a_group():
    names = [f"language.{layer}.q_proj.{side}" for layer in (0, 3) for side in "ABW"]
    run = made(planted=1.0)
    frame = blocks.to_frame(
        blocks.Block(blocks.Component.LANGUAGE, layer, "q_proj", "attention", side, 5)
        for layer in (0, 3)
        for side in (blocks.Side.A, blocks.Side.B, blocks.Side.W)
    )
    rows = np.random.default_rng(1).normal(size=(6, 5)) + 1
    zero = {"language.0.q_proj.W"}  # though A and B there are not
    assert list(frame["name"]) == names
    products = {name: pack((rows @ rows.T * (name not in zero)).astype(np.float32)) for name in names}
    run = Run(run.probes, frame, products, {"seed": 3, "config": None})
    figure = matrices.panels(run, "delta", space="weight", **QUICK)
    assert [axes.get_title() for axes in figure.axes[:-1]] == ["layer 0, attention, W", "layer 3, attention, W"]
    assert texts(figure.axes[0]) == ["every gradient is zero"]
    values = run.matrix("delta", layers=[3], modules=["attention"], space="weight")
    np.testing.assert_allclose(np.asarray(mesh(figure.axes[1]).get_array()).ravel(), values.to_numpy().ravel())
    kept = figure.data[["layer", "modules", "side"]].drop_duplicates()
    assert kept.to_numpy().tolist() == [[3, "attention", "W"]] and len(figure.data) == 4
    with pytest.raises(ScopeError, match="side is 'A', but the weight space has no sides"):
        matrices.panels(run, "delta", space="weight", side="A", **QUICK)


@pytest.mark.parametrize(("verdicts", "key"), [(["unclear", "no-signal"], ""), (["conflict", "unclear"], matrices.KEY)])
def test_the_key_of_frames_is_there_where_a_frame_is(shown, monkeypatch, verdicts, key):
    table = shown.table(**QUICK).assign(verdict=["self", *verdicts, "self"])
    monkeypatch.setattr(type(shown), "table", lambda self, *a, **k: table)
    assert matrices.panels(shown, layers=[3]).get_supxlabel() == key


def test_figures_carry_their_data(shown):
    pd.testing.assert_frame_equal(matrices.heatmap(shown, **QUICK).data, shown.table(**QUICK))
    data = matrices.series({"x": shown, "y": made(1)}, "delta", **QUICK).data
    assert data["run"].tolist() == ["x"] * 4 + ["y"] * 4
    assert data["value"][:4].tolist() == shown.table("delta", **QUICK)["value"].tolist()
    kept = matrices.panels(shown, "delta", **QUICK).data[["layer", "modules", "side"]].drop_duplicates()
    assert kept.to_numpy().tolist() == [[layer, "attention", side] for layer in (0, 3) for side in "AB"]


def test_a_panel_without_gradients_says_so():
    figure = matrices.panels(made(zero_a=True), "delta", **QUICK)
    assert texts(figure.axes[0]) == ["every gradient is zero"]
    assert len(texts(figure.axes[1])) == 4


def test_names_are_shown_as_they_are_and_files_are_whole(tmp_path):
    run = made(names=EVIL, planted=1.0)
    figure = matrices.heatmap(run, title="$1 and $2 \\frac", **QUICK)
    axes = figure.axes[0]
    wanted = [EVIL[0], "b$c \N{REPLACEMENT CHARACTER}[31m"]
    paths = matrices.save(figure, tmp_path / "deep", "matrix")
    assert [path.name for path in paths] == ["matrix.png", "matrix.svg"]
    assert labels(axes.xaxis) == labels(axes.yaxis) == wanted  # also after it was drawn
    assert not any(text.get_parse_math() for text in [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title])
    assert axes.get_title() == "$1 and $2 \\frac"
    with Image.open(paths[0]) as picture:
        assert picture.format == "PNG" and min(picture.size) > 300
    ElementTree.fromstring(paths[1].read_text())
    again = matrices.save(matrices.heatmap(run, title="$1 and $2 \\frac", **QUICK), tmp_path / "again", "matrix")
    assert b"<dc:date>" not in again[1].read_bytes()


def test_no_global_setting_changes(shown):
    before = dict(mpl.rcParams)
    matrices.heatmap(shown, **QUICK)
    matrices.series({"a": shown}, **QUICK)
    matrices.panels(shown, **QUICK)
    assert dict(mpl.rcParams) == before


SEEN_BY = {  # linear RGB as it is seen, after Machado, Oliveira and Fernandes 2009, severity 1
    "most": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "deuteranopes": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanopes": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)


def lab(colour, eye):
    """A colour in CIELAB under D65, as an eye sees it."""
    share = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(eye) @ linear, 0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", SEEN_BY)
@pytest.mark.parametrize("palette", ["figures", "light page", "dark page"])
def test_colours_of_tasks_and_pairs_are_told_apart_by_every_eye(palette, eye):
    style = (Path(matrices.__file__).parents[1] / "report" / "html" / "style.css").read_text(encoding="utf-8")
    lines = re.findall(r"--line-\d: light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", style)
    colours = canvas.COLOURS if palette == "figures" else [pair[palette == "dark page"] for pair in lines]
    assert len(colours) >= 6 and len(set(colours)) == len(colours)
    for one, other in itertools.combinations(colours, 2):
        assert np.linalg.norm(lab(one, SEEN_BY[eye]) - lab(other, SEEN_BY[eye])) > 10, (one, other)


def test_a_long_name_leaves_its_middle_out():
    name = "a" * 40 + "the end of it"
    axes = matrices.heatmap(made(names=(name, "short"))).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a" * 17 + "… end of it", "short"]
