"""Which runs are compared, and what is said of their difference; charts along depth and training; the CSV files."""

from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from interference import compare
from interference.errors import MeasurementError
from interference.report import tables
from interference.report.data import report
from interference.report.findings import changes, depth
from interference.report.scopes import WHOLE, Choice, Detail, contents, part
from interference.report.summary import summarise
from mixlora.common.progress import silent
from tests.support.reported import APART, MIXLORA, TWO_GROUPS, axis, made

B = 100
BASE = "interference/leave-one-out/ratio-of-means"


def measured(label="r", **options):
    run = made(options.pop("means", TWO_GROUPS), **options)
    return summarise(label, run, contents(run, Detail.SMALL, B), B, silent)


def words(first, second):
    return changes.difference([first, second], (0, 1), B, 1).words


def test_a_change_beyond_noise_is_counted():
    relieved = TWO_GROUPS | {"c": axis(4, 6), "d": axis(5, 7)}  # the second pair stops pulling against the first
    found = words(measured("LoRA"), measured("MixLoRA", means=relieved, selections=MIXLORA))
    assert found.startswith("MixLoRA against LoRA, on the same examples: mixed: I is higher in 8 and lower in 2 of")
    assert "change of I = " in found and found.endswith("; conflicts 8 before, 0 after.")


def test_no_change_is_told():
    first = measured("x", noise=0.3)
    assert words(first, first) == (
        "r against r".replace("r", "x")
        + ", on the same examples: no pair of 12 changes beyond noise; conflicts 8 before, "
        "8 after."
    )


def test_a_scope_without_gradients_is_not_compared():
    runs = [measured("x"), measured("y", zero="A")]
    with pytest.raises(MeasurementError, match="'x' and 'y' cannot be compared: every Gram is zero throughout"):
        changes.change(*runs, part(side="A"), [Choice("delta")], B)
    shared = changes.difference(runs, (0, 1), B, 1).tables
    assert WHOLE in shared and part(side="A") not in shared


