"""The command `interference factors`: what it prints, leaves, keeps and refuses."""

import json

from mixlora.common.outputs import LIST
from tests.support.checkpoints import ARGUMENTS


def test_factors_are_printed_drawn_and_kept(interference, tiny, tmp_path):
    out = tmp_path / "factors"
    asked = ["factors", *tiny.arguments(out), *ARGUMENTS, "--perplexity", "3"]
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
    words = refused("factors", *tiny.arguments(out), "--samples", "5", out=out)
    assert words == "10 neighbours of every example are looked at, but there are 10 examples; give more --samples"
    out.mkdir()
    (out / "mine.txt").write_text("x")
    assert "holds something else" in refused("factors", *tiny.arguments(out), *ARGUMENTS, "--perplexity", "3")
