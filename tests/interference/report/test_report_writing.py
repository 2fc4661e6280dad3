"""A report's directory: whole or as it was, without what a report before had more, in the order of the page."""

import json
import re

import pandas as pd
import pytest

from interference.errors import RunError, WriteError
from interference.figures import matrices
from interference.figures.canvas import rendered
from interference.report import directory
from mixlora.common.outputs import LIST
from tests.support.reported import APART, TWO_GROUPS, made


@pytest.fixture
def saved(tmp_path):
    """`saved(name, means, **options)`: the path of a run on disk, as of `reported.made`."""

    def save(name, means=APART, **options):
        made(means, layers=(0,), **options).save(tmp_path / "runs" / name)
        return tmp_path / "runs" / name

    return save


def contents(out):
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != LIST
    }


def test_a_run_is_no_place_for_a_report(saved):
    run = saved("x")
    before = contents(run)
    with pytest.raises(RunError, match="x is a run, which a report has no place in; choose another --out"):
        directory.write([run], None, run, "small")
    assert contents(run) == before


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 16])
def test_a_disk_that_fills_leaves_page_figures_and_tables_of_before(saved, tmp_path, monkeypatch, after):
    out, runs = tmp_path / "report", [saved("x"), saved("y", seed=1)]
    directory.write(runs[:1], ["x"], out, "small")
    before = contents(out)
    assert {"report.html", "figures/matrix-1.svg", "tables/cells.csv"} < set(before)
    times = iter(range(100))

    def full(handle):
        if next(times) == after:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("mixlora.common.writing.os.fsync", full)
        with pytest.raises(WriteError, match=r"^/.*/report cannot be written: No space left on device; make room"):
            directory.write(runs, ["x", "y"], out, "small")
    assert contents(out) == before
    directory.write(runs, ["x", "y"], out, "small")
    assert len(contents(out)) > 16 and contents(out)["report.html"] != before["report.html"]


@pytest.mark.slow
def test_what_a_report_before_had_more_goes(saved, tmp_path):
    out, runs = tmp_path / "report", [saved("x", TWO_GROUPS, units=3), saved("y", TWO_GROUPS, units=3)]
    directory.write(runs, None, out, "small")
    assert {"tables/matrix-2.csv", "tables/differences.csv", "figures/series.png"} < set(contents(out))
    assert directory.write(runs[:1], None, out, "small") == [out / "report.html", out / "figures", out / "tables"]
    assert set(contents(out)) == {
        "report.html",
        *(f"figures/{name}" for name in ("matrix-1.png", "matrix-1.svg", "layers-1.png", "layers-1.svg")),
        *(f"tables/{name}.csv" for name in ("matrix-1", "cells", "signal", "groups")),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["report.html", "tables/cells.csv", "figures/matrix-7.png", "notes.txt"])
def test_what_no_report_wrote_is_refused_before_anything_is_measured(saved, tmp_path, name):
    out, said = tmp_path / "report", []
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    with pytest.raises(RunError, match=r"/[^ ]+ is not listed as written by interference report; earlier versions"):
        directory.write([saved("x")], None, out, "small", progress=lambda *a: said.append(a))
    assert said == [] and contents(out) == {name: b"mine"}


def test_figures_are_named_only_where_one_is_drawn(saved, tmp_path, monkeypatch):
    run, out = saved("x"), tmp_path / "report"
    directory.write([run], ["x"], out, "small")
    monkeypatch.setattr(directory, "PANEL_CELLS", 1)
    monkeypatch.setattr(directory, "MATRIX_TASKS", 2)
    assert directory.write([run], ["x"], out, "small") == [out / "report.html", out / "tables"]
    assert list((out / "figures").iterdir()) == []


@pytest.mark.slow
def test_figures_and_tables_are_numbered_in_the_order_of_the_page(saved, tmp_path):
    given = {f"step-{k}": saved(f"step-{k}", seed=k) for k in (9, 10, 1)}
    out = tmp_path / "report"
    directory.write(list(given.values()), list(given), out, "small")
    html = (out / "report.html").read_text(encoding="utf-8")
    shown = json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', html)[1])["runs"]
    assert [(run["label"], run["source"]) for run in shown] == [
        (f"step-{k}", str(given[f"step-{k}"])) for k in (1, 9, 10)
    ]
    for place, k in enumerate((1, 9, 10), 1):
        run = made(APART, layers=(0,), seed=k)
        table = pd.read_csv(out / "tables" / f"matrix-{place}.csv", index_col=0)
        assert table.to_numpy() == pytest.approx(run.matrix(reduce="ratio-of-means").to_numpy())
        figure = matrices.heatmap(run, title=f"step-{k}", reduce="ratio-of-means")
        assert (out / "figures" / f"matrix-{place}.png").read_bytes() == rendered(figure, "png")


def test_a_place_that_cannot_be_written_is_told(saved, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"^--out .*/file is a file; give a directory$"):
        directory.write([saved("x")], None, tmp_path / "file", "small")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_measured(saved, tmp_path):
    (tmp_path / "file").write_text("mine")
    said = []
    with pytest.raises(RunError, match=r"nothing can be written to .*/file: (Not a directory|File exists); choose"):
        directory.write([saved("x")], None, tmp_path / "file" / "report", "small", progress=lambda *a: said.append(a))
    assert said == [] and (tmp_path / "file").read_text() == "mine"
    directory.write([saved("y")], None, tmp_path / "new" / "report", "small", progress=lambda *a: said.append(a))
    assert said and (tmp_path / "new" / "report" / "report.html").is_file()
