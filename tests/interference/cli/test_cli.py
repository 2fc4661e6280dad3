"""The command `interference`: what it computes, prints and exits with."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console

from interference import compare, load
from interference.cli import plans, printing
from interference.measurement.compute import compute_config
from interference.measurement.plan import Plan
from mixlora.common.files import amount, expanded
from tests.support.checkpoints import ARGUMENTS
from tests.support.runs import contradicted

COMMANDS = [
    "compute",
    "preview",
    "show",
    "compare",
    "verify",
    "plan",
    "factors",
    "report",
    "demo",
    "doctor",
    "lookahead",
    "advise",
]
SCRIPT = Path(sys.executable).parent / "interference"


def flat(text):
    """The words of a text, without the frames around them and the line breaks within."""
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)])
def test_help_has_an_example_that_names_the_command(interference, command):
    said = interference(*command, "--help")
    assert said.code == 0 and said.err == ""
    assert f"interference {' '.join(command)}".strip() in said.out
    assert "Example:" in said.out


def test_version(interference):
    from importlib.metadata import version

    for flag in (["--version"], ["--debug", "--version"]):
        assert interference(*flag).out == version("task-interference") + "\n"


def test_the_installed_script(run_dir):
    done = subprocess.run([SCRIPT, "show", run_dir, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row["affected"] for row in json.loads(done.stdout)] == ["red", "red", "blue", "blue"]
    missing = subprocess.run([SCRIPT, "show", "no/such"], capture_output=True, text=True, check=False)
    assert (missing.returncode, missing.stdout, missing.stderr) == (2, "", "error: there is no run at no/such\n")


# --- compute ---


def test_compute_from_options(interference, tiny, tmp_path):
    said = interference("compute", *tiny.arguments(tmp_path / "run"), *ARGUMENTS, "--modules", "q_proj,mlp")
    out = tmp_path / "run"
    assert said.err == f"note: chat template: the base's ({tiny.base})\n"
    assert (said.code, said.out) == (0, f"Run(12 units: red 6, blue 6; 8 blocks) in {out}\n")
    assert load(tmp_path / "run").blocks["module"].unique().tolist() == ["q_proj", "gate_proj", "up_proj", "down_proj"]


def test_compute_from_yaml_with_include_and_overrides(interference, tiny, tmp_path):
    values = tiny.data(samples=4, seed=1)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"model": values["model"], "probe": {"samples": 3, "seed": 5}}))
    own = {"include": "base.yaml", "tasks": values["tasks"], "probe": {"samples": 5, "layers": [0, 1]}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    arguments = ["--set", "probe.layers=[2]", "--set", "probe.samples=4", "--out", tmp_path / "run", "--quiet"]
    assert interference("compute", tmp_path / "own.yaml", *arguments, "--samples", 2).code == 0
    probe = load(tmp_path / "run").meta["config"]["probe"]
    assert (probe["samples"], probe["layers"], probe["seed"], probe["batch_size"]) == (2, [2], 5, 8)


def test_compute_reruns_a_run(interference, run_dir, run, tmp_path):
    assert interference("compute", run_dir, "--out", tmp_path / "again", "--quiet").code == 0
    again = load(tmp_path / "again")
    assert np.array_equal(again.gram(), run.gram()) and again.probes.equals(run.probes)


def test_progress_is_lines_where_there_is_no_terminal(interference, tiny, tmp_path):
    said = interference("compute", *tiny.arguments(tmp_path / "run"), "--samples", 6, "--layers", 1)
    lines = said.err.splitlines()
    assert lines[0] == "gradients: 8/12" and "gradients: 12/12" in lines and lines[-3] == "gram: 14/14"
    assert lines[-1] == f"next: interference show {tmp_path / 'run'}"
    assert "\r" not in said.err and "\x1b" not in said.err


def test_interrupting_exits_130_and_the_same_command_continues(interference, tiny, tmp_path, monkeypatch):
    from interference.measurement import compute

    arguments = ["compute", *tiny.arguments(tmp_path / "run"), *ARGUMENTS, "--set", "probe.batch_size=3"]
    real = compute.compute_config

    def stopped(config, report):
        def stop(stage, done, total):
            if done >= 6:
                raise KeyboardInterrupt

        return real(config, stop)

    monkeypatch.setattr(compute, "compute_config", stopped)
    said = interference(*arguments)
    assert (said.code, said.out) == (130, "")
    assert said.err == f"interrupted: nothing was written to {tmp_path / 'run'}; the same command continues\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run.partial"]
    monkeypatch.setattr(compute, "compute_config", real)
    assert interference(*arguments).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# --- show ---


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (
            ["--metric", "cosine", "--layers", "2", "--modules", "mlp"],
            {"metric": "cosine", "layers": [2], "modules": ["mlp"]},
        ),
        (["--metric", "delta", "--side", "A", "--pairs", "all"], {"metric": "delta", "side": "A", "pairs": "all"}),
        (["--reduce", "ratio-of-means", "--aggregate", "mean"], {"reduce": "ratio-of-means", "aggregate": "mean"}),
        (["--metric", "conflict_rate", "--layers", "0,2"], {"metric": "conflict_rate", "layers": [0, 2]}),
    ],
)
def test_show_json_is_the_table(interference, run, run_dir, arguments, options):
    rows = json.loads(interference("show", run_dir, "--json", *arguments).out)
    table = run.table(**options)
    assert list(rows[0]) == list(table)
    for name in ("value", "low", "high", "p", "nonpositive"):
        found = [np.nan if row[name] is None else row[name] for row in rows]
        np.testing.assert_allclose(found, table[name], rtol=1e-12)
    assert [row["verdict"] for row in rows] == table["verdict"].tolist()


def test_show_prints_matrix_null_signal_and_notes(interference, run, run_dir):
    said = interference("show", run_dir, "--layers", "2", "--reduce", "ratio-of-means")
    assert said.code == 0 and said.err == f"next: interference report {run_dir}\n"
    table = run.table(layers=[2], reduce="ratio-of-means")
    for value in table["value"][1:3]:
        assert f"{value:.3g}" in said.out
    assert flat(said.out).startswith(
        "interference (layers [2], space parameters, pairs leave-one-out, reduce ratio-of-means"
    )
    assert "2 pairs of tasks: " in said.out and "split-half null: I of one half" in said.out
    assert "signal of each task's mean gradient" in said.out
    assert f"{run.signal(layers=[2]).loc['red', 'squared_norm']:.3g}" in said.out


def test_show_prints_no_verdict_that_the_value_contradicts(interference, tmp_path):
    contradicted().save(tmp_path / "run")
    shown = ["show", tmp_path / "run", "--reduce", "mean-of-ratios"]
    said = interference(*shown).out
    assert said.count("at odds") == 2
    assert "2 pairs of tasks: 1 conflict, 0 synergy, 0 unclear, 0 no signal, 1 at odds." in said
    assert (
        "note: in 1 cell I has the other sign than Delta: no verdict is shown there, because verdicts are about "
        "Delta; units whose own Delta is near 0 dominate a mean of ratios; read the ratio of means" in flat(said)
    )
    assert [row["at_odds"] for row in json.loads(interference(*shown, "--json").out)] == ["", "sign", "", ""]
    assert "at odds" not in interference("show", tmp_path / "run").out


def test_show_of_another_metric_has_no_null(interference, run_dir):
    said = interference("show", run_dir, "--metric", "magnitude_similarity", "--side", "B")
    assert said.code == 0 and "split-half null" not in said.out
    assert said.out.startswith("magnitude_similarity (side B, ")


def test_compare_json_is_the_comparison(interference, run, run_dir, tiny, tmp_path):
    other = tmp_path / "other"
    assert interference("compute", run_dir, "--layers", "1", "--out", other, "--quiet").code == 0
    rows = json.loads(interference("compare", run_dir, other, "--metric", "delta", "--json").out)
    expected = compare(run, load(other), "delta")
    np.testing.assert_allclose([row["difference"] for row in rows], expected["difference"], rtol=1e-12)
    said = interference("compare", run_dir, other, "--metric", "delta")
    assert flat(said.out).startswith(f"delta: {other} minus {run_dir}, the same units resampled in both")
    assert f"{expected['difference'][1]:.3g}" in said.out


def test_weight_space_is_computed_and_shown(interference, tiny, tmp_path):
    arguments = ["compute", *tiny.arguments(tmp_path / "run"), *ARGUMENTS, "--set", "probe.weight_space=true"]
    assert interference(*arguments).code == 0
    rows = json.loads(interference("show", tmp_path / "run", "--space", "weight", "--json").out)
    np.testing.assert_allclose([r["value"] for r in rows], load(tmp_path / "run").table(space="weight")["value"])
    assert "space weight" in interference("show", tmp_path / "run", "--space", "weight").out


# --- names and wrong usage ---


@pytest.mark.parametrize(("width", "ends", "whole"), [(24, 1, True), (23, 1, False), (23, 2, True), (200, 1, True)])
def test_a_matrix_too_wide_for_the_terminal_is_told_by_its_ends(run, monkeypatch, width, ends, whole):
    """Of two tasks, which need 24 characters; as if more than two cells were many."""
    monkeypatch.setattr(printing, "ENDS", ends)
    screen = Console(file=io.StringIO(), width=width)
    printing.show(run, "delta", screen)
    said = "".join(screen.file.getvalue().split())
    assert ("highest" in said, "\\" in said) == (not whole, whole)


def test_the_ends_of_a_matrix_are_its_lowest_and_highest_cells():
    table = pd.DataFrame(
        [(f"task {i}", f"task {j}", 10.0 * i + j, 0.0, 1.0, "unclear") for i in range(9) for j in range(9)],
        columns=["affected", "stepped", "value", "low", "high", "verdict"],
    )
    screen = Console(file=io.StringIO(), width=200)
    screen.print(printing.extremes(table, "delta"))
    lines = [line.split("│")[1:3] for line in screen.file.getvalue().splitlines() if "│" in line]
    named = [tuple(int(part.split()[-1]) for part in line) for line in lines]
    cells = sorted((10 * i + j, i, j) for i in range(9) for j in range(9) if i != j)
    assert named == [(i, j) for _, i, j in cells[:15] + cells[-15:]]


def test_cells_without_a_value_are_no_ends_and_are_counted():
    values = [float("nan") if k % 5 == 2 else float(k) for k in range(64)]
    table = pd.DataFrame(
        [(f"task {k // 8}", f"task {k % 8}", values[k], 0.0, 1.0, "unclear") for k in range(64)],
        columns=["affected", "stepped", "value", "low", "high", "verdict"],
    )
    found = printing.extremes(table, "delta")
    known = [k for k in range(64) if k % 9 and k % 5 != 2]
    assert list(found.columns[2].cells) == [printing.number(k) for k in known[:15] + known[-15:]]
    assert found.title == (
        f"delta: the 15 lowest and 15 highest of 56 cells, of which {56 - len(known)} have no value; --json has all"
    )
    few = printing.extremes(table.assign(value=table["value"].where(table.index < 24)), "delta")
    assert list(few.columns[2].cells) == [printing.number(k) for k in known if k < 24]  # none of them twice


def test_times_and_memory_are_told_as_a_reader_says_them():
    told = [plans.duration(seconds) for seconds in (0.4, 119, 120, 7199, 7200, 90_000)]
    assert told == ["0 s", "119 s", "2 min", "120 min", "2.0 h", "25.0 h"]
    choices = pd.DataFrame({"granularity": ["module"], "MiB": [2.0], "this one": ["yes"]})
    cost = Plan(12, 3, 4000, 2**20, choices, 3 * 2**30, 5 * 2**29, {"load": 1.0, "gradients": 200.0, "gram": 2.0})
    screen = Console(file=io.StringIO(), width=200)
    plans.plan(cost, screen)
    said = screen.file.getvalue()
    assert "disk: 1 MiB of gradients while computing, and 2 MiB of Gram matrices, which the run keeps" in said
    assert "memory: 3 GiB, on the GPU 2.5 GiB" in said
    assert "time: 3 min (seconds: load 1, gradients 2e+02, gram 2), estimated from examples of all lengths" in said


def test_debug_shows_the_traceback(interference, tmp_path):
    from interference.errors import RunError

    with pytest.raises(RunError, match="there is no run at"):
        interference("--debug", "show", tmp_path / "none")


def test_a_bug_is_one_sentence_and_exits_1(interference, run_dir, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("interference.run.Run.table", broken)
    said = interference("show", run_dir)
    assert (said.code, said.out) == (1, "")
    assert said.err == (
        "error: ZeroDivisionError: by zero; run again with --debug (before the command) for the traceback\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show"], "missing argument 'run'"),
        (["show", "x", "--metric", "hate"], "'hate' is not one of 'interference', 'delta', 'cosine', "),
        (["measure"], "No such command 'measure'"),
        (["compute", "--sample", "3"], "No such option"),
        (["verify", "x", "--units", "0"], "Invalid value for '--units': "),
    ],
)
def test_wrong_usage_exits_2(interference, arguments, words):
    said = interference(*arguments)
    assert said.code == 2 and words.lower() in flat(said.err).lower() and said.out == ""


def test_the_title_names_only_options_that_the_metric_reads(interference, run_dir):
    said = interference("show", run_dir, "--metric", "curvature", "--reduce", "ratio-of-means", "--side", "B").out
    assert "curvature (side B, space parameters, aggregate sum)" in said


def test_the_null_of_same_example_pairs_is_not_told_to_be_1(interference, run_dir):
    assert "should be 1" in interference("show", run_dir).out
    said = " ".join(interference("show", run_dir, "--pairs", "same-example").out.split())
    assert "should be 1" not in said and "mean cosine of its pairs" in said


def test_what_a_new_run_cannot_show_is_noted(interference, tiny, tmp_path):
    task = f"red={tiny.tasks['red']}"
    said = interference("compute", "--base", tiny.base, "--adapter", tiny.adapter, "--task", task, "--layers", "1",
                        "--samples", "50", "--quiet", "--out", tmp_path / "run")  # fmt: skip
    assert said.code == 0
    assert "note: task 'red' has 8 examples, fewer than samples=50" in said.err
    assert "note: a run of one task has no pair of tasks to compare" in said.err


def test_a_run_is_made_again_whatever_has_become_of_the_first_ones_files(interference, tiny, run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "old")
    (tmp_path / "old" / "gram.safetensors").unlink()
    said = interference("compute", tmp_path / "old", "--out", tmp_path / "new", "--quiet")
    assert (said.code, said.err) == (0, f"note: chat template: the base's ({tiny.base})\n")
    assert said.out.endswith(f" in {tmp_path / 'new'}\n")


@pytest.mark.slow
def test_runs_of_other_units_or_blocks_are_told_apart(interference, refused, tiny, run_dir, tmp_path):
    """Both on the same examples; `run_dir` has units of one, and all modules of layers 0 and 2."""
    compute_config(tiny.config(tmp_path / "twos", layers=[0, 2], unit_size=2))
    compute_config(tiny.config(tmp_path / "few", layers=[0, 2], modules=["attention"]))
    assert refused("compare", run_dir, tmp_path / "twos") == (
        "a unit is one example in one run and the mean of 2 examples in the other; compute both with the same unit size"
    )
    said = " ".join(interference("compare", run_dir, tmp_path / "few").out.split())
    assert "note: the runs measured different blocks (28 and 16, 16 of them the same), so the parameters" in said
    alike = interference("compare", run_dir, tmp_path / "few", "--modules", "attention")
    assert alike.code == 0 and "note:" not in alike.out
    out = tmp_path / "page"
    assert interference("report", run_dir, tmp_path / "few", "--detail", "small", "--out", out, "--quiet").code == 0
    assert "But the runs measured different blocks (28 and 16, 16" in (out / "report.html").read_text()
    assert interference("report", run_dir, tmp_path / "twos", "--detail", "small", "--out", out, "--quiet").code == 0
    page = (out / "report.html").read_text()
    assert "have no paired difference: a unit is one example in one run and the mean of 2 examples in" in page


@pytest.mark.slow
def test_a_home_directory_is_the_users(interference, tiny, tmp_path, monkeypatch):
    """Whoever writes ~ gets it everywhere or nowhere; nothing is called damaged."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    found = compute_config(tiny.config("~/one", samples=4))
    found.save("~/other")
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["one", "other"]
    assert len(load("~/one").probes) == len(load(tmp_path / "home" / "other").probes) == 8
    assert expanded("~nobody at all/run") == Path("~nobody at all/run")
    for command in (
        ["report", "~/one", "--detail", "small", "--quiet", "--out=~/page"],
        ["figure", "blocks", "~/one", "--out=~/figures"],
        ["factors", *tiny.arguments(), "--samples=6", "--perplexity=3", "--quiet", "--out=~/factors"],
    ):
        said = interference(*command)
        assert said.code == 0 and str(tmp_path / "home") in said.out, said
    made = ["factors", "figures", "one", "other", "page"]
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == made and not (tmp_path / "~").exists()
    shutil.copytree(tmp_path / "home" / "one", tmp_path / "~" / "literal")
    assert len(load(tmp_path / "~" / "literal").probes) == 8


