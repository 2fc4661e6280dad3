"""The report's section on real steps: its numbers, its width, and what axe says of it, folded and unfolded."""

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.support import made_up
from tests.support.pages import number

TITLE = "How far does the first order hold?"


def report(runs=1, tasks=None):
    """A made-up report whose runs have lookaheads of three numbers of steps."""
    data, random = made_up.report(runs=runs, tasks=tasks), np.random.default_rng(0)
    data["horizons"] = [_horizon(random, run["label"], data["tasks"]) for run in data["runs"]]
    return data


def _horizon(random, label, tasks):
    steps, kinds = (1, 5, 40), ("conflict", "synergy", "unclear", "no-signal")
    points = [
        {"steps": k, "within": 0.5 - k / 40, "overall": None if k == 40 else 0.4} | dict.fromkeys(kinds, k)
        for k in steps
    ]
    return {
        "label": label,
        "tasks": tasks,
        "words": "Within rows, I ranks the tasks as real steps do.",
        "recipe": "Each branch trains on one task alone.",
        "points": points,
        "matrices": [{"steps": k, "rows": [[_cell(random, kinds) for _ in tasks] for _ in tasks]} for k in steps],
    }


def _cell(random, kinds):
    value = float(random.normal())
    return {"value": value, "low": value - 1, "high": None, "verdict": str(random.choice(kinds))}


def test_its_numbers_are_those_of_the_data(opened):
    data = report()
    page = opened(data).page
    assert page.locator(".contents a[href='#horizon']").text_content() == "How far does it hold?"
    assert page.locator("#horizon h2").text_content() == TITLE
    rows = page.locator("#horizon .numbers").first.locator("tbody tr")
    assert rows.nth(0).locator("th, td").all_text_contents() == ["1", "0.47", "0.40", "1", "1", "1", "1"]
    assert rows.nth(2).locator("td").all_text_contents()[:2] == ["−0.50", "–"]
    folded = page.locator("#horizon details")
    assert [one.get_attribute("open") is not None for one in folded.all()] == [True, False, True]
    cell = data["horizons"][0]["matrices"][0]["rows"][0][1]
    shown = folded.first.locator("tbody tr").first.locator("td").nth(1).inner_text().split("\n")
    value, low = (number(cell[name], signed=False) for name in ("value", "low"))
    assert shown == [value, f"[{low}, –]", cell["verdict"].replace("-", " ")]
    assert folded.first.locator("tbody tr").nth(2).locator("td").nth(2).inner_text() == "1"


def test_without_a_lookahead_there_is_no_such_section(opened):
    page = opened(made_up.report()).page
    assert page.locator("#horizon").count() == page.locator(".contents a[href='#horizon']").count() == 0


def test_runs_have_their_own_part(opened):
    page = opened(report(runs=2)).page
    assert page.locator("#horizon .run h3").all_text_contents() == made_up.LABELS[:2]
    entry = page.locator(".contents ol > li", has_text="How far does it hold?")
    assert entry.locator("li").all_text_contents() == made_up.LABELS[:2]


@pytest.mark.parametrize("width", [360, 1400])
def test_it_fits_and_axe_finds_nothing(opened, width):
    page = opened(report(runs=2), width).page
    for folded in page.locator("#horizon details").all():
        folded.evaluate("one => { one.open = true; }")
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert Axe().run(page, context="#horizon").response["violations"] == []
    boxes = page.locator("#horizon .box").evaluate_all(
        "all => all.map(box => [box.scrollWidth > box.clientWidth, box.getAttribute('tabindex') === '0'])"
    )
    assert all(wide == reached for wide, reached in boxes) and any(wide for wide, _ in boxes) == (width == 360)


def test_a_hostile_name_is_text(opened):
    page = opened(report(tasks=made_up.HOSTILE)).page
    assert page.evaluate("window.hurt") is None
    names = page.locator("#horizon .ahead").first.locator("thead th").all_text_contents()
    assert names[1] == made_up.HOSTILE[0] and len(names) == len(made_up.HOSTILE) + 1
