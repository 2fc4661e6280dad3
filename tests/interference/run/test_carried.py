"""A run of which a few examples carry a task: what `signal`, `show`, its notes and a report say."""

from io import StringIO

import numpy as np
import pandas as pd
from rich.console import Console

from interference import Run, compare
from interference.cli.printing import show
from interference.report import conclusions, suggestions
from interference.report.scopes import Detail, contents
from interference.report.summary import summarise
from interference.run.grams import pack
from interference.run.remarks import carried, has_null, scarce
from mixlora.common.progress import silent
from tests.support.runs import made

WORDS = (
    "b is carried by 1 example (r33), which has half of the squared gradient norms of its 30 units: its row has no "
    "verdicts and no intervals of Delta, as other examples may say otherwise; look at these, and probe more"
)


def heavy(scale: float = 50.0) -> Run:
    """Two tasks of 30 units around one mean, of which b's fourth is `scale` times as long."""
    source, random = made(), np.random.default_rng(0)
    gradients = random.normal(size=(60, 5)) + 1
    gradients[33] *= scale
    packed = {name: pack((gradients @ gradients.T).astype(np.float32)) for name in source.blocks["name"]}
    names = {"ids": [f"r{k}" for k in range(60)], "source": [f"f.jsonl:{k}" for k in range(60)]}
    probes = pd.DataFrame({"task": ["a"] * 30 + ["b"] * 30, "loss": 1.0, "tokens": 5, **names, "group": range(60)})
    return Run(probes, source.blocks, packed, {"seed": 3, "config": None})


def test_a_scope_of_its_own_copies_is_shown_whole_with_what_is_known_of_them():
    """Ten units each repeat three gradients in layer 3 alone, which leaves no half with two groups there."""
    run, out, random = heavy(1.0), StringIO(), np.random.default_rng(1)
    rows = random.normal(size=(60, 50)) + 1
    rows[:30] = rows[np.repeat([0, 10, 20], 10)]
    packed = {
        name: pack((rows @ rows.T).astype(np.float32)) if layer == 3 else run._grams[name]
        for name, layer in zip(run.blocks["name"], run.blocks["layer"], strict=True)
    }
    copied = Run(run.probes, run.blocks, packed, run.meta)
    show(copied, "interference", Console(file=out, width=200), layers=[3])
    assert "split-half null" not in out.getvalue() and "signal of each task's mean gradient" in out.getvalue()
    said = " ".join(out.getvalue().split())
    assert "note: 30 units are copies of 3 examples" in said
    assert "note: a has 3 groups, and an interval of own Delta takes 4" in said
    whole = StringIO()
    show(copied, "interference", Console(file=whole, width=200))
    assert "split-half null" in whole.getvalue() and "copies" not in whole.getvalue()


def test_carriers_and_effective_units_are_told():
    run = heavy()
    assert run.carriers(layers=[3]) == {"b": [[33]]} and heavy(1.0).carriers() == {}
    signal = run.signal()
    assert list(signal)[:3] == ["units", "effective", "loss"]
    norms = np.diagonal(run.gram()).astype(float)
    np.testing.assert_allclose(signal["effective"]["b"], norms[30:].sum() ** 2 / (norms[30:] ** 2).sum(), rtol=1e-6)
    assert 1 < signal["effective"]["b"] < 1.1 and 20 < signal["effective"]["a"] < 30


def test_show_says_by_how_many_and_names_them():
    out = StringIO()
    show(heavy(), "delta", Console(file=out, width=220), replicates=50)
    assert "carried by 1 example " in out.getvalue() and "[no interval]" in out.getvalue()
    assert "1 carried by few examples. Verdicts are about" in out.getvalue()
    assert f"note: {WORDS}" in " ".join(out.getvalue().split())
    plain = StringIO()
    show(heavy(1.0), "delta", Console(file=plain, width=220), replicates=50)
    assert "carried" not in plain.getvalue()


def test_a_report_names_them():
    run = heavy()
    found = summarise("r", run, contents(run, Detail.SMALL, 50), 50, silent)
    assert f"{WORDS}." in " ".join(conclusions.details(found, None))