@pytest.mark.parametrize(
    ("bytes_", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (2**20 - 1, "1 MiB"), (2**40, "1 TiB"), (1.8 * 2**40, "1.8 TiB")],
)
def test_amounts_are_told_without_exponents(bytes_, words):
    assert amount(bytes_) == words


@pytest.mark.parametrize(
    ("samples", "size", "words"),
    [
        (8, 4, []),
        (8, 3, ["note: units of 3 leave 2 of samples=8 examples of a task unused"]),
        (
            50,
            3,
            [
                f"note: task {task!r} has 6 examples in whole units of 3, fewer than samples=50"
                for task in ("red", "blue")
            ],
        ),
    ],
)
def test_examples_that_fill_no_unit_are_noted(interference, tiny, tmp_path, samples, size, words):
    given = [*tiny.arguments(tmp_path / "run"), "--layers", "1", "--samples", samples, "--quiet"]
    said = interference("compute", *given, "--set", f"probe.unit_size={size}")
    assert said.code == 0 and said.err.splitlines()[:-1] == words  # the last names the chat template


def test_rerunning_a_run_of_a_changed_checkpoint_is_noted(interference, tiny, tmp_path):
    import shutil

    from tests.support.checkpoints import write_adapter
    from tests.support.models import llama, lora, perturb

    shutil.copytree(tiny.adapter, tmp_path / "adapter")
    moved = ["--base", tiny.base, "--adapter", tmp_path / "adapter", *tiny.arguments()[4:]]
    interference("compute", *moved, "--layers", "1", "--samples", "4", "--quiet", "--out", tmp_path / "run")
    changed = lora(llama())
    perturb(changed, 9)
    write_adapter(tmp_path / "adapter", changed)
    said = interference("compute", tmp_path / "run", "--quiet", "--out", tmp_path / "again")
    assert said.code == 0 and f"note: the checkpoint has changed since {tmp_path / 'run'} was computed" in said.err


