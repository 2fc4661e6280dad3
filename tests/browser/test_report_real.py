"""The page of runs that were measured: what it prints is what the API gives, in every setting and in the words."""

import itertools
import json
import re

import numpy as np
import pytest

from interference import compare, load
from interference.report.data import report
from tests.support.pages import choose_cell, number, shown
from tests.support.paths import REFERENCE
from tests.support.reported import APART, MIXLORA, TWO_GROUPS, axis, made

B = 60
SETTINGS = [
    ("interference", "leave-one-out", "mean-of-ratios", "all", "all", "both"),
    ("interference", "all", "median-of-ratios", "3", "attention", "A"),
    ("interference", "uni-perceiver", "ratio-of-means", "0", "mlp", "B"),
    ("interference", "same-example", "mean-of-ratios", "all", "mlp", "both"),
    ("delta", None, None, "3", "all", "both"),
    ("cosine", None, None, "all", "attention", "B"),
    ("conflict_rate", None, None, "0", "mlp", "A"),
]


def options_of(pairs, reduce, layers, modules, side):
    """The controls' values as `Run.matrix` takes them."""
    found = {} if pairs is None else {"pairs": pairs, "reduce": reduce}
    found |= {} if layers == "all" else {"layers": [int(layers)]}
    found |= {} if modules == "all" else {"modules": [modules]}
    return found | ({} if side == "both" else {"side": side})


@pytest.fixture(scope="module")
def runs():
    return {"first": made(TWO_GROUPS, noise=0.6), "second": made(TWO_GROUPS, noise=0.9, selections=MIXLORA)}


@pytest.fixture(scope="module")
def data(runs):
    return {
        1: report({"first": runs["first"]}, "full", replicates=B).to_dict(),
        2: report(runs, replicates=B).to_dict(),
    }


def test_every_setting_shows_the_matrix_of_the_run(opened, data, runs):
    page = opened(data[1]).page
    for metric, pairs, reduce, layers, modules, side in SETTINGS:
        choose_cell(page, metric=metric, pairs=pairs, reduce=reduce, layers=layers, modules=modules, side=side)
        wanted = runs["first"].matrix(metric, **options_of(pairs, reduce, layers, modules, side)).to_numpy().ravel()
        values = [cell[0] for cell in shown(page)]
        for printed, value in zip(values, wanted, strict=True):
            plain = printed.replace("\N{MINUS SIGN}", "-")
            assert plain.startswith("-" if value < 0 else "+" if metric != "conflict_rate" and value > 0 else "")
            assert abs(float(plain) - value) <= last_place(plain) * 0.500001, (metric, printed, value)


def last_place(printed):
    """What one in the last digit of a number is worth: 0.01 of "1.25", 100 of "1.5e3"."""
    digits, _, exponent = printed.partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def test_numbers_with_an_exponent_are_compared(opened):
    run = made({name: 300 * mean for name, mean in TWO_GROUPS.items()}, noise=0.6)
    page = opened(report({"r": run}, "small", replicates=B).to_dict()).page
    choose_cell(page, metric="delta")
    wanted = run.matrix("delta").to_numpy().ravel()
    printed = [cell[0].replace("\N{MINUS SIGN}", "-") for cell in shown(page)]
    assert sum("e" in one for one in printed) >= 4
    for one, value in zip(printed, wanted, strict=True):
        assert abs(float(one) - value) <= last_place(one) * 0.500001, (one, value)


def test_the_difference_shows_what_compare_gives(opened, data, runs):
    page = opened(data[2]).page
    choose_cell(page, metric="interference", pairs="leave-one-out", reduce="ratio-of-means")
    table = compare(runs["first"], runs["second"], reduce="ratio-of-means", replicates=B)
    printed = shown(page, 2)
    assert [cell[0] for cell in printed] == [number(value) for value in table["difference"]]
    off = (table["affected"] != table["stepped"]).to_numpy()
    assert list(np.array([cell[2] for cell in printed])[off]) == list(table["verdict"][off])


