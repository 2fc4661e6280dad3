"""The command `interference report`: what it leaves and refuses."""

import pandas as pd

from interference import load


def test_a_report_of_a_run(interference, run_dir, tmp_path):
    out = tmp_path / "report"
    said = interference("report", run_dir, "--detail", "small", "--out", out, "--quiet")
    assert said.code == 0, said.err
    assert said.out.splitlines() == [str(out / name) for name in ("report.html", "figures", "tables")]
    assert "Content-Security-Policy" in (out / "report.html").read_text(encoding="utf-8")
    kinds = {file.name for file in (out / "figures").iterdir()}
    assert kinds == {f"{name}-1.{kind}" for name in ("matrix", "layers") for kind in ("png", "svg")}
    table = pd.read_csv(out / "tables" / "matrix-1.csv", index_col=0)
    expected = load(run_dir).matrix("interference", reduce="ratio-of-means")
    assert list(table.columns) == list(expected.columns)
    assert abs(table.to_numpy() - expected.to_numpy()).max() < 1e-9


def test_what_is_refused(refused, run_dir, tmp_path):
    assert "no run" in refused("report", tmp_path, "--out", tmp_path / "r", out=tmp_path / "r").lower()
    words = refused("report", run_dir, "--label", "a", "--label", "b", "--out", tmp_path / "r")
    assert words == "--label is given 2 times for 1 runs; give one for each, or none"
    words = refused("report", run_dir, run_dir, "--out", tmp_path / "r")
    assert words.endswith("give each a --label of its own")
    assert "detail" in refused("report", run_dir, "--detail", "huge", "--out", tmp_path / "r")
