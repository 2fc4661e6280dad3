"""The report's numbers are the API's, its values are plain, and its shape is the page's schema."""

import json
import math

import numpy as np
import pytest

from interference import compare
from interference.errors import ConfigError, MeasurementError, ScopeError
from interference.report import data, scopes
from interference.report.data import report
from tests.support.reported import APART, MIXLORA, TWO_GROUPS, axis, made

B = 30
BASE = "interference/leave-one-out/ratio-of-means"
FIELDS = {
    "title", "made", "versions", "headline", "advice", "conventions", "left_out", "tasks", "scopes", "choices", "runs",
    "differences", "reached", "trajectory", "dependence", "horizons", "validations", "trials",
}  # fmt: skip


def options_of(scope, choice):
    """What a reader of the JSON passes to Run.table."""
    options = {} if scope["layers"] == "all" else {"layers": [int(scope["layers"])]}
    options |= {} if scope["modules"] == "all" else {"modules": [scope["modules"]]}
    options |= {} if scope["side"] == "both" else {"side": scope["side"]}
    return options | {name: choice[name] for name in ("pairs", "reduce") if choice[name] is not None}


def close(found, wanted):
    values = np.array([math.nan if value is None else value for value in found])
    np.testing.assert_allclose(values, np.asarray(wanted, dtype=float), rtol=1e-12)


@pytest.fixture(scope="module")
def run():
    return made(TWO_GROUPS, noise=0.6)


@pytest.fixture(scope="module")
def full(run):
    return report({"r": run}, "full", replicates=B)


def test_every_cell_is_that_of_the_table(run, full):
    choices = {choice["key"]: choice for choice in full.choices}
    assert len(choices) == 18 and len(full.scopes) == 1 + 2 + 4 + 2 * 8 + 4
    cells = full.runs[0]["cells"]
    assert set(cells) == {scope["key"] for scope in full.scopes}
    for scope in full.scopes:
        assert set(cells[scope["key"]]) == set(choices)
        for key in [BASE, "cosine", "interference/all/median-of-ratios", "delta"]:
            found = cells[scope["key"]][key]
            wanted = run.table(choices[key]["metric"], replicates=B, **options_of(scope, choices[key]))
            for name in ("value", "low", "high", "q", "nonpositive", "leverage"):
                close(found[name], wanted[name])
            assert found["verdict"] == wanted["verdict"].tolist()


def test_signal_null_counts_and_units_are_the_runs(run, full):
    shown = full.runs[0]
    null, signal = run.null(reduce="ratio-of-means"), run.signal()
    assert [row["task"] for row in shown["null"]] == run.tasks == full.tasks
    close([row["value"] for row in shown["null"]], null["mean"])
    close([row["high"] for row in shown["null"]], null["high"])
    for name in ("squared_norm", "unit_noise", "snr", "reliability", "balance"):
        close([row[name] for row in shown["signal"]], signal[name])
    table = run.table(reduce="ratio-of-means", replicates=B, layers=[3])
    verdicts = table.loc[table["affected"] != table["stepped"], "verdict"].value_counts()
    counts = shown["counts"]["3/all/both"]
    assert sum(counts.values()) == 12 and counts["conflict"] == verdicts.get("conflict", 0)
    assert shown["units"] == {"a": 12, "b": 12, "c": 12, "d": 12} and shown["loss"]["a"] == 1.0
    assert (shown["kind"], shown["blocks"]) == ("LoRA", 8)


def test_the_profile_is_the_tables_along_the_layers(run, full):
    rows = full.runs[0]["profile"]
    assert len(rows) == 12 * 2 * 9  # pairs x layers x (all, attention, mlp) x (both, A, B)
    row = next(r for r in rows if (r["layer"], r["modules"], r["side"]) == (3, "mlp", "B") and r["affected"] == "c")
    table = run.table(layers=[3], modules=["mlp"], side="B", reduce="ratio-of-means", replicates=B)
    cell = table[(table["affected"] == "c") & (table["stepped"] == row["stepped"])].iloc[0]
    close([row["value"], row["low"], row["high"]], cell[["value", "low", "high"]])


def test_json_comes_back_the_same_without_nan(full):
    text = full.to_json()
    again = json.loads(text, parse_constant=pytest.fail)
    assert set(again) == FIELDS
    value = full.runs[0]["cells"]["all/all/both"][BASE]["value"]
    np.testing.assert_allclose(again["runs"][0]["cells"]["all/all/both"][BASE]["value"], value, rtol=1e-5)
    assert again["headline"] == full.headline and again["runs"][0]["units"] == full.runs[0]["units"]


def test_numbers_that_do_not_exist_are_none():
    run = made({"a": axis(1), "b": np.zeros(8)}, noise=0.0)  # b has no gradient at all
    shown = report({"r": run}, "small", replicates=B)
    cells = shown.runs[0]["cells"]["all/all/both"][BASE]
    assert cells["value"][2:] == [None, None] and cells["verdict"][2] == "no-signal"
    assert shown.runs[0]["null"][1]["value"] is None
    json.loads(shown.to_json(), parse_constant=pytest.fail)