def test_completion_offers_the_notebook_names():
    import interference as package

    assert {"compute", "load", "compare", "verify", "figures"} <= set(dir(package))


def test_preview_shows_what_is_measured_without_the_weights(interference, tiny, run, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny.base, base, ignore=lambda folder, names: [name for name in names if "safetensors" in name])
    tasks = [part for name, file in tiny.tasks.items() for part in ("--task", f"{name}={file}")]
    call = ("preview", "--base", base, "--adapter", tiny.adapter, *tasks, "-n", "2")
    said = interference(*call, "--json", "--set", "probe.samples=6")
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert said.err == f"note: chat template: the base's ({base})\n"
    assert [(row["task"], row["id"]) for row in rows] == [
        (task, run.probes["ids"][run.probes["task"] == task].iloc[k]) for task in ("red", "blue") for k in (0, 1)
    ]
    tokens = run.probes["tokens"].tolist()
    assert [sum(row["supervised"]) for row in rows] == [*tokens[:2], *tokens[6:8]]
    shown = interference(*call)
    assert shown.out.count("tokens, ") == 4 and "\x1b" not in shown.out
    first = run.meta["data"]["examples"]["red"]
    assert (first["id"], first["tokens"]) == (rows[0]["id"], len(rows[0]["input_ids"]))
    assert "".join(text for text, _ in first["pieces"]) == rows[0]["text"]


def test_show_says_which_template_was_used(interference, tiny, run_dir):
    assert f"note: chat template: the base's ({tiny.base})" in flat(interference("show", run_dir).out)


def test_preview_of_an_adapter_that_is_not_there_is_refused(refused, tiny, tmp_path):
    tasks = [part for name, file in tiny.tasks.items() for part in ("--task", f"{name}={file}")]
    assert str(tmp_path) in refused("preview", "--base", tiny.base, "--adapter", tmp_path, *tasks)


@pytest.mark.parametrize(
    ("options", "out", "size"),
    [
        ([], "reports/demo", "WHOLE"),
        (["--quick"], "reports/demo-quick", "QUICK"),
        (["--quick", "--out=x"], "x", "QUICK"),
    ],
)
def test_a_quick_demo_has_a_place_of_its_own(interference, monkeypatch, options, out, size):
    from interference.cli import demo

    called = []
    monkeypatch.setattr(demo, "demo", lambda out, console, size=demo.WHOLE: called.append((out, size)))
    assert interference("demo", *options).code == 0
    assert called == [(Path(out), getattr(demo, size))]
