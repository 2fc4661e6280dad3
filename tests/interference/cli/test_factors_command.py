"""The command `interference factors`: what it prints, leaves, keeps and refuses."""

import json

import pytest

from interference.factors import observer
from mixlora.common.outputs import LIST
from tests.support.checkpoints import ARGUMENTS


def test_factors_are_printed_drawn_and_kept(interference, tiny, tmp_path):
    out = tmp_path / "factors"
    asked = ["factors", *tiny.arguments(out), *ARGUMENTS]
    said = interference(*asked)
    assert said.code == 0, said.err
    for title in ("purity", "tasks", "layers", "overlap"):
        assert f"\n{title}" in f"\n{said.out}"
    assert {file.name for file in out.iterdir()} == {
        "examples.parquet",
        "factors.json",
        "figures",
        "selections.safetensors",
        "untrained.safetensors",
    }
    names = {file.name for file in (out / "figures").iterdir()}
    assert names == {LIST, *(f"{name}.{kind}" for name in ("embedding", "usage") for kind in ("png", "svg"))}
    before = (out / "selections.safetensors").stat().st_mtime_ns
    again = interference(*asked, "--json")
    assert (out / "selections.safetensors").stat().st_mtime_ns == before
    tables = json.loads(again.out)
    assert {row["task"] for row in tables["overlap"]} == {"red", "blue"}
    assert tables["purity"][0]["neighbours on"] == "selections"
    assert tables["purity"][2]["neighbours on"] == "selections, untrained"
    (learning,) = tables["learning"]
    assert learning["difference"] == learning["purity"] - learning["untrained"] and learning["low"] is None
    assert learning["says"].startswith("no interval: ")


def test_what_is_refused(refused, tiny, tmp_path):
    out = tmp_path / "factors"
    assert "give --out" in refused("factors", *tiny.arguments(out)[:-2])
    words = refused("factors", *tiny.arguments(out), *ARGUMENTS, "--perplexity", "4000", out=out)
    assert words.startswith("--perplexity 4000 must be at least 1 and below the number of examples")
    out.mkdir()
    (out / "mine.txt").write_text("x")
    assert "contains no factors" in refused("factors", *tiny.arguments(out), *ARGUMENTS, "--perplexity", "3")


def test_figures_of_the_user_s_are_noticed_before_the_work(refused, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(observer, "kept_or_computed", lambda *_: pytest.fail("it computes"))
    mine = tmp_path / "factors" / "figures" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    words = refused("factors", *tiny.arguments(tmp_path / "factors"), *ARGUMENTS, "--perplexity", "3")
    assert words.startswith(f"{mine} is not listed as written by interference factors; ")
