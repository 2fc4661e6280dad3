"""What a report measures, within its budget of cells and time."""

import pytest

from interference.report import scopes
from interference.report.data import report
from interference.report.scopes import (
    BASE,
    CORE,
    WHOLE,
    Choice,
    Detail,
    choices_of,
    contents,
    key_of,
    layer_of,
    part,
    tiers,
    words_of,
)
from interference.run import Scope
from tests.support.reported import APART, TWO_GROUPS, axis, made


def matrices(planned):
    return sum(len(choices) for choices in planned.grid.values())


def test_keys_and_options_say_the_same():
    scope = part(5, "attention", "B")
    assert key_of(scope) == "5/attention/B"
    assert words_of(scope) == {"layers": "5", "modules": "attention", "side": "B"}
    assert scope == Scope([5], ["attention"], "B") and layer_of(scope) == 5
    assert key_of(WHOLE) == "all/all/both" and WHOLE == part() == Scope() and layer_of(WHOLE) is None
    assert part(side="W") == Scope(space="weight") and key_of(part(side="W")) == "all/all/W"
    assert BASE.options == {"pairs": "leave-one-out", "reduce": "ratio-of-means"} and Choice("cosine").options == {}


def test_choices_are_four_by_three_and_six_more():
    found = choices_of(made(APART))
    assert len(found) == len(set(found)) == 18 and found[:4] == CORE
    assert len({(choice.pairs, choice.reduce) for choice in found if choice.metric == "interference"}) == 12


def test_no_matrix_is_in_two_tiers():
    found = [(scope, choice) for tier in tiers(made(APART)) for scope in tier.scopes for choice in tier.choices]
    assert len(found) == len(set(found)) == 27 * 18


def test_a_scope_that_is_the_whole_is_not_measured_twice():
    run = made(APART, layers=(2,))
    found = {scope for tier in tiers(run) for scope in tier.scopes}
    assert found == {  # layer 2 is all there is, and each module is the whole of its group
        WHOLE,
        *(part(name=name) for name in ("attention", "mlp")),
        *(part(side=side) for side in "AB"),
        *(part(None, name, side) for name in ("attention", "mlp") for side in "AB"),
    }


def test_what_fits_is_planned_whole():
    run = made(APART)
    planned = contents(run, None, 10)
    assert matrices(planned) == 27 * 18 and planned.left_out == []


def test_cells_bound_a_report(monkeypatch):
    run = made({f"t{k}": axis(1 + k % 8) for k in range(20)}, units=2)
    monkeypatch.setattr(scopes, "CELLS", 12_000)
    planned = contents(run, None, 2)
    assert matrices(planned) * 400 <= 12_000
    told = sum(int(sentence.split(": ")[1].split()[0]) for sentence in planned.left_out)
    assert told + matrices(planned) == sum(tier.size for tier in tiers(run))
    assert planned.left_out[-1] == "every metric, pairs and reduction of parts: 364 of 364 matrices (145,600 cells)"
    assert matrices(contents(run, Detail.FULL, 2)) > matrices(planned) > matrices(contents(run, None, 2, runs=3))


def test_time_bounds_a_report(monkeypatch):
    run = made(APART, layers=range(8))
    monkeypatch.setattr(scopes, "seconds_of", lambda run, replicates: 1.0)
    planned = contents(run, None, 1000)
    assert scopes.FEW < matrices(planned) <= scopes.SECONDS and WHOLE in planned.grid
    assert len(CORE) < matrices(contents(run, Detail.SMALL, 1000)) <= scopes.FEW
    assert matrices(contents(run, Detail.FULL, 1000)) == sum(tier.size for tier in tiers(run))
    alone = matrices(contents(run, None, 1000, runs=6))
    assert len(CORE) <= alone <= scopes.SECONDS / 2


def test_layers_that_do_not_all_fit_are_spread_evenly(monkeypatch):
    run = made(APART, layers=range(32))
    monkeypatch.setattr(scopes, "seconds_of", lambda run, replicates: scopes.SECONDS / 9)
    planned = contents(run, None, 1000)
    assert [layer_of(scope) for scope in planned.grid if scope != WHOLE] == [0, 8, 16, 23, 31]
    assert planned.grid[WHOLE] == CORE
    assert planned.left_out[0] == "each layer: 27 of 32 matrices (243 cells)"


def test_the_main_matrix_is_there_whatever_it_costs(monkeypatch):
    monkeypatch.setattr(scopes, "seconds_of", lambda run, replicates: 1e6)
    planned = contents(made(APART), None, 1000)
    assert planned.grid == {WHOLE: CORE}


@pytest.mark.slow
def test_forty_tasks_stay_small():
    run = made({f"t{k}": axis(1 + k % 8, -1 - (k + 3) % 8) for k in range(40)}, units=2, layers=range(9))
    found = report({"r": run}, replicates=4)
    assert len(found.to_json()) < 8e6
    assert sum(len(c["value"]) for s in found.runs[0]["cells"].values() for c in s.values()) <= scopes.CELLS
    assert len(found.runs[0]["profile"]) <= 12_000
    assert any("pairs of tasks with the smallest values are not shown" in sentence for sentence in found.left_out)
    assert all(len(sentence) < 1000 for sentence in found.headline + found.advice)


@pytest.mark.parametrize(("units", "low", "high"), [(600, 0.2, 0.4), (4000, 5, 10)])
def test_the_estimate_of_time_is_near_what_was_measured(units, low, high):
    run = made(TWO_GROUPS, units=2)
    run.probes = run.probes.loc[run.probes.index.repeat(units // len(run.probes))]
    assert low < scopes.seconds_of(run, 1000) < high