@pytest.mark.parametrize("grouped", [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("metric", ["interference", "delta", "cosine"])
def test_the_page_shows_the_cells_of_compare_whichever_run_has_groups(metric, grouped):
    runs = [made(TWO_GROUPS, noise=0.5, seed=seed, meta={"seed": seed}) for seed in (1, 2)]
    for run, known, size in zip(runs, grouped, (2, 4), strict=True):
        if known:
            run.probes["group"] = np.arange(len(run.probes)) // size
    both = [summarise("r", run, contents(run, Detail.SMALL, B), B, silent) for run in runs]
    (page,) = changes.change(*both, part(side="A"), [Choice(metric)], B).values()
    found = compare(*runs, metric, side="A", replicates=B)
    apart = (page["affected"] != page["stepped"]).to_numpy()
    for shown, column in (("value", "difference"), ("low", "low"), ("high", "high"), ("q", "q")):
        assert_array_equal(page[shown], found[column])
    assert list(page["verdict"][apart]) == list(found["verdict"][apart])


def test_one_task_has_no_pair_to_compare():
    one = measured("x", means={"a": axis(1)})
    assert words(one, one) == "x against x: one task alone, so there is no pair of tasks to compare."


@pytest.mark.parametrize(("loss", "warned"), [(1.05, False), (1.2, True), (0.5, True), (1.0, False)])
def test_unequal_losses_are_warned_of(loss, warned):
    first, second = measured("x"), measured("y", loss=loss)
    assert (changes.unequal_loss(first, second) is not None) == warned
    assert ("But the mean losses differ (1.00 and " in words(first, second)) == warned
    found = report({"x": first.run, "y": second.run}, "small", replicates=B)
    assert any(line.startswith("x and y: the mean losses differ") for line in found.advice) == warned


def test_moments_of_one_training_may_differ_in_loss():
    early, late, other = (
        measured(label, loss=loss) for label, loss in [("x/step-1", 2.0), ("x/step-9", 1.0), ("y", 1.0)]
    )
    assert changes.unequal_loss(early, late) is None and changes.unequal_loss(early, other) is not None
    said = words(early, late)
    assert "less interference" not in said and "more interference" not in said
    assert said.endswith(", while the mean loss goes from 2.00 to 1.00 nats per token.")


def test_runs_of_other_tasks_are_not_warned_of_unequal_losses():
    runs = {"x": made(TWO_GROUPS), "y": made(APART, loss=3.0), "z": made(TWO_GROUPS, loss=2.0)}
    said = [line for line in report(runs, "small", replicates=B).advice if "mean losses differ" in line]
    assert [line.split(":")[0] for line in said] == ["x and z"]


def test_a_loss_of_zero_warns_of_nothing():
    assert changes.unequal_loss(measured(loss=0.0), measured(loss=1.0)) is None


@pytest.mark.parametrize(
    ("means", "ids", "said"),
    [
        (
            APART | {"d": axis(4)},
            "other",
            "have no paired difference: the runs do not have the same examples in the same order; compute both with "
            "the same seed.",
        ),
        (
            APART,
            "r",
            "were measured on different tasks, so their difference has no paired interval: compute both with the same "
            "tasks, samples and seed to compare them.",
        ),
    ],
)
def test_runs_of_other_examples_or_tasks_are_not_subtracted(means, ids, said):
    found = report({"x": made(TWO_GROUPS), "y": made(means, ids=ids)}, "small", replicates=B)
    assert found.differences == []
    assert found.headline[3] == f"x and y {said}"


def test_runs_of_examples_that_have_changed_are_not_subtracted():
    runs = {"x": made(TWO_GROUPS), "y": made(TWO_GROUPS)}
    for label, run in runs.items():
        run.probes["content"] = [label, *["same"] * (len(run.probes) - 1)]
    found = report(runs, "small", replicates=B)
    assert found.differences == []
    units, task = len(runs["x"].probes), runs["x"].tasks[0]
    assert found.headline[3] == (
        f"x and y have no paired difference: 1 of the runs' {units} units have the same names and other content, the "
        f"first is {runs['x'].probes['ids'][0]} of task {task!r}: the examples changed in between; compute both on the "
        "same."
    )


def test_runs_whose_groups_leave_nothing_independent_in_both_are_not_subtracted():
    runs = {label: made(TWO_GROUPS, ids="r") for label in "xy"}
    for run, own in zip(runs.values(), ([0, 0] * 3 + [1, 1] * 3, [0, 1] * 6), strict=True):
        run.probes["group"] = [*own, *range(2, 38)]
    found = report(runs, "small", replicates=B)
    assert found.differences == []
    assert found.headline[3] == (
        "x and y have no paired difference: the groups of both runs, taken together, leave task 'a' a single one, so "
        "that no two of its units are independent in both; compute both with the same `group`."
    )


def test_few_runs_are_all_compared_and_many_with_their_neighbours():
    few = [measured(str(k), layers=(0,)) for k in range(3)]
    assert changes.partners(few) == [(0, 1), (0, 2), (1, 2)]
    losses = [("LoRA", 3.0), ("LoRA", 2.0), ("LoRA", 1.0), ("MixLoRA", 3.1), ("MixLoRA", 2.1), ("MixLoRA", 1.9)]
    many = [
        measured(kind, layers=(0,), loss=loss, selections=MIXLORA if kind == "MixLoRA" else None)
        for kind, loss in losses
    ]
    crossed = [(0, 3), (1, 4), (1, 5)]
    assert changes.partners(many) == [*crossed, (0, 1), (1, 2), (3, 4), (4, 5)]


def test_time_bounds_the_scopes_of_a_difference(monkeypatch):
    first = measured()
    assert len(changes.difference([first, first], (0, 1), B, 1).tables) == len(first.tables)
    monkeypatch.setattr(changes, "seconds_of", lambda run, replicates: 2.0)
    found = changes.difference([first, first], (0, 1), B, 1).tables
    assert sum(len(choices) for choices in found.values()) == 7  # 30 seconds, 2 runs of 2 seconds each
    monkeypatch.setattr(changes, "seconds_of", lambda run, replicates: 1e6)
    found = changes.difference([first, first], (0, 1), B, 1).tables
    assert [choice.key for choices in found.values() for choice in choices] == [BASE]


@pytest.mark.parametrize(
    ("label", "meta", "step", "series"),
    [
        ("lora/step-10", {}, 10, "lora"),
        ("LoRA, step 100", {}, 100, "LoRA"),
        ("out/checkpoint-500", {}, 500, "out"),
        ("run", {"step": 7}, 7, "run"),
        ("step 3", {"step": 4}, 4, ""),
        ("stepwise", {}, None, "stepwise"),
    ],
)
def test_the_step_of_a_run(label, meta, step, series):
    run = measured(label, layers=(0,), meta=meta)
    assert depth.step_of(label, run.run) == step and depth.series_of(label) == series


def test_checkpoints_come_in_the_order_of_their_steps_within_their_places():
    given = ["lora/step-0", "x", "lora/step-100", "mix/step-9", "lora/step-20", "run", "mix/step-1", "lone/step-5"]
    runs = {label: made(APART, layers=(0,), meta={"step": 7} if label == "run" else {}) for label in given}
    ordered = depth.in_step_order(runs)
    assert list(ordered) == [
        "lora/step-0", "x", "lora/step-20", "mix/step-1", "lora/step-100", "run", "mix/step-9", "lone/step-5",
    ]  # fmt: skip
    assert all(ordered[label] is run for label, run in runs.items())
    same = {"a step 1 ": runs["x"], "a step 0": runs["run"], "a, step 1": runs["x"]}  # "run" is at step 7
    assert list(depth.in_step_order(same)) == ["a step 1 ", "a, step 1", "a step 0"]


def test_a_training_is_compared_forward_in_the_order_of_its_steps():
    """In the order in which a shell lists them."""
    runs = {f"step-{k}": made(TWO_GROUPS, layers=(0,), noise=0.3) for k in (0, 100, 150, 200, 50)}
    found = report(runs, "small", replicates=B)
    assert [run["label"] for run in found.runs] == [f"step-{k}" for k in (0, 50, 100, 150, 200)]
    assert [(change["first"], change["second"]) for change in found.differences] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert found.headline[6].startswith("step-50 against step-0, on the same examples: ")
    assert found.title == "Task interference: step-0, step-50, step-100, step-150 and step-200"


def test_a_trajectory_is_the_cells_of_every_step():
    runs = {f"lora/step-{k}": made(TWO_GROUPS, seed=k) for k in (0, 10)} | {"mixlora/step-5": made(TWO_GROUPS)}
    found = report(runs, "small", replicates=B)
    assert len(found.trajectory) == 2 * 12 and {row["run"] for row in found.trajectory} == {0, 1}
    row = next(row for row in found.trajectory if (row["run"], row["affected"], row["stepped"]) == (1, "c", "a"))
    table = runs["lora/step-10"].table(reduce="ratio-of-means", replicates=B)
    cell = table[(table["affected"] == "c") & (table["stepped"] == "a")].iloc[0]
    assert (row["step"], row["series"]) == (10.0, "lora")
    assert [row["value"], row["low"], row["high"]] == pytest.approx(cell[["value", "low", "high"]].tolist())


def test_runs_without_steps_have_no_trajectory():
    assert report({"x": made(APART), "y": made(APART)}, "small", replicates=B).trajectory == []


def test_rows_are_bounded_by_the_least_telling_pairs(monkeypatch):
    monkeypatch.setattr(depth, "ROWS", 10)
    runs = [measured(f"step {k}") for k in (0, 1)]
    rows, cut = depth.trajectory(runs)
    assert len(rows) == 10 and cut == 7
    told = report({run.label: run.run for run in runs}, "small", replicates=B).left_out
    assert "Along the training, the 7 pairs of tasks with the smallest values are not shown." in told
    kept = {(row["affected"], row["stepped"]) for row in rows}
    size = runs[0].pairs.assign(size=runs[0].pairs["value"].abs()).nlargest(5, "size")
    assert kept == set(zip(size["affected"], size["stepped"], strict=True))


def test_clear_pairs_come_first():
    pairs = pd.DataFrame({
        "affected": list("abc"),
        "stepped": list("bca"),
        "value": [-0.1, 5.0, 0.4],
        "verdict": ["conflict", "unclear", "synergy"],
    })  # fmt: skip
    assert depth.ranked(pairs) == [("c", "a"), ("a", "b"), ("b", "c")]


def test_tables_hold_the_reports_numbers():
    runs = {"=x step 1": made(TWO_GROUPS), "=x step 2": made(TWO_GROUPS, seed=5)}
    found = report(runs, "small", replicates=B)
    files = tables.render(found)
    names = ["matrix-1", "matrix-2", "cells", "differences", "signal", "null", "profile", "groups", "trajectory"]
    assert list(files) == [f"{name}.csv" for name in names]
    shown = {f"'{name}" for name in runs}  # for a spreadsheet
    read = {name.removesuffix(".csv"): pd.read_csv(BytesIO(content)) for name, content in files.items()}
    matrix = read["matrix-1"].set_index("affected")
    pd.testing.assert_frame_equal(matrix, runs["=x step 1"].matrix(reduce="ratio-of-means"), check_names=False)
    cells = read["cells"]
    assert len(cells) == 2 * 18 * 16 and set(cells["run"]) == shown
    median = cells[(cells["reduce"] == "median-of-ratios") & (cells["pairs"] == "all") & (cells["run"] == "'=x step 2")]
    wanted = runs["=x step 2"].table(pairs="all", reduce="median-of-ratios", replicates=B)
    for name in ("value", "low", "high", "q", "nonpositive", "leverage"):
        assert median[name].tolist() == pytest.approx(wanted[name].tolist(), nan_ok=True)
    assert median["verdict"].tolist() == wanted["verdict"].tolist()
    assert list(read["differences"]["first"].unique()) == ["'=x step 1"] and len(read["differences"]) == 4 * 16
    assert read["signal"]["snr"].tolist()[:4] == pytest.approx(runs["=x step 1"].signal()["snr"].tolist())
    assert read["signal"]["units"].tolist() == [12] * 8 and read["signal"]["loss"].tolist() == [1.0] * 8
    null = runs["=x step 1"].null(reduce="ratio-of-means", pairs="leave-one-out")
    assert read["null"]["value"].tolist()[:4] == pytest.approx(null["mean"].tolist())
    for name in ("null", "profile", "trajectory"):
        made_by = read[name][["metric", "pairs", "reduce"]].drop_duplicates().to_numpy().tolist()
        assert made_by == [["interference", "leave-one-out", "ratio-of-means"]], name
    groups = read["groups"].iloc[:4].set_index("task")["group"]
    assert groups.to_dict() == {"a": 1, "b": 1, "c": 2, "d": 2}
    assert len(read["trajectory"]) == 24 and set(read["trajectory"]["run"]) == shown