def test_the_words_hold_the_numbers_of_the_api(opened, data, runs):
    page = opened(data[1]).page
    table = runs["first"].table(reduce="ratio-of-means", replicates=B)
    worst = table[table["verdict"] == "conflict"].sort_values("value").iloc[0]
    heading = page.locator("h1").text_content()
    count, total, value, low, high = re.match(
        r"(\d+) of (\d+) pairs .* worst: .*? I = (\S+) \[(\S+), (\S+)\]", heading
    ).groups()
    assert (int(count), int(total)) == ((table["verdict"] == "conflict").sum(), 12)
    assert f"a step of {worst.stepped} on {worst.affected}" in heading
    assert [float(end) for end in (value, low, high)] == [
        float(f"{end:.2f}") for end in (worst.value, worst.low, worst.high)
    ]


def test_two_runs_have_one_answer_then_their_own_then_the_change(opened, data):
    page = opened(data[2]).page
    assert re.match(
        r"Tasks interfere: pairs of tasks that conflict beyond noise are \d+ of 12 in first and \d+ of 12 in second\.",
        page.locator("h1").text_content(),
    )
    leads = page.locator(".lead").all_text_contents()
    assert [lead.split(":")[0] for lead in leads[:2]] == ["first", "second"]
    assert leads[2].startswith("second against first, on the same examples: ")