def test_several_groups_of_examples_are_named_shortly():
    probes = heavy().probes
    (said,) = carried({"a": [[0, 1], [2, 3, 4, 5], [6], [7], [8]]}, probes, {})
    assert said.startswith("a is carried by 5 groups (r0, r1; r2, r3, r4, ...; r6; and 2 more), which have half")
    (said,) = carried({"a": [[0], [1]]}, probes, {"unit": "batch"})
    assert said.startswith("a is carried by 2 units (r0; r1), which have half")


def test_own_delta_without_an_interval_is_told():
    table = heavy().table("delta", replicates=50)
    assert scarce(table, heavy().carriers()) is None and scarce(heavy(1.0).table("delta", replicates=50)) is None
    run = heavy(1.0)
    random = np.random.default_rng(0)
    gradients = random.normal(size=(60, 5)) + 1
    gradients[30:37] *= 9
    led = {name: pack((gradients @ gradients.T).astype(np.float32)) for name in run.blocks["name"]}
    led_run = Run(run.probes, run.blocks, led, run.meta)
    out = StringIO()
    show(led_run, "delta", Console(file=out, width=220), replicates=50)
    said = "note: own Delta of b has no interval, because few units dominate it (see effective)"
    assert said in " ".join(out.getvalue().split()) and "carried" not in out.getvalue()


def opposed(scale):
    """Two tasks of 30 units whose means are opposed, each with one unit that is `scale` times as long."""
    source, random = made(), np.random.default_rng(1)
    gradients = random.normal(size=(60, 5)) + 2 * np.repeat([[1.0], [-1.0]], 30, axis=0)
    gradients[[3, 33]] *= scale
    packed = {name: pack((gradients @ gradients.T).astype(np.float32)) for name in source.blocks["name"]}
    return Run(heavy().probes, source.blocks, packed, {"seed": 3, "config": None})


def test_the_page_does_not_conclude_from_rows_that_have_no_verdict():
    run = opposed(15.0)
    found = summarise("r", run, contents(run, Detail.SMALL, 50), 50, silent)
    assert conclusions.answer(found) == "No pair of tasks has a verdict: a few examples carry a and b."
    assert "No pair is clear" not in str(suggestions.advice(found, None))
    plain = summarise("r", opposed(1.0), contents(run, Detail.SMALL, 50), 50, silent)
    assert conclusions.answer(plain).startswith("2 of 2 pairs of tasks conflict beyond noise")


def test_a_row_without_signal_that_is_carried_is_told_once():
    run = heavy()
    table = run.table("delta", replicates=50)
    noise = table.assign(verdict=table["verdict"].where(table["affected"] != "b", "no-signal"))
    assert scarce(noise, run.carriers()) is None


def test_a_copy_that_leaves_too_few_groups_leaves_out_the_null():
    source, random = made(), np.random.default_rng(0)
    gradients = random.normal(size=(8, 5)) + 1
    gradients[1] = gradients[0]
    packed = {name: pack((gradients @ gradients.T).astype(np.float32)) for name in source.blocks["name"]}
    probes = heavy().probes.iloc[[0, 1, 2, 3, 30, 31, 32, 33]].reset_index(drop=True)
    run = Run(probes, source.blocks, packed, {"seed": 3})
    assert not has_null(run.gram(), run.probes) and has_null(np.eye(8), run.probes)
    out = StringIO()
    show(run, "interference", Console(file=out, width=220), replicates=50)
    assert "split-half" not in out.getvalue() and "signal of each task" in out.getvalue()


def test_a_comparison_is_by_the_groups_of_both_runs():
    first, second = heavy(1.0), opposed(1.0)
    apart = Run(second.probes, second.blocks, second._grams, second.meta)
    apart.probes["group"] = [k // 3 for k in range(60)]
    one, other = compare(first, apart, "delta", replicates=50), compare(apart, first, "delta", replicates=50)
    np.testing.assert_allclose(one["difference"], -other["difference"])
    np.testing.assert_allclose(one["b"], apart.matrix("delta").to_numpy().ravel())
    np.testing.assert_allclose(one["low"], -other["high"])
