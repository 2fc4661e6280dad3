"""Tasks with names that would steer a terminal, a page or a path: shown escaped, nothing written outside --out."""

import json

import pandas as pd
import pytest

from interference import load
from tests.support.checkpoints import ARGUMENTS
from tests.support.runs import grouped

pytestmark = pytest.mark.slow
NAMES = [
    "../../evil\x1b[31m[/bold] :smile: [x]",
    "\u202eevil\r\n$a_1$ \x9b1m<script>alert(1)</script>" + "x" * 500,
]
PLAIN = "../../evil\N{REPLACEMENT CHARACTER}[31m[/bold] :smile: [x]"
STEERING = set("\x1b\x9b\r\u202e")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("strange") / "a" / "b"


def test_names_that_steer(interference, tiny, place):
    place.mkdir(parents=True)
    top, run, report, found = place.parent.parent, place / "run", place / "report", place / "factors"
    tasks = [
        part for name, file in zip(NAMES, tiny.tasks.values(), strict=True) for part in ("--task", f"{name}={file}")
    ]
    model = ["--base", tiny.base, "--adapter", tiny.adapter]
    asked, drawn = [*model, *tasks, *ARGUMENTS], ["--out", place / "drawn"]
    said = {
        "compute": interference("compute", *asked, "--out", run),
        "show": interference("show", run),
        "compare": interference("compare", run, run),
        "verify": interference("verify", run, "--units", 1),
        "plan": interference("plan", *asked[:-1]),
        "report": interference("report", run, "--detail", "small", "--out", report, "--quiet"),
        "factors": interference("factors", *asked, "--perplexity", 3, "--unseen", NAMES[0], "--out", found),
        "blocks": interference("figure", "blocks", run, *drawn),
        "methods": interference("figure", "methods", run, run, "--label", NAMES[0], "--label", "\x1b[2J", *drawn),
        "selections": interference("figure", "selections", found, "--perplexity", 3, *drawn),
        "pairs": interference("figure", "pairs", found, "--pair", "=".join(NAMES), "--perplexity", 3, *drawn),
    }
    for command, one in said.items():
        assert one.code == 0, (command, one.err)
        assert not STEERING & set(one.out + one.err), command
    assert load(run).tasks == NAMES
    for command in ("compute", "factors"):
        assert PLAIN in " ".join(said[command].out.split()), command
    assert set(pd.read_csv(place / "drawn" / "pairs.csv")["task"]) == set(NAMES)
    assert "<script>alert" not in (report / "report.html").read_text(encoding="utf-8")
    outside = {path for path in top.rglob("*") if not {run, report, found, drawn[1]} & {path, *path.parents}}
    assert outside == {place, place.parent}


def test_names_that_steer_are_escaped_in_json_and_refusals(interference, tiny, place):
    shown = interference("show", place / "run", "--json")
    assert not STEERING & set(shown.out) and json.loads(shown.out)[0]["affected"] == NAMES[0]
    model = ["--base", tiny.base, "--adapter", tiny.adapter]
    for wrong in (
        ["compute", *model, *(part for _ in "ab" for part in ("--task", f"{NAMES[0]}={tiny.tasks['red']}"))],
        ["figure", "pairs", place / "factors", "--pair", "\x1b[2J=\x9b1m"],
        ["figure", "selections", place / "factors", "--unseen", "\x1b[2J"],
        ["figure", "\x1b[2J", place / "run"],
        ["report", place / "run", place / "run", "--label", NAMES[0], "--label", NAMES[0]],
        ["show", place / "\x1b[2J"],
    ):
        said = interference(*wrong)
        assert (said.code, said.out) == (2, "") and said.err.startswith("error: "), wrong
        assert not STEERING & set(said.err), said.err


def test_a_spreadsheet_takes_no_name_for_a_formula_and_json_has_them_exactly(interference, tmp_path):
    names = ["=HYPERLINK(1)", "\t+1"]
    run, out = tmp_path / "run", tmp_path / "out"
    grouped(names=names).save(run)
    assert (
        interference("report", run, run, "--label=-1", "--label=@x", "--detail", "small", "--out", out, "--quiet").code
        == 0
    )
    assert interference("figure", "blocks", run, "--out", tmp_path / "drawn").code == 0
    sheets = [*(out / "tables").iterdir(), tmp_path / "drawn" / "blocks.csv"]
    assert len(sheets) > 5
    for sheet in sheets:
        table = pd.read_csv(sheet)
        texts = [*table.columns, *table.select_dtypes(exclude="number").to_numpy().ravel()]
        assert not [text for text in texts if str(text).startswith(("=", "+", "-", "@", "\t", "\r"))], sheet
    cells = pd.read_csv(out / "tables" / "cells.csv")
    assert set(cells["affected"]) == {f"'{name}" for name in names} and set(cells["run"]) == {"'-1", "'@x"}
    assert cells["value"].dtype == float and (cells["value"] < 0).any()
    shown = json.loads(interference("show", run, "--json").out)
    assert {row["affected"] for row in shown} == set(names)
