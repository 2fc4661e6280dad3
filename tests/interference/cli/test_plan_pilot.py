"""interference plan --pilot: how many groups a verdict needs, in a table and in sentences."""

import json

import numpy as np
import pandas as pd
import pytest

from interference.config import build
from interference.measurement.compute import compute_config
from interference.run import Run
from interference.run.planning import needed
from interference.statistics.power import needs
from tests.support.checkpoints import write_task

DIM = 60


def pilot(groups=12, size=4, intraclass=0.5, silent=False, kind="image", known=True):
    """A run of two tasks of one block whose gradients are drawn by a law."""
    rng = np.random.default_rng(0)
    means = np.array([np.eye(DIM)[0] * (not silent), np.eye(DIM)[1] - 0.2 * np.eye(DIM)[0]])
    common, own = (rng.normal(size=(2, count, DIM)) for count in (groups, groups * size))
    noise = np.sqrt(intraclass) * np.repeat(common, size, 1) + np.sqrt(1 - intraclass) * own
    gradients = (means[:, None] + 2 / np.sqrt(DIM) * noise).reshape(-1, DIM)
    count = 2 * groups * size
    probes = pd.DataFrame(
        {
            "task": np.repeat(["red", "blue"], count // 2),
            "loss": 1.0,
            "tokens": 3,
            "ids": [f"r{k}" for k in range(count)],
            "source": [f"f:{k}" for k in range(count)],
        }
    )
    if known:
        probes["group"] = np.repeat(np.arange(2 * groups), size)
    blocks = pd.DataFrame(
        {"name": ["b"], "component": "language", "layer": 0, "module": "q_proj", "group": "attention", "side": "A"}
    ).assign(size=DIM)
    packed = (gradients @ gradients.T)[np.triu_indices(count)].astype(np.float32)
    how = {"seed": 0, "unit": "example", "token_mean": False, "granularity": "module"}
    meta = how | {"config": {"tasks": {"red": {"group": kind}, "blue": {"group": kind}}}}
    return Run(probes, blocks.astype({"layer": "Int64"}), {"b": packed}, meta)


def test_the_table_has_the_needs_of_pairs_the_greatest_first():
    run = pilot()
    found, own = needed(run, -0.2), needs(run.gram(), list(run.probes["task"]), -0.2, groups=run.groups)
    table = found.table.set_index(["affected", "stepped"])
    assert len(table) == 2 and found.table["groups"].is_monotonic_decreasing
    for i, j in ((0, 1), (1, 0)):
        row = table.loc[own.tasks[i], own.tasks[j]]
        assert (row["groups"], row["units"]) == (own.groups[i, j], 4 * own.groups[i, j])
        assert (row["delta"], row["unlimited"]) == (own.delta[i, j], own.unlimited[i, j])


@pytest.mark.parametrize(("kind", "name"), [("image", "pictures"), ("doc", "groups")])
def test_more_examples_of_the_same_groups_are_said_not_to_help_where_they_would_not(kind, name):
    alike = needed(pilot(intraclass=0.95, kind=kind), -0.2)
    worst, said = alike.table.iloc[0], alike.sentences({"red": 12, "blue": 30})
    assert said[0] == (
        f"a verdict on an interference of -0.2 takes {worst['groups']:.0f} groups of each task ({worst['units']:.0f} "
        "units at the pilot's number per group) for a power of 80% in the cell that needs most, a step of "
        f"{worst['stepped']} on {worst['affected']}; 12 groups are planned"
    )
    rho = np.nanmax(alike.found.intraclass)
    assert said[1] == (
        f"more examples of the same {name} would not help: gradients within one have an intraclass correlation of "
        f"{rho:.2f}, and with any number of examples in each it would still take {worst['unlimited']:.0f}"
    )
    assert 0.9 < rho < 1 and worst["unlimited"] >= 0.9 * worst["groups"]
    different = needed(pilot(intraclass=0.2, kind=kind), -0.2)
    assert len(different.sentences()) == 1 and different.table.iloc[0]["unlimited"] < 0.8 * different.table["groups"][0]


def test_a_pilot_without_groups_tells_units_and_one_without_signal_says_so():
    said = needed(pilot(known=False), None).sentences()
    assert len(said) == 1 and said[0].startswith("a verdict on the pilot's own Delta takes ")
    assert " units of each task for a power of 80% in the cell that needs most" in said[0]
    silent = needed(pilot(silent=True), -0.2).sentences()
    assert silent[1].startswith(
        "the pilot has no signal for red (own Delta not above 0 beyond noise), so nothing can be said"
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pilot") / "run"
    pilot(intraclass=0.95).save(folder)
    return folder


def test_the_command_alone_tells_needs_and_with_a_configuration_costs_and_what_is_planned(
    interference, tiny, tmp_path, stored
):
    said = interference("plan", "--pilot", stored, "--effect", "-0.2")
    assert said.code == 0, said.err
    assert "groups of each task that a verdict needs" in said.out and "disk:" not in said.out
    assert "more examples of the same pictures would not help" in said.out.replace("\n", " ")
    own = tmp_path / "run"
    values = tiny.data(layers=[0, 2], samples=8) | {"out": str(own)}
    run = compute_config(build(values, "test"))
    said = interference("plan", own, "--layers", "0", "--pilot", own, "--no-time", "--json", "--effect", "observed")
    found, expected = json.loads(said.out), needed(run, None, layers=[0])
    assert found["groups"] == {"red": 8, "blue": 8} and (found["effect"], found["power"]) == (None, 0.8)
    table = expected.table.replace(np.inf, np.nan)
    assert [row["affected"] for row in found["needed"]] == list(table["affected"])
    assert [row["groups"] for row in found["needed"]] == [None if np.isnan(n) else n for n in table["groups"]]
    with pytest.raises(AssertionError):
        pd.testing.assert_frame_equal(needed(run, None, layers=[2]).table, expected.table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--effect", "-0.2"], "--effect -0.2 is for a --pilot, which gives the variance; name a run"),
        (
            ["--pilot", "RUN", "--effect", "much"],
            "--effect 'much' is not a number; write an interference such as -0.1, or",
        ),
        (
            ["--pilot", "RUN", "--effect", "0"],
            "effect is 0, which no number of groups can detect; give an interference such",
        ),
        (["--pilot", "nowhere"], "there is no run at nowhere"),
        (
            ["--pilot", "RUN", "--task", "green=green.jsonl"],
            "the pilot has no task 'green', only red, blue; measure a pilot of all tasks",
        ),
        (
            ["--pilot", "RUN", "--set", "probe.unit_size=2"],
            "the pilot does not match the plan: a unit is one example in one run and the mean of 2 examples in",
        ),
        (["--pilot", "RUN", "--layers", "5"], "layer 5 "),
    ],
)
def test_what_does_not_fit_is_refused(refused, tiny, stored, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path / "green.jsonl", 8)
    options = [str(stored) if option == "RUN" else option for option in options]
    asks = any(option in ("--task", "--set", "--layers") for option in options)
    assert refused("plan", *(tiny.arguments() if asks else []), *options, "--no-time").startswith(message)


def test_one_task_has_no_verdict_to_plan(refused, tiny, stored):
    task = f"red={tiny.tasks['red']}"
    given = ["--base", tiny.base, "--adapter", tiny.adapter, "--task", task, "--pilot", stored, "--no-time"]
    assert refused("plan", *given).startswith(
        "there is only one task, so there is no pair to plan for; give two or more"
    )


def test_rows_that_a_few_examples_of_the_pilot_carry_are_called_guesses():
    run = pilot()
    gradients = np.random.default_rng(1).normal(size=(len(run.probes), DIM)) + 1
    gradients[:4] *= 30  # a group of red's
    packed = (gradients @ gradients.T)[np.triu_indices(len(gradients))].astype(np.float32)
    found = needed(Run(run.probes, run.blocks, {"b": packed}, run.meta), -0.2)
    assert found.carried == ["red"] and needed(run, -0.2).carried == []
    said = "a few examples of the pilot carry red, so the numbers for their rows are guesses; measure a larger pilot"
    assert said in found.sentences() and said not in needed(run, -0.2).sentences()
