"""The report's section on validations: its numbers, its width, and what axe says of it."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.support import made_up

TITLE = "Does it predict?"


def report(runs=1):
    """A made-up report whose runs are judged by a validation of three horizons."""
    data = made_up.report(runs=runs)
    data["validations"] = [_validation(run["label"]) for run in data["runs"]]
    return data


def _validation(label):
    names = ["interference", "interference, averaged so far", "lookahead interference, 40 steps"]
    cells = [{"value": 0.5, "low": 0.25, "high": 0.75}, {"value": -0.5, "low": None, "high": None}]
    rows = [{"name": name, "cells": [*cells, cells[0]]} for name in names]
    truth = {
        "words": "This matrix was found to rank what training did after 5 steps.",
        "ceiling": [0.8, 0.6, None],
        "agreement": [cells[0]] * 3,
    }
    counts = [{"hurt": 3, "helped": 12}] * 3
    truths = [{"kind": kind, "counts": counts, "rows": rows, **truth} for kind in ("pairs", "leave-one-out")]
    recipe = "Truth: 63 trainings."
    return {"label": label, "step": 10, "horizons": [1, 5, 40], "recipe": recipe, "truths": truths}


def test_its_numbers_are_those_of_the_data(opened):
    page = opened(report()).page
    assert page.locator(".contents a[href='#predict']").text_content() == TITLE
    assert page.locator("#predict h2").text_content() == TITLE
    table = page.locator("#predict table").first
    assert table.locator("thead th").all_text_contents() == ["prediction", "1 step", "5 steps", "40 steps"]
    rows = table.locator("tbody tr")
    assert rows.nth(0).locator("td").all_text_contents() == ["3, 12"] * 3
    assert rows.nth(1).locator("td").all_text_contents() == ["0.80", "0.60", "–"]
    assert rows.nth(3).locator("td").all_text_contents() == ["0.50[0.25, 0.75]", "−0.50[–, –]", "0.50[0.25, 0.75]"]
    assert page.locator("#predict table caption").nth(1).text_content().endswith("(leave-one-out)")


def test_without_a_validation_there_is_no_such_section(opened):
    page = opened(made_up.report()).page
    assert page.locator("#predict").count() == page.locator(".contents a[href='#predict']").count() == 0


@pytest.mark.parametrize("width", [360, 1400])
def test_it_fits_and_axe_finds_nothing(opened, width):
    page = opened(report(runs=2), width).page
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert Axe().run(page, context="#predict").response["violations"] == []
    assert page.locator("#predict .run h3").all_text_contents() == made_up.LABELS[:2]
