"""The report's page of runs that are checkpoints of trainings: a chart for each, and their last checkpoints' groups."""

import re
from itertools import pairwise

import pytest

from tests.support import made_up
from tests.support.pages import number


def points(chart):
    """[words, x, y] of every point of a chart of lines."""
    return chart.locator(".mark-symbol.role-mark path").evaluate_all(
        "points => points.map(point => [point.getAttribute('aria-label'), new DOMMatrix(point.style.transform"
        " || point.getAttribute('transform').replace(/([\\d.-]+),([\\d.-]+)/, '$1px,$2px'))])"
        ".map(([words, at]) => [words, at.e, at.f])"
    )


def test_checkpoints_of_a_training_have_their_lines(opened):
    data, steps = made_up.report(runs=3, trainings=("LoRA",)), {0: 400.0, 1: 0.0, 2: 200.0}
    for row in data["trajectory"]:
        row["step"] = steps[row["run"]]  # runs are not given in the order of their steps
    page = opened(data).page
    assert page.locator("#trajectory svg").count() == 1
    assert page.locator("#trajectory svg .role-title").count() == 0
    assert "training step" in page.locator("#trajectory svg").text_content()
    assert page.locator("#trajectory svg .role-axis-label text").all_text_contents()[:3] == ["0", "200", "400"]
    pairs = [words.split(" → ") for words in page.locator("#trajectory .chip bdi").all_text_contents()]
    of = {(row["stepped"], row["affected"], row["step"]): row for row in data["trajectory"]}
    wanted = [of[stepped, affected, step] for step in (0, 200, 400) for stepped, affected in pairs]
    drawn = points(page.locator("#trajectory svg"))
    assert len(drawn) == len(wanted) == 9
    for (words, x, _), row in zip(drawn, wanted, strict=True):
        ends = f"[{number(row['low'], coarse=False)}, {number(row['high'], coarse=False)}]"
        assert f"pair: {row['stepped']} → {row['affected']}; at: {data['runs'][row['run']]['label']}" in words
        assert words.endswith(f"value: {number(row['value'], coarse=False)} {ends}")
        assert x == pytest.approx(drawn[3 * [0, 200, 400].index(row["step"])][1])
    assert [x for _, x, _ in drawn] == sorted(x for _, x, _ in drawn)
    heights = sorted(zip((row["value"] for row in wanted), (-y for *_, y in drawn), strict=True))
    assert [height for _, height in heights] == sorted(height for _, height in heights)
    assert page.locator("#help").count() == 0


@pytest.mark.parametrize("checkpoints", [3, 10])
def test_every_training_has_a_chart_of_its_own(opened, checkpoints):
    names = ("LoRA", "MixLoRA")
    data = made_up.report(runs=2 * checkpoints, layers=1, trainings=names)
    page = opened(data).page
    charts = page.locator("#trajectory svg")
    assert charts.locator(".role-title text").all_text_contents() == list(names) and charts.count() == 2
    chosen = page.locator("#trajectory .chip bdi").all_text_contents()
    for place, name in enumerate(names):
        drawn = points(charts.nth(place))
        assert len(drawn) == checkpoints * len(chosen)
        for pair in chosen:
            line = [(words, x) for words, x, _ in drawn if f"pair: {pair};" in words]
            labels = [f"{name} step {200 * k}" for k in range(checkpoints)]
            assert [re.search("; at: (.*?);", words)[1] for words, _ in line] == labels
            assert all(before < after for (_, before), (_, after) in pairwise(line))
    ends = charts.evaluate_all(
        "charts => charts.map(chart => [...chart.querySelectorAll('.role-axis-label')].at(-1).textContent)"
    )
    assert ends[0] == ends[1]  # of the vertical axes: one scale


def test_group_trees_are_of_the_last_checkpoints_and_of_runs_of_their_own(opened):
    data = made_up.report(runs=6, layers=1, trainings=("LoRA", "MixLoRA"))
    data["trajectory"] = [row for row in data["trajectory"] if row["run"] != 2]  # as if no checkpoint
    for row in data["trajectory"]:
        row["step"] = {0: 400.0, 1: 0.0, 3: 200.0, 4: 20.0, 5: 100.0}[row["run"]]
    page = opened(data).page
    shown = [data["runs"][k]["label"] for k in (0, 2, 3)]
    assert page.locator("#grouping h3 bdi").all_text_contents() == shown
