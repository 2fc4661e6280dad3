"""What a trial adds to the page's advice: its numbers, its width, and what axe says of it."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.support import made_up


def report(runs=1):
    """A made-up report whose runs' advice was tried."""
    data = made_up.report(runs=runs)
    data["trials"] = [_trial(run["label"], data["tasks"]) for run in data["runs"]]
    return data


def _trial(label, tasks):
    cell, none = {"value": 0.5, "low": 0.25, "high": 0.75}, {"value": None, "low": None, "high": None}
    cells = {"loss": cell, "right": cell, "against_random": cell, "against_together": none}
    groups = {"together": [tasks], "advised groups": [tasks[:2], tasks[2:]], "random groups, mean": []}
    rows = [
        {"arm": arm, "groups": own, "adapters": len(own) or None, "parameters": 1234 * len(own) or None, **cells}
        | {"tasks": dict.fromkeys(tasks, 0.125)}
        for arm, own in groups.items()
    ]
    return {"label": label, "tasks": tasks, "how": "Every arm took 12 optimizer steps.", "rows": rows}


def test_its_numbers_are_those_of_the_data(opened):
    data = report()
    page = opened(data).page
    table = page.locator("#advice table").first
    assert table.locator("thead th").all_text_contents() == [
        "trained", "adapters", "parameters", "held-out loss", "exact answers", "below random groups", "below together",
    ]  # fmt: skip
    rows = table.locator("tbody tr")
    told = ["0.50[0.25, 0.75]"] * 3
    assert rows.nth(0).locator("th").text_content() == "together"
    assert rows.nth(0).locator("td").all_text_contents() == ["1", "1,234", *told, "–"]
    assert page.locator("#advice details li bdi").all_text_contents() == data["tasks"]
    assert rows.nth(2).locator("td").all_text_contents() == ["–", "–", *told, "–"]
    by_task = page.locator("#advice details table")
    assert by_task.locator("thead th").all_text_contents() == ["trained", *data["tasks"]]
    assert set(by_task.locator("tbody td").all_text_contents()) == {"0.12"}


def test_without_a_trial_there_is_no_table(opened):
    assert opened(made_up.report()).page.locator("#advice table").count() == 0


@pytest.mark.parametrize("width", [360, 1400])
def test_it_fits_and_axe_finds_nothing(opened, width):
    page = opened(report(runs=2), width).page
    page.locator("#advice summary").first.click()
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert Axe().run(page, context="#advice").response["violations"] == []
