"""What a report says of one run, in every case that a run may be in."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from interference.advice.grouping import group
from interference.report import conclusions, suggestions
from interference.report.data import report
from interference.report.findings import drivers
from interference.report.scopes import BASE, WHOLE, Detail, contents
from interference.report.summary import RunSummary, counts, summarise
from interference.run.phrases import SHOWN, cell, counted, interval, number, several
from mixlora.common.progress import silent
from tests.support.reported import APART, MIXLORA, TWO_GROUPS, axis, made
from tests.support.runs import contradicted


def measured(run) -> RunSummary:
    return summarise("r", run, contents(run, Detail.SMALL, 200), 200, silent)


def said(found: RunSummary) -> tuple[str, str, str]:
    """The answer, the details and the advice."""
    grouping = group(found.tables[WHOLE][BASE], found.draws)
    return (
        conclusions.answer(found),
        " ".join(conclusions.details(found, grouping)),
        " ".join(suggestions.advice(found, grouping)),
    )


def with_null(found: RunSummary, **rows) -> RunSummary:
    """The same with another split-half null for some tasks."""
    null = found.null.copy()
    for task, row in rows.items():
        null.loc[task] = row
    return replace(found, null=null)


def test_conflict_is_told_with_its_worst_and_best_cell():
    found = measured(made(TWO_GROUPS, noise=0.3))
    answer, details, advice = said(found)
    conflicts = found.pairs[found.pairs["verdict"] == "conflict"]
    worst = conflicts.loc[conflicts["value"].idxmin()]
    best = found.pairs.loc[found.pairs["value"].idxmax()]
    assert answer == (
        "8 of 12 pairs of tasks conflict beyond noise and 4 help; "
        f"worst: a step of {worst['stepped']} on {worst['affected']}, I = {worst['value']:.2f} "
        f"[{worst['low']:.2f}, {worst['high']:.2f}]; "
        f"best: a step of {best['stepped']} on {best['affected']}, I = {best['value']:.2f} "
        f"[{best['low']:.2f}, {best['high']:.2f}]."
    )
    assert (
        "Pairs that conflict when only one part of the model is measured: 8 in layer 0, 8 in layer 3; "
        "8 in attention, 8 in mlp; 8 in side A, 8 in side B." in details
    )
    assert "The check against noise holds" in details and "Conflict lies between groups" in details
    assert advice.startswith("Split the tasks, with one adapter for each group: a and b; c and d.")


def test_several_runs_have_one_answer():
    one, clash, calm = (measured(made(means, noise=0.3)) for means in ({"alone": axis(1)}, TWO_GROUPS, APART))
    assert (
        conclusions.overview([one, one])
        == "Every run has a single task, so there is no pair of tasks that could interfere."
    )
    assert conclusions.overview([one, calm]) == (
        "No interference shows: pairs of tasks that conflict beyond noise are 0 of 6 in r."
    )
    assert conclusions.overview([clash, calm]) == (
        "Tasks interfere: pairs of tasks that conflict beyond noise are 8 of 12 in r and 0 of 6 in r."
    )


def test_a_sketch_is_told():
    found = measured(made(APART, meta={"sketch": 64, "sketch_error": 0.1768}))
    assert (
        "Gradients are sketches of 64 sums per block: an inner product errs by up to 17.7% of the product of the norms "
        "(standard error), which intervals do not include." in conclusions.notes(found)
    )


def test_one_task_has_nothing_to_compare():
    answer, details, advice = said(measured(made({"alone": axis(1)})))
    assert answer == "alone is the only task here, so there is no pair of tasks that could interfere."
    assert (details, advice) == ("", "Measure at least two tasks: interference is between tasks.")


def test_no_signal_anywhere_is_no_finding():
    answer, details, advice = said(measured(made(dict.fromkeys("abc", np.zeros(8)), noise=1.0, seed=4)))
    assert answer == (
        "This probe is too small to tell whether the tasks interfere: none of the 3 tasks has a gradient that rises "
        "above its own noise."
    )
    assert "check against noise" not in details
    assert "a, b and c: no signal; probe more examples (now 12 units per task)" in advice


def test_one_row_without_signal_is_named():
    means = TWO_GROUPS | {"n": np.zeros(8)}
    answer, details, advice = said(measured(made(means, noise=0.4, seed=1)))
    assert answer.startswith("8 of 16 pairs of tasks that have a verdict conflict beyond noise and 4 help;")
    assert "n cannot be judged: no gradient there rises above its own noise." in details
    assert "n: no signal; probe more examples" in advice


def test_tasks_with_too_few_groups_are_not_called_noisy():
    run = made(TWO_GROUPS, noise=0.1)
    few = [*[k // 4 for k in range(12)], *range(3, 39)]
    run.probes["group"] = few
    answer, details, advice = said(measured(run))
    why = (
        "has 3 groups, and an interval of own Delta takes 4: no signal means there that none can be told, not that "
        "there is none; probe more that are independent."
    )
    assert "of 9 pairs of tasks that have a verdict" in answer and f"A {why}" in details
    assert "rises above its own noise" not in details and "no signal;" not in advice
    assert "Probe more of a: 4 independent groups are the least." in advice
    run.probes["group"] = [k // 4 for k in range(48)]
    answer, details, advice = said(measured(run))
    assert answer == (
        "This probe is too small to tell whether the tasks interfere: a has 3 groups, b has 3 groups, c has 3 groups "
        "(and 1 more), and an interval of own Delta takes 4: no signal means there that none can be told, "
        "not that there is none; probe more that are independent."
    )
    assert "Probe more of a, b, c and d: 4" in advice and "learned already" not in advice


def test_a_learned_task_wants_an_earlier_checkpoint():
    means = TWO_GROUPS | {"n": np.zeros(8)}
    found = measured(made(means, noise=0.4, seed=1, loss=dict.fromkeys("abcd", 1.0) | {"n": 0.01}))
    assert "n: no signal and a loss below 0.05 nats per token, so already learned, or known" in said(found)[2]


def test_nothing_clear_says_what_could_have_been_seen():
    found = measured(made(APART, noise=0.3, seed=2))
    assert set(found.pairs["verdict"]) == {"unclear"}
    answer, _, advice = said(found)
    reach = ((found.pairs["high"] - found.pairs["low"]) / 2).median()
    assert answer == (
        "None of the 6 pairs of tasks conflicts or helps beyond noise; "
        f"an I closer to 0 than about {number(reach)} would not show here."
    )
    assert "No pair is clear: four times as many examples per task would halve every interval." in advice


def test_help_alone_is_told():
    answer, _, advice = said(measured(made({"a": TWO_GROUPS["a"], "b": TWO_GROUPS["b"]})))
    assert answer.startswith("No conflict beyond noise in 2 pairs of tasks; 2 help beyond noise, most: a step of ")
    assert advice == ""


def test_conflict_alone_is_told():
    found = measured(made({"a": axis(1, 2), "b": axis(-1, 3)}))
    assert said(found)[0].startswith("2 of 2 pairs of tasks conflict beyond noise and none helps; worst: a step of ")
    assert "best:" not in said(found)[0]


def one_sided():
    """A run in which b hurts a, and which no split helps."""
    found = measured(made(APART, noise=0.3, seed=2))
    table = found.tables[WHOLE][BASE]
    table.loc[(table["affected"] == "a") & (table["stepped"] == "b"), ["value", "verdict"]] = [-0.4, "conflict"]
    table.loc[(table["affected"] == "a") & (table["stepped"] == "c"), ["value", "verdict"]] = [0.6, "synergy"]
    return found


def test_conflict_without_groups_names_the_task_that_hurts():
    answer, _, advice = said(one_sided())
    assert answer.startswith(
        "1 of 6 pairs of tasks conflicts beyond noise and 1 helps; worst: a step of b on a, I = -0.40"
    )
    assert "A step of b hurts 1 of 2 other tasks: lower its share of the training, or train it separately." in advice
    assert "A MixLoRA of the same tasks gives each example its own factors" in advice
    mixture = one_sided()
    mixture.run.selections = MIXLORA
    assert mixture.kind == "MixLoRA" and "A MixLoRA" not in said(mixture)[2]


@pytest.mark.parametrize("row", [(0.4, -0.2, 1.3), (2.0, 1.2, 3.0), (0.5, 0.2, 0.9), (1.0, 0.5, 2.6), (np.nan,) * 3])
def test_a_failed_null_is_told(row):
    found = with_null(measured(made(TWO_GROUPS)), b=row)
    _, details, advice = said(found)
    assert conclusions.failed_null(found) == ["b"] and conclusions.rough_null(found) == []
    assert "The probe is too small to tell how strong interference is on b: " in details
    assert f"gives b {number(row[0])} {interval(*row[1:])}." in details and "check against noise" not in details
    assert "Probe more examples of b (now 12 units per task" in advice


def test_a_wide_null_asks_for_as_many_units_as_would_narrow_it():
    found = with_null(measured(made(TWO_GROUPS)), c=(1.0, 0.2, 2.2))
    _, details, advice = said(found)
    assert conclusions.rough_null(found) == ["c"] and conclusions.failed_null(found) == []
    assert (
        "The check against noise holds, but is wide: half of each task's units against its other half gives 1 within "
        "its scatter. The scatter is widest for c, [0.20, 2.20]: 2.00 from end to end; sizes in such a row are rough, "
        "but verdicts keep their meaning." in details
    )
    _, details, _ = said(with_null(measured(made(TWO_GROUPS)), c=(1.0, 0.6, 1.5)))
    assert "The check against noise holds: half" in details and "c, [0.60, 1.50]: 0.90 from end to end." in details
    assert "Probe more examples of c (now 12 units per task; about 48 would do)" in advice


def test_a_balanced_sum_forces_conflict():
    """Three gradients that cancel: the summed loss is stationary."""
    found = measured(made({"a": axis(1), "b": axis(2), "c": axis(-1, -2)}, noise=0.05))
    assert found.signal["balance"].abs().max() < 0.25 and conclusions.stationary(found) == ["a", "b", "c"]
    _, details, advice = said(found)
    assert "The summed loss is nearly stationary for a, b and c:" in details and "conflict is forced there" in details
    assert (
        "Measure an earlier checkpoint, or several along the training: here conflict is forced for a, b and c" in advice
    )


def test_nothing_clear_and_a_failed_null_is_too_small_to_tell():
    found = with_null(measured(made(APART, noise=0.3, seed=2)), a=(1.0, -4.0, 9.0))
    answer, _, advice = said(found)
    assert answer == (
        "None of the 6 pairs of tasks conflicts or helps beyond noise, but the probe is too small to tell: half of a "
        "task's units against its other half does not give 1 for a."
    )
    assert "Probe more examples of a (now 12 units per task): noise" in advice  # 13 / 1 squared as many is a guess


def test_zero_blocks_and_other_notes():
    found = measured(made(TWO_GROUPS, zero="A", meta={"not_probed": ["the projector"]}))
    assert "4 of 8 blocks have zero gradients and add nothing" in said(found)[2]
    notes = conclusions.notes(found)
    assert "The adapter also trains the projector, which is not part of theta here." in notes
    assert any(note.startswith("Every gradient is zero in side A") for note in notes)


def test_unstable_ratios_are_noted():
    found = measured(made(TWO_GROUPS, noise=4.0, units=20))
    tasks = found.pairs.loc[found.pairs["nonpositive"] > 0.05, "affected"].unique()
    assert (
        len(tasks)
        and f"More than 5% of the units of {several(list(tasks))} have an own Delta" in conclusions.notes(found)[0]
    )
    assert conclusions.notes(measured(made(TWO_GROUPS))) == []


def test_a_verdict_against_the_papers_value_is_told():
    (note,) = conclusions.notes(measured(contradicted(layers=(0,))))
    assert note == (
        "By the paper's mean of ratios, over all layers: in 1 cell I has the other sign than Delta: no verdict is "
        "shown there, because verdicts are about Delta; units whose own Delta is near 0 dominate a mean of ratios; "
        "read the ratio of means."
    )


def test_a_cell_whose_interval_contradicts_its_verdict_says_so():
    row = {"affected": "a", "stepped": "b", "value": -0.5, "low": -1.0, "high": 0.125}
    said = "a step of b on a, I = -0.50 [-1.00, 0.12]"
    assert cell(SimpleNamespace(**row, at_odds="")) == cell(SimpleNamespace(**row)) == said
    wanted = f"{said}, whose interval does not match the verdict on Delta"
    assert cell(SimpleNamespace(**row, at_odds="interval")) == wanted


def at_odds(found, *cells):
    """The summary with cells (affected, stepped) whose value does not bear out their verdict."""
    table = found.tables[WHOLE][BASE]
    against = [(row.affected, row.stepped) in cells for row in table.itertuples()]
    tables = {**found.tables, WHOLE: {**found.tables[WHOLE], BASE: table.assign(at_odds=np.where(against, "sign", ""))}}
    return replace(found, tables=tables)


def test_advice_counts_groups_where_they_are_what_counts():
    grouped = made(APART, noise=0.3, seed=2)
    grouped.probes["group"] = np.arange(36) // 2
    found = with_null(measured(grouped), a=(1.0, 0.2, 2.2), b=(1.0, 0.5, 1.4))
    assert "Probe more groups of a (now 6 groups per task; about 24 would do): noise alone" in said(found)[2]
    calm = with_null(found, a=(1.0, 0.5, 1.4), c=(1.0, 0.5, 1.4))
    assert "No pair is clear: four times as many groups per task would halve every interval." in said(calm)[2]
    silent_run = made(dict.fromkeys("abc", np.zeros(8)), noise=1.0, seed=4)
    silent_run.probes["group"] = np.arange(36) // 2
    assert "a and c: no signal; probe more groups (now 6 groups per task)" in said(measured(silent_run))[2]
    alone = made(APART, noise=0.3, seed=2)
    alone.probes["group"] = [*range(12), *range(24)]  # a picture in two tasks, but once in each
    found = with_null(measured(alone), a=(1.0, 0.2, 2.2))
    assert "Probe more examples of a (now 12 units per task; about 48 would do): noise alone" in said(found)[2]


def test_cells_at_odds_are_counted_as_the_matrix_shows_them():
    whole = measured(made(TWO_GROUPS))
    assert counts(whole.tables[WHOLE][BASE]) == {
        "conflict": 8, "synergy": 4, "unclear": 0, "no-signal": 0, "carried": 0
    }  # fmt: skip
    found = at_odds(whole, ("a", "c"), ("a", "b"))
    assert counts(found.tables[WHOLE][BASE]) == {
        "conflict": 7, "synergy": 3, "unclear": 0, "no-signal": 0, "carried": 0, "at-odds": 2
    }  # fmt: skip
    answer, *_ = said(found)
    assert answer.startswith("7 of 10 pairs of tasks that have a verdict conflict beyond noise and 3 help; worst: ")
    assert conclusions.overview([found, found]).endswith("are 7 of 12 in r and 7 of 12 in r.")
    assert ("a", "c") not in {(cell.affected, cell.stepped) for cell in drivers.drivers(found)}
    of_groups = group(found.tables[WHOLE][BASE], found.draws).words
    assert "7 of the 8 pairs between them conflict beyond noise, and 0 within them" in of_groups
    none = at_odds(whole, *((i, j) for i in "abcd" for j in "abcd" if i != j))
    assert said(none)[0] == "No pair of tasks has a verdict: values of I do not bear out what is found of Delta."


def test_forty_tasks_are_told_shortly():
    names = {f"task {k}": TWO_GROUPS["abcd"[k % 4]] for k in range(40)}
    found = measured(made(names, units=4, layers=(0,)))
    answer, details, advice = said(found)
    assert answer.startswith("800 of 1560 pairs of tasks conflict beyond noise and 760 help; worst: ")
    assert "task 0, task 1, task 4, task 5, task 8, task 9 and 14 more" in advice
    assert max(map(len, (answer, details, advice))) < 2500


def test_several_runs_answer_one_after_the_other():
    runs = {"one": made(TWO_GROUPS), "two": made(TWO_GROUPS, seed=9, selections=MIXLORA)}
    found = report(runs, "small", replicates=60)
    assert found.headline[0] == (
        "Tasks interfere: pairs of tasks that conflict beyond noise are 8 of 12 in one and 8 of 12 in two."
    )
    assert [sentence.split(":")[0] for sentence in found.headline[1:3]] == ["one", "two"]
    assert found.headline[3].startswith("two against one, on the same examples: ")
    assert any(note.startswith("The check against noise holds") for note in found.runs[1]["notes"])
    assert found.advice[0] == "Split the tasks, with one adapter for each group: a and b; c and d."


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.8, "-0.80"),
        (0, "0.00"),
        (0.0123, "0.012"),
        (0.0996, "0.10"),
        (12.3456, "12.35"),
        (1234.5, "1.2e+03"),
        (np.nan, "–"),
        (np.inf, "–"),
    ],
)
def test_numbers_in_sentences(value, text):
    assert number(value) == text


def test_small_phrases():
    assert interval(-1.1, -0.5) == "[-1.10, -0.50]" and interval(np.nan, 1) == "[no interval]"
    assert (counted(1, "pair"), counted(0, "pair"), counted(2, "pair")) == ("1 pair", "0 pairs", "2 pairs")
    assert (several(["a"]), several(["a", "b"]), several(list("abc"))) == ("a", "a and b", "a, b and c")
    assert several([str(k) for k in range(SHOWN + 3)]).endswith("5 and 3 more") and several([]) == ""


def test_pairs_without_an_interval_are_still_told():
    found = measured(made(APART, noise=0.3, seed=2))
    table = found.tables[WHOLE][BASE]
    table[["low", "high"]] = np.nan
    assert conclusions.answer(found) == "None of the 6 pairs of tasks conflicts or helps beyond noise."


def test_advice_for_several_runs_is_said_once_with_its_runs():
    few, none = measured(made(TWO_GROUPS)), measured(made(APART, noise=0.3, seed=4))
    runs = [replace(few, label="x"), replace(few, label="y"), replace(none, label="z")]
    said = suggestions.advice_of_all(runs, [group(run.tables[WHOLE][BASE], run.draws) for run in runs])
    assert said[0] == "Split the tasks, with one adapter for each group: a and b; c and d (x and y)."
    assert len(said) > 1 and all("(z)" in sentence for sentence in said[1:])
    assert suggestions.advice_of_all([few, few], [None, None]) == [
        one.words for one in suggestions.suggestions(few, None, alone=False)
    ]
