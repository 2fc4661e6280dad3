"""What a report says of units that are not independent: what is assumed, what was found, and what tasks share."""

from io import BytesIO

import pandas as pd
import pytest

from interference.report import tables
from interference.report.data import report
from interference.report.findings import dependence
from interference.report.html.render import render
from interference.report.summary import RunSummary
from tests.support.reported import APART, made
from tests.support.runs import contradicted

B = 60
UNITS = 12


def with_groups(groups=None):
    """A run of a, b and c with 12 units each, and a label for every one of the 36."""
    run = made(APART, layers=(0,))
    if groups is not None:
        run.probes["group"] = groups
    return run


def found_in(groups=None):
    run = with_groups(groups)
    return dependence.found([RunSummary("r", run, {}, run.signal(), pd.DataFrame(), [])])


# a's units come in twos; b and c have the same 12 pictures, of which a has one
SHARED = [*(k // 2 for k in range(UNITS)), 0, *range(100, 111), 0, *range(100, 111)]


def test_shared_groups_are_found_and_what_is_assumed_is_said():
    run = with_groups(SHARED)
    assert dependence.assumed(run) == (
        "Intervals and verdicts assume that units of different groups are independent. Examples that share a picture, "
        "or whatever a task's group names, form one group; so do copies of an example."
    )
    assert found_in(SHARED) == (
        "Here 36 units form 17 groups (a has the fewest for its size: 6 groups for 12 units), and 3 of 3 pairs of "
        "tasks have some in common (b and c 100%, a and b 17%, a and c 17%); c has 12 effective groups of 12, the "
        "fewest for its size."
    )


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (range(36), "Here each of the 36 units is a group of its own, and no two tasks have one in common; c has 12 "
         "effective units of 12, the fewest for its size."),
        ([k // 2 for k in range(36)], "Here 36 units form 18 groups (a has the fewest for its size: 6 groups for 12 "
         "units), and no two tasks have one in common; c has 6 effective groups of 6, the fewest for its size."),
        ([*range(24), 23, *range(25, 36)], "Here 36 units form 35 groups, and 1 of 3 pairs of tasks has some in "
         "common (b and c 8%); c has 12 effective groups of 12, the fewest for its size."),
        (None, "Here nothing is known about groups or about what tasks have in common; c has 12 effective units of 12, "
         "the fewest for its size."),
    ],
)  # fmt: skip
def test_what_was_found_is_one_sentence(groups, words):
    assert found_in(groups) == words


def test_a_run_without_groups_was_taken_as_independent_and_has_no_overlap():
    found = report({"r": with_groups()}, "small", replicates=B)
    (told,) = found.dependence
    assert told["assumed"].startswith(
        "This run has no groups, so its units were treated as independent: where examples"
    )
    assert (told["groups"], told["overlap"], told["shown"]) == ([], [], [])
    assert "overlap.csv" not in tables.render(found)


def test_overlap_is_the_runs_in_the_page_and_in_its_table():
    run = with_groups(SHARED)
    found = report({"one": run, "two": run, "three": with_groups()}, "small", replicates=B)
    together, alone = found.dependence
    assert (together["labels"], alone["labels"]) == (["one", "two"], ["three"])
    assert together["found"].endswith(
        "; in one c has 12 effective groups of 12, the fewest for its size; in two c has 12 effective groups of "
        "12, the fewest for its size."
    )
    assert together["groups"] == [6, 12, 12] and together["shown"] == [0, 1, 2]
    assert together["overlap"] == run.overlap().to_numpy().tolist()
    assert together["overlap"][0] == [1, 1 / 6, 1 / 6] and together["overlap"][1] == [1 / 12, 1, 1]
    read = pd.read_csv(BytesIO(tables.render(found)["overlap.csv"]))
    assert list(read) == ["run", "task", "other", "groups", "share"] and len(read) == 2 * 6
    row = read.query("run == 'two' and task == 'a' and other == 'c'").iloc[0]
    assert row["groups"] == 6 and row["share"] == pytest.approx(1 / 6)


def test_only_the_tasks_that_share_most_are_in_the_pages_table(monkeypatch):
    monkeypatch.setattr(dependence, "MOST_TASKS", 2)
    found = report({"r": with_groups(SHARED)}, "small", replicates=B)
    (told,) = found.dependence
    assert told["shown"] == [1, 2] and told["sharing"] == 3
    page = render(found.to_json())
    assert "the 2 of 3 tasks that share most, overlap.csv has the other 1</span>" in page
    assert len(pd.read_csv(BytesIO(tables.render(found)["overlap.csv"]))) == 6


def test_tasks_that_share_nothing_have_no_table_on_the_page():
    (told,) = report({"r": with_groups(range(36))}, "small", replicates=B).dependence
    assert told["shown"] == [] and told["overlap"] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_rows_of_cells_say_where_a_value_contradicts_its_verdict():
    run = contradicted(layers=(0,))
    found = report({"r": run}, "small", replicates=B)
    read = pd.read_csv(BytesIO(tables.render(found)["cells.csv"]), keep_default_na=False)
    paper = read.query("reduce == 'mean-of-ratios' and pairs == 'leave-one-out'")
    assert paper["at_odds"].tolist() == run.table(reduce="mean-of-ratios", replicates=B)["at_odds"].tolist()
    assert paper["at_odds"].tolist() == ["", "sign", "", ""] and paper["verdict"].tolist()[1] == "conflict"
    assert set(read.query("reduce == 'ratio-of-means' and pairs == 'leave-one-out'")["at_odds"]) == {""}