CASES = {
    "one task": ({"alone": axis(1)}, {}, "alone is the only task here"),
    "no clear cell": (APART, {"noise": 0.3, "seed": 4}, "None of the 6 pairs of tasks conflicts or helps beyond noise"),
    "no signal": (dict.fromkeys("abc", np.zeros(8)), {"noise": 1.0, "seed": 4}, "This probe is too small to tell"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_page_says_so_where_there_is_little_to_see(opened, case):
    means, options, words = CASES[case]
    page = opened(report({"r": made(means, **options)}, "small", replicates=B).to_dict(), 360).page
    assert words in page.locator("h1").text_content()
    assert page.locator(".matrix td[data-row]").count() == len(means) ** 2
    assert "conflict" not in [cell[2] for cell in shown(page)]


def test_a_failed_null_is_said_where_the_question_is_asked(opened):
    means = {"a": axis(1, size=0.45), "b": axis(2, size=3), "c": axis(3, size=3)}
    for seed in itertools.count():  # the first draw whose null fails for a task with signal
        found = report({"r": made(means, noise=1.0, units=12, layers=(0,), seed=seed)}, "small", replicates=B)
        if any("should give 1, but gives" in sentence for sentence in found.headline):
            break
        assert seed < 40
    page = opened(found.to_dict()).page
    assert "should give 1, but gives" in page.locator("header").inner_text()
    assert "Probe more examples of" in page.locator("#advice").inner_text()


def test_forty_tasks_name_each_row_and_column_whole(opened):
    names = [f"vision_flan_task_number_{k:02d}" for k in range(40)]
    rng = np.random.default_rng(0)
    means = {name: rng.normal(size=8) for name in names}
    found = report({"r": made(means, units=4, layers=(0, 1))}, "small", replicates=20)
    page = opened(found.to_dict()).page
    for heads in ("th[scope=row]", "th[scope=col]"):
        cut = page.locator(f".matrix {heads} .name").evaluate_all(
            "names => names.filter(n => n.scrollWidth > n.clientWidth + 1 || n.scrollHeight > n.clientHeight + 1)"
            ".length"
        )
        assert cut == 0, heads
    assert any("matrices" in sentence for sentence in found.left_out)
    left = page.locator("#conventions").inner_text()
    assert all(sentence in left for sentence in found.left_out)


METHODS = ("lora", "mixlora")


def test_the_page_of_measured_runs_shows_their_matrices_and_examples(opened):
    """The two runs that are checked in: a LoRA and a MixLoRA, with the pictures and answers that drive a cell."""
    measured = {"LoRA": load(REFERENCE / "lora"), "MixLoRA": load(REFERENCE / "mixlora")}
    page = opened(report(measured, "small", replicates=B).to_dict()).page
    choose_cell(page, metric="interference", pairs="leave-one-out", reduce="ratio-of-means")
    for place, run in enumerate(measured.values()):
        wanted = run.matrix(reduce="ratio-of-means").to_numpy().ravel()
        assert [cell[0] for cell in shown(page, place)] == [number(value) for value in wanted]
    assert page.locator(
        "text=Name the colour of the ink."
    ).first.is_visible()  # of the worst cell, which is shown first
    assert page.locator("img[src^='data:image']").count() >= 2


def keys(value):
    """The names in a report's JSON, level by level; of a list those of its first item."""
    if isinstance(value, list):
        return keys(value[0]) if value else None
    if not isinstance(value, dict):
        return None
    inner = {"cells": lambda found: keys(next(iter(next(iter(found.values())).values())))}
    named = {"units", "loss", "counts", "versions", "stability"}  # by task, scope, package or number of groups
    return {name: None if name in named else inner.get(name, keys)(found) for name, found in value.items()}


def test_the_page_that_is_checked_in_is_what_is_written_today(opened):
    path = REFERENCE / "report.html"
    data = json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', path.read_text())[1])
    measured = {run["label"]: load(REFERENCE / name) for run, name in zip(data["runs"], METHODS, strict=True)}
    assert keys(data) == keys(report(measured, "small", replicates=B).to_dict())
    base, size = data["choices"][0]["key"], len(data["tasks"])
    apart = [k for k in range(size**2) if k // size != k % size]
    first, second = (run["cells"]["all/all/both"][base] for run in data["runs"])
    (change,) = data["differences"]
    moved = change["cells"]["all/all/both"][base]["value"]
    np.testing.assert_allclose(moved, np.subtract(second["value"], first["value"]), atol=1e-4)
    conflicts = [[found["verdict"][k] for k in apart].count("conflict") for found in (first, second)]
    said = " and ".join(
        f"{n} of {len(apart)} in {run['label']}" for n, run in zip(conflicts, data["runs"], strict=True)
    )
    assert data["headline"][0] == f"Tasks interfere: pairs of tasks that conflict beyond noise are {said}."
    page = opened(path).page
    assert page.locator("h1").text_content() == data["headline"][0]
    for place, found in enumerate((first, second)):
        assert [cell[0] for cell in shown(page, place)] == [number(value) for value in found["value"]]


REACHED = {
    "template": {"source": "the base's (<i>base</i>)", "text": "x", "day": "2026-03-04"},
    "tasks": {"a": {"examples": 4, "with_picture": 4, "cut": 1, "skipped": {}, "unread_keys": ["score"]}},
    "examples": {
        name: {
            "id": "<b>7</b>",
            "pieces": [["\nUSER: <image> x 576 <script>alert(1)</script>", False], ["Paris\n", True]],
            **{"tokens": 600, "supervised": 2, "cut": 3},
        }
        for name in TWO_GROUPS
    },
}


@pytest.mark.parametrize("width", [360, 1400])
def test_an_example_of_each_task_is_shown_as_it_reached_the_model(opened, width):
    runs = {name: made(TWO_GROUPS, noise=noise, meta={"data": REACHED}) for name, noise in (("x", 0.6), ("y", 0.9))}
    page = opened(report(runs, "small", replicates=B).to_dict(), width).page
    assert page.locator("#reached .sentences li").all_text_contents() == [
        "Chat template: the base's (<i>base</i>); it writes a date, which is 2026-03-04.",
        "Task 'a': these keys of its records are not read: score.",
        "Task 'a': max_length cuts the answers of 1 of 4 examples.",
    ]
    assert page.locator("#reached h3").all_text_contents() == ["x, y"]  # told once
    assert page.locator("#reached summary").all_text_contents() == [
        f"{name} 600 tokens, 2 supervised, 3 more cut off by max_length; example <b>7</b>" for name in TWO_GROUPS
    ]
    assert page.locator("#reached pre").first.text_content() == (
        "\nUSER: <image> x 576 <script>alert(1)</script>Paris↵\n"
    )
    assert page.locator("#reached pre").first.locator("mark").all_text_contents() == ["Paris↵\n"]
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_run_that_does_not_tell_what_reached_the_model_has_no_such_section(opened, data):
    page = opened(data[1]).page
    assert page.locator("#reached, a[href='#reached']").count() == 0
