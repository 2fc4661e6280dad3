"""The command `interference figure`: the files it leaves, what it says, and what it refuses in which words."""

from pathlib import Path

import pandas as pd
import pytest

from interference import load
from interference.factors import affinity
from interference.factors import factors as library
from interference.figures import gallery
from mixlora.common.outputs import LIST
from mixlora.evaluation import results
from tests.support.answers import FIRST, SECOND, evaluation
from tests.support.runs import grouped
from tests.support.selections import chosen, factors

NAMES = ["p=q", "r", "s", "t$"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs `lora` and `mixlora`, evaluations `ifs` and `cfs`, factors `factors`, which no test changes."""
    folder = tmp_path_factory.mktemp("inputs")
    for seed, name in enumerate(["lora", "mixlora"]):
        grouped(seed=seed).save(folder / name / "step")
    evaluation(folder / "ifs", "IFS", FIRST)
    evaluation(folder / "cfs", "CFS", SECOND)
    tasks = [name for name in NAMES for _ in range(6)]
    rows = [
        [(NAMES.index(task) % 2 * 2 + k % 2 * (place % 3 == 0)) for k in (0, 3)] for place, task in enumerate(tasks)
    ]
    factors(chosen(tasks, rows, [[0, 1 + place % 3] for place in range(24)], factors=6)).save(folder / "factors")
    return folder


def drawn(interference, name, out, *arguments):
    said = interference("figure", name, *arguments, "--out", out, "--quiet")
    assert said.code == 0, said.err
    full = gallery.named(name)
    assert said.out.splitlines() == [str(out / f"{full}.{kind}") for kind in ("pdf", "svg", "png", "csv")]
    assert {path.name for path in out.iterdir()} == {LIST, *(f"{full}.{kind}" for kind in ("pdf", "svg", "png", "csv"))}
    return pd.read_csv(out / f"{full}.csv"), said.err


@pytest.mark.parametrize("name", ["blocks", "2"])
def test_blocks(interference, place, tmp_path, name):
    options = ["--layers", "0,2", "--metric", "delta", "--pairs", "all", "--modules", "mlp,q_proj", "--side", "A"]
    data, said = drawn(interference, name, tmp_path, place / "lora" / "step", *options)
    assert said == "" and set(data["layer"]) == {0, 2} and set(data["modules"]) == {"mlp", "q_proj"}
    run = load(place / "lora" / "step")
    wanted = run.matrix("delta", layers=[2], modules=["q_proj"], side="A", pairs="all")
    found = data.query("layer == 2 and modules == 'q_proj'")["value"]
    assert found.tolist() == pytest.approx(wanted.to_numpy().ravel().tolist())


def test_conditional(interference, place, tmp_path):
    data, _ = drawn(interference, "4", tmp_path, place / "ifs", place / "cfs", "--unseen", "b", "--unseen", "c")
    assert set(data["model"]) == {"IFS", "CFS", "CFS minus IFS"}
    assert set(data[data["group"] == "unseen"]["task"]) == {"b", "c", "Mean"}
    score = results.load(place / "cfs").tasks["a"]["scores"]["accuracy"]["value"]
    assert data.query("task == 'a' and model == 'CFS'")["value"].item() == pytest.approx(100 * score)
    given = ["--label", "without", "--label", "with"]
    data, _ = drawn(interference, "conditional", tmp_path, place / "ifs", place / "cfs", *given)
    assert set(data["model"]) == {"without", "with", "with minus without"}


def test_selections(interference, place, tmp_path):
    unseen = ["--unseen", "r", "--unseen", "p=q"]
    data, _ = drawn(interference, "5", tmp_path, place / "factors", *unseen, "--perplexity", "3")
    assert set(data["task"]) == {"p=q", "r"} and len(data) == 12
    data, _ = drawn(interference, "selections", tmp_path, place / "factors", "--perplexity", "3")
    assert len(data) == 24


def test_pairs(interference, place, tmp_path):
    pairs = ["--pair", "p=q=s", "--pair", "r=t$"]
    data, _ = drawn(interference, "pairs", tmp_path, place / "factors", *pairs, "--perplexity", "3")
    found = affinity.paired(library.load(place / "factors").selections, [("p=q", "s"), ("r", "t$")])
    overlap = data[data["panel"] == "overlap"].set_index(["task", "other"])["overlap"]
    assert overlap[("p=q", "s")] == pytest.approx(found.overlap.loc["p=q", "s"]) and len(overlap) == 4


def test_methods(interference, place, tmp_path):
    paths = [place / name / "step" for name in ("lora", "mixlora")]
    data, _ = drawn(interference, "7", tmp_path, *paths, "--reduce", "ratio-of-means")
    assert set(data["run"]) == {"lora/step", "mixlora/step", "mixlora/step minus lora/step"}
    wanted = [load(path).matrix(aggregate="mean", reduce="ratio-of-means").to_numpy().ravel() for path in paths]
    assert abs(wanted[1] - wanted[0]).max() > 0.1
    data = data[data["estimator"] == "ratio of means, averaged over blocks"]
    for name, values in zip(data["run"].unique(), [*wanted, wanted[1] - wanted[0]], strict=True):
        assert data[data["run"] == name]["value"].tolist() == pytest.approx(values.tolist())
    data, _ = drawn(interference, "methods", tmp_path, *paths, "--label", "LoRA", "--label", "MixLoRA")
    assert set(data["run"]) == {"LoRA", "MixLoRA", "MixLoRA minus LoRA"}


def test_nothing_is_said_of_fonts(interference, tmp_path):
    evaluation(tmp_path / "a", "a 中", FIRST)
    evaluation(tmp_path / "b", "b", SECOND)
    out = tmp_path / "out"
    said = interference("figure", "4", tmp_path / "a", tmp_path / "b", "--out", out)
    assert said.code == 0
    assert said.err == f"next: open {out / 'conditional.pdf'}; its numbers are in {out / 'conditional.csv'}\n"


@pytest.mark.slow
def test_figures_gather_and_files_of_others_are_refused(interference, refused, place, tmp_path):
    run, out = place / "lora" / "step", tmp_path / "out"
    for name in ("blocks", "blocks"):
        assert interference("figure", name, run, "--out", out).code == 0
    methods = [place / "lora" / "step", place / "mixlora" / "step", "--label", "x", "--label", "y"]
    assert interference("figure", "methods", *methods, "--out", out).code == 0
    assert {path.stem for path in out.iterdir()} == {Path(LIST).stem, "blocks", "methods"}
    (out / "mine.txt").write_text("mine")
    words = refused("figure", "blocks", run, "--out", out)
    assert words == (
        f"{out}/mine.txt is not listed as written by interference figure; earlier versions kept no list: choose "
        "another --out, or move it"
    )
    assert (out / "mine.txt").read_text() == "mine"


def test_help_names_every_figure_with_an_example(interference):
    said = interference("figure", "--help")
    for name, plate in gallery.PLATES.items():
        assert f"{name} ({plate.number}) takes " in said.out
    assert "Example: interference figure blocks" in said.out


KNOWN = "blocks (2), conditional (4), selections (5), pairs (6), methods (7)"
TWO = ["ifs", "cfs"]
RUNS = ["lora/step", "mixlora/step"]
REFUSED = [
    ("3", RUNS, [], f"there is no figure '3'; the names (and numbers in the paper) are {KNOWN}"),
    ("Blocks", RUNS, [], f"there is no figure 'Blocks'; the names (and numbers in the paper) are {KNOWN}"),
    ("blocks", RUNS, [], "the figure 'blocks' needs one directory of a run, but 2 were given"),
    ("methods", RUNS[:1], [], "the figure 'methods' needs two directories of runs, but 1 was given"),
    ("methods", [*RUNS, "lora/step"], [], "the figure 'methods' needs two directories of runs, but 3 were given"),
    ("4", TWO[:1], [], "the figure 'conditional' needs two directories or more that `mixlora evaluate` wrote, "
     "but 1 was given"),
    ("5", TWO, [], "the figure 'selections' needs one directory that `interference factors` wrote, but 2 were given"),
    ("blocks", ["ifs"], [], "{place}/ifs is not a run: it has no run.json"),
    ("blocks", ["none"], [], "there is no run at {place}/none"),
    ("methods", ["lora/step", "ifs"], [], "{place}/ifs is not a run: it has no run.json"),
    ("conditional", ["ifs", "factors"], [], "{place}/factors has no results.json; give a directory that "
     "an evaluation wrote."),
    ("selections", ["ifs"], [], "{place}/ifs has no factors: it lacks factors.json"),
    ("pairs", ["lora/step"], ["--pair", "a=b"], "{place}/lora/step has no factors: it lacks factors.json"),
    ("blocks", RUNS[:1], ["--perplexity", "3"], "the figure 'blocks' does not read --perplexity; it takes --metric, "
     "--layers, --modules, --side, --pairs, --reduce"),
    ("blocks", RUNS[:1], ["--label", "a"], "the figure 'blocks' does not read --label; it takes --metric, --layers, "
     "--modules, --side, --pairs, --reduce"),
    ("conditional", TWO, ["--metric", "delta"], "the figure 'conditional' does not read --metric; it takes --label, "
     "--unseen"),
    ("selections", ["factors"], ["--pair", "r=s"], "the figure 'selections' does not read --pair; it takes --unseen, "
     "--perplexity"),
    ("pairs", ["factors"], ["--unseen", "r"], "the figure 'pairs' does not read --unseen; it takes --pair, "
     "--perplexity"),
    ("methods", RUNS, ["--unseen", "a"], "the figure 'methods' does not read --unseen; it takes --metric, --layers, "
     "--modules, --side, --pairs, --reduce, --label"),
    ("selections", ["factors"], ["--unseen", "z"], "unseen task 'z' is not among the tasks: p=q, r, s, t$"),
    ("selections", ["factors"], ["--unseen", "r"], "there is only task 'r'; give at least 2 tasks to compare"),
    ("conditional", TWO, ["--unseen", "z"], "unseen task 'z' is not among the tasks: a, b, c"),
    ("pairs", ["factors"], [], "the figure 'pairs' draws pairs of tasks; give --pair SEEN=UNSEEN, once for each"),
    ("pairs", ["factors"], ["--pair", "r"], "--pair 'r' is not of the form SEEN=UNSEEN"),
    ("pairs", ["factors"], ["--pair", "r="], "--pair 'r=' is not of the form SEEN=UNSEEN"),
    ("pairs", ["factors"], ["--pair", "r=z"], "task 'z' of a pair is not among the tasks: p=q, r, s, t$"),
    ("pairs", ["factors"], ["--pair", "r=s", "--pair", "r=t$"], "task 'r' is paired twice; a task can be in one pair, "
     "with another task"),
    ("pairs", ["factors"], ["--pair", "r=s", "--perplexity", "30"], "perplexity is 30, but must be above 0 and below "
     "the number of examples, 12; set a smaller perplexity or draw more samples"),
    ("selections", ["factors"], ["--perplexity", "24"], "perplexity is 24, but must be above 0 and below the number of "
     "examples, 24; set a smaller perplexity or draw more samples"),
    ("methods", RUNS, ["--label", "a"], "--label is given 1 times for 2 inputs; give one for each, or none"),
    ("methods", RUNS, ["--label", "a", "--label", "a"], "--label 'a' is given twice; give each directory a label "
     "of its own"),
    ("methods", ["lora/step"] * 2, [], "{place}/lora/step is given twice; give two directories, or each a --label "
     "of its own"),
    ("conditional", ["ifs"] * 2, [], "two evaluations are called 'IFS'; give each a --label of its own"),
    ("blocks", RUNS[:1], ["--reduce", "sum"], "reduce is 'sum', but must be one of 'ratio-of-means', 'mean-of-ratios', "
     "'median-of-ratios'"),
    ("blocks", RUNS[:1], ["--layers", "1"], "layer 1 is not among the adapted layers: 0, 2, 5 (counted from 0)"),
    ("blocks", RUNS[:1], ["--modules", "x"], "module 'x' is not among those here: attention, language, mlp, q_proj, "
     "up_proj"),
    ("blocks", RUNS[:1], ["--side", "C"], "side 'C' is not one of A, B, W, router-A, router-B, router-AB"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "inputs", "options", "words"), REFUSED)
def test_what_is_refused(refused, place, tmp_path, name, inputs, options, words):
    out = tmp_path / "out"
    found = refused("figure", name, *(place / one for one in inputs), *options, "--out", out, out=out)
    assert found == words.replace("{place}", str(place))


def test_out_must_be_a_directory(refused, place, tmp_path):
    (tmp_path / "out").write_text("mine")
    words = refused("figure", "blocks", place / "lora" / "step", "--out", tmp_path / "out")
    assert words == f"--out {tmp_path / 'out'} is a file; give a directory"
    assert (tmp_path / "out").read_text() == "mine"


def test_runs_of_other_examples_are_not_compared(refused, place, tmp_path):
    grouped(names=("x", "y")).save(tmp_path / "other")
    words = refused("figure", "methods", place / "lora" / "step", tmp_path / "other", "--out", tmp_path / "out")
    assert words.startswith("the runs do not have the same examples in the same order")


def test_pairs_are_read_by_the_tasks_there_are():
    assert gallery._pair("p=q=s", NAMES) == ("p=q", "s")
    assert gallery._pair("s=p=q", NAMES) == ("s", "p=q")
    couples = [("p", "s"), ("q", "u"), ("r", "v")]
    assert [gallery._pair("=".join(pair), list("pqrsuv")) for pair in couples] == couples