def test_differences_are_compares():
    first = made(TWO_GROUPS, noise=0.6, layers=(0,))
    second = made(APART | {"d": axis(4)}, noise=0.6, layers=(0,), selections=MIXLORA)
    found = report({"one": first, "two": second}, replicates=B)
    assert [run["kind"] for run in found.runs] == ["LoRA", "MixLoRA"]
    (change,) = found.differences
    assert (change["first"], change["second"]) == (0, 1) and len(change["cells"]) == len(found.scopes)
    for key, scope in {"all/all/both": {}, "all/mlp/A": {"modules": ["mlp"], "side": "A"}}.items():
        wanted = compare(first, second, "interference", reduce="ratio-of-means", replicates=B, **scope)
        close(change["cells"][key][BASE]["value"], wanted["difference"])
        close(change["cells"][key][BASE]["low"], wanted["low"])
        verdicts = change["cells"][key][BASE]["verdict"]
        assert verdicts[0] == "self" and verdicts[1:5] == wanted["verdict"].tolist()[1:5]


def test_runs_of_other_tasks_share_one_grid():
    first, second = made({"a": axis(1), "b": axis(2)}), made({"b": axis(2), "c": axis(-2)})
    found = report({"one": first, "two": second}, "small", replicates=B)
    assert found.tasks == ["a", "b", "c"] and found.differences == []
    cells = found.runs[1]["cells"]["all/all/both"][BASE]
    wanted = second.matrix(reduce="ratio-of-means")
    close([cells["value"][k] for k in (4, 5, 7, 8)], wanted.to_numpy().ravel())
    assert [cells["verdict"][k] for k in (0, 1, 3)] == ["", "", ""] and cells["value"][0] is None


def test_three_tasks_in_two_orders_keep_their_cells():
    first, second = made(TWO_GROUPS), made(dict(reversed(TWO_GROUPS.items())))
    found = report({"one": first, "two": second}, "small", replicates=B)
    wanted = second.matrix(reduce="ratio-of-means").loc[found.tasks, found.tasks]
    close(found.runs[1]["cells"]["all/all/both"][BASE]["value"], wanted.to_numpy().ravel())


def test_hostile_names_pass_unchanged():
    names = ['</script><img src=x onerror="alert(1)">', "=cmd|'/c calc'!A0", "\u202ee\x00vil", "任务 & <b>"]
    run = made(dict(zip(names, TWO_GROUPS.values(), strict=True)))
    found = report({"<i>label": run}, "small", replicates=B)
    assert found.tasks == names and found.runs[0]["label"] == "<i>label"
    assert json.loads(found.to_json())["tasks"] == names
    assert any(names[0] in sentence for sentence in found.headline + found.advice)


def test_unequal_counts_leave_out_what_needs_equal_ones():
    found = report({"r": made(APART, drop=[("a", "r0")])}, replicates=B)
    assert len(found.choices) == 15 and not any(choice["pairs"] == "uni-perceiver" for choice in found.choices)
    assert any("uni-perceiver" in sentence and "equally many" in sentence for sentence in found.left_out)


def test_empty_scopes_are_told_and_left_out():
    found = report({"r": made(TWO_GROUPS, zero="A")}, replicates=B)
    assert "all/all/A" not in found.runs[0]["cells"] and "all/all/B" in found.runs[0]["cells"]
    assert any(note.startswith("Every gradient is zero in side A") for note in found.runs[0]["notes"])
    assert any("4 of 8 blocks have zero gradients" in sentence for sentence in found.advice)
    with pytest.raises(MeasurementError, match="every gradient of 'r' is zero: there is nothing to report"):
        report({"r": made({"a": np.zeros(8), "b": np.zeros(8)}, noise=0)}, replicates=B)


def test_too_few_units_for_a_null_are_told():
    found = report({"r": made(TWO_GROUPS, units=3)}, "small", replicates=B)
    assert found.runs[0]["null"] == []
    assert "There is no split-half null: it needs at least 4 units of every task." in found.runs[0]["notes"]


def test_wrong_arguments_are_told():
    with pytest.raises(ScopeError, match="there is no run to report on; name at least one"):
        report({})
    with pytest.raises(ConfigError, match="detail is 'big', but must be one of 'small', 'full'"):
        report({"r": made(APART)}, "big")


def test_versions_title_and_sources_are_given():
    runs = {
        "x": made(APART, meta={"versions": {"torch": "2.1"}, "config": {"out": "/runs/x"}}),
        "y": made(APART, meta={"versions": {"torch": "2.2"}}),
    }
    found = report(runs, "small", replicates=B, sources={"y": "some/y"})
    assert found.versions["torch"] == "2.1, 2.2" and "task-interference" in found.versions
    assert found.title == "Task interference: x and y"
    assert [run["source"] for run in found.runs] == ["/runs/x", "some/y"]


def test_what_is_true_of_every_run_names_none():
    said = data._Sentences(2)
    said.add("x", "both")
    said.add("x", "one")
    said.add("y", "both")
    said.add("", "of the report")
    assert said.all() == ["both.", "x: one.", "of the report."]


def test_progress_counts_every_matrix():
    told = []
    report({"r": made(APART)}, "full", replicates=2, progress=lambda *said: told.append(said))
    total = len(told)
    assert told[0] == ("matrices of r", 1, total) and told[-1] == ("matrices of r", total, total)
    assert total == sum(tier.size for tier in scopes.tiers(made(APART)))
