"""The command `interference report`: what it leaves and refuses."""

import json
import re

import pandas as pd
import pytest

from interference import compare, load
from interference.report import directory
from tests.support.runs import grouped


def test_a_report_of_a_run(interference, run_dir, tmp_path):
    out = tmp_path / "report"
    said = interference("report", run_dir, "--detail", "small", "--out", out)
    assert said.code == 0 and said.err.endswith(f"\nnext: open {out / 'report.html'} in a browser\n"), said.err
    assert said.out.splitlines() == [str(out / name) for name in ("report.html", "figures", "tables")]
    assert "Content-Security-Policy" in (out / "report.html").read_text(encoding="utf-8")
    kinds = {file.name for file in (out / "figures").iterdir()}
    assert kinds == {f"{name}-1.{kind}" for name in ("matrix", "layers") for kind in ("png", "svg")}
    table = pd.read_csv(out / "tables" / "matrix-1.csv", index_col=0)
    expected = load(run_dir).matrix("interference", reduce="ratio-of-means")
    assert list(table.columns) == list(expected.columns)
    assert abs(table.to_numpy() - expected.to_numpy()).max() < 1e-9


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Two runs on the same examples, of 2 tasks in 3 layers: the panels of one are 3 x 4 of 4 cells."""
    folder = tmp_path_factory.mktemp("two")
    for seed, name in enumerate(("first", "second")):
        grouped(seed=seed).save(folder / name)
    return [folder / "first", folder / "second"]


def left_out(out):
    html = (out / "report.html").read_text(encoding="utf-8")
    return json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', html)[1])["left_out"]


@pytest.mark.slow
def test_a_report_of_two_runs_shows_them_beside_each_other_and_their_difference(interference, both, tmp_path):
    out = tmp_path / "report"
    said = interference("report", *both, "--label", "x", "--label", "y", "--detail", "small", "--out", out, "--quiet")
    assert said.code == 0, said.err
    names = ("matrix-1", "layers-1", "matrix-2", "layers-2", "series")
    assert {file.name for file in (out / "figures").iterdir()} == {
        f"{n}.{kind}" for n in names for kind in ("png", "svg")
    }
    assert not [sentence for sentence in left_out(out) if "figures/" in sentence]
    table = pd.read_csv(out / "tables" / "differences.csv")
    table = table[(table["metric"] == "interference") & (table["reduce"] == "ratio-of-means")]
    wanted = compare(*map(load, both), reduce="ratio-of-means")
    assert set(table["first"]) == {"x"} and set(table["second"]) == {"y"} and len(table) == len(wanted) == 4
    assert table["value"].tolist() == pytest.approx(wanted["difference"].tolist())
    matrix = pd.read_csv(out / "tables" / "matrix-2.csv", index_col=0)
    assert matrix.to_numpy() == pytest.approx(load(both[1]).matrix(reduce="ratio-of-means").to_numpy())
    assert interference("report", both[0], "--detail", "small", "--out", out, "--quiet").code == 0
    left = {f"{name}-1.{kind}" for name in ("matrix", "layers") for kind in ("png", "svg")}
    assert {file.name for file in (out / "figures").iterdir()} == left


def test_figures_that_nobody_can_read_are_left_out_and_named(interference, both, tmp_path, monkeypatch):
    names = ["--label", "x", "--label", "y"]
    monkeypatch.setattr(directory, "PANEL_CELLS", 16)
    monkeypatch.setattr(directory, "SIDE_BY_SIDE", 3)
    assert interference("report", *both, *names, "--detail", "small", "--out", tmp_path / "few", "--quiet").code == 0
    assert [sentence for sentence in left_out(tmp_path / "few") if sentence.startswith("figures/")] == [
        "figures/layers-1 shows 1 of 3 layers of x.",
        "figures/layers-2 shows 1 of 3 layers of y.",
        "figures/series is not drawn: 2 matrices of 2 tasks.",
    ]
    drawn = {file.stem for file in (tmp_path / "few" / "figures").iterdir()}
    assert drawn == {"matrix-1", "layers-1", "matrix-2", "layers-2"}
    monkeypatch.setattr(directory, "PANEL_CELLS", 15)
    monkeypatch.setattr(directory, "MATRIX_TASKS", 1)
    out = tmp_path / "none"
    assert interference("report", both[0], "--label", "x", "--detail", "small", "--out", out, "--quiet").code == 0
    assert [sentence for sentence in left_out(out) if sentence.startswith("figures/")] == [
        "figures/matrix-1 of x is not drawn: 2 tasks are more than 1.",
        "figures/layers-1 of x is not drawn: a panel of 2 tasks cannot be read.",
    ]
    assert not (out / "figures").exists() or not list((out / "figures").iterdir())


def test_what_is_refused(refused, run_dir, tmp_path):
    assert "no run" in refused("report", tmp_path, "--out", tmp_path / "r", out=tmp_path / "r").lower()
    words = refused("report", run_dir, "--label", "a", "--label", "b", "--out", tmp_path / "r")
    assert words == "--label is given 2 times for 1 runs; give one for each, or none"
    words = refused("report", run_dir, run_dir, "--out", tmp_path / "r")
    assert words.endswith("give each a --label of its own")
    assert "detail" in refused("report", run_dir, "--detail", "huge", "--out", tmp_path / "r")
