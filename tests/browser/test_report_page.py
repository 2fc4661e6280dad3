"""The report's page in a real browser: its numbers, its keys, and nobody's script."""

import re
from itertools import pairwise

import pytest

from tests.support import made_up
from tests.support.pages import choose, choose_cell, number, rgb, show_runs, shown

WORDS = {"self": "own step", "no-signal": "no signal"}


def expected(data, cells, signed=True, coarse=True, intervals=True):
    size = len(data["tasks"])
    rows = []
    for k, value in enumerate(cells["value"]):
        low, high, verdict = (cells[name][k] for name in ("low", "high", "verdict"))
        ends = f"[{number(low, signed, coarse)}, {number(high, signed, coarse)}]" if low is not None else "no interval"
        own = k // size == k % size
        rows.append([
            number(value, signed, coarse), None if own or not intervals else ends, WORDS.get(verdict, verdict),
        ])  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("choice", "scope", "signed", "coarse"),
    [
        ("interference/leave-one-out/mean-of-ratios", "all/all/both", True, True),
        ("interference/all/ratio-of-means", "all/attention/A", True, True),
        ("interference/leave-one-out/ratio-of-means", "2/mlp/B", True, True),
        ("interference/all/mean-of-ratios", "all/q_proj/both", True, True),
        ("delta/leave-one-out", "1/attention/A", True, False),
        ("cosine", "all/mlp/both", True, True),
        ("conflict_rate", "3/mlp/A", False, True),
    ],
)
def test_the_controls_bring_up_the_matrix_of_the_data(opened, choice, scope, signed, coarse):
    data = made_up.report()
    page = opened(data).page
    setting = {item["key"]: item for item in [*data["choices"], *data["scopes"]]}
    choose_cell(page, **(setting[choice] | setting[scope]))
    assert shown(page) == expected(data, data["runs"][0]["cells"][scope][choice], signed, coarse)
    assert page.locator(".matrix th[scope=col]").all_text_contents() == data["tasks"]
    assert page.locator(".matrix th[scope=row]").all_text_contents() == data["tasks"]


def test_a_setting_that_does_not_apply_cannot_be_chosen(opened):
    page = opened(made_up.report()).page
    choose(page, "metric", "gradient cosine")
    for field in ("pairs", "reduce"):
        control = page.locator(f"#controls [data-field='{field}'] select")
        assert control.is_disabled()
        assert control.locator("option").all_text_contents() == ["default"]
        why = page.locator(f"#controls [data-field='{field}']").get_attribute("title")
        assert why == "No choice here: this metric does not use it, or the report has only one value."
    assert page.locator("#controls [data-field='metric']").get_attribute("title") is None
    assert "A grey list offers no choice" in page.locator("#where .hint").first.inner_text()


def test_two_runs_stand_side_by_side_with_their_difference(opened):
    data = made_up.report(runs=2)
    page = opened(data).page
    assert page.locator(".matrix .figure-title").all_text_contents() == [
        "LoRA r=4", "MixLoRA E=16 r=4", "MixLoRA E=16 r=4 minus LoRA r=4",
    ]  # fmt: skip
    choose_cell(page, metric="interference", pairs="all", layers="1", modules="mlp", side="B")
    scope, choice = "1/mlp/B", "interference/all/mean-of-ratios"
    for k in (0, 1):
        assert shown(page, k) == expected(data, data["runs"][k]["cells"][scope][choice], intervals=False)
    change = expected(data, data["differences"][0]["cells"][scope][choice], intervals=False)
    for k in range(0, 36, 7):
        change[k][2] = ""  # a run's own step is 1 before and after
    assert shown(page, 2) == change
    tops = page.locator(".matrix").evaluate_all("tables => tables.map(table => table.getBoundingClientRect().top)")
    assert tops[0] == tops[1] <= tops[2]
    show_runs(page, "MixLoRA E=16 r=4")
    assert shown(page) == expected(data, data["runs"][1]["cells"][scope][choice])


def test_counts_of_verdicts_are_those_of_the_scope(opened):
    data = made_up.report()
    page = opened(data).page
    choose_cell(page, layers="2", modules="mlp", side="A")
    counts = data["runs"][0]["counts"]["2/mlp/A"]
    words = [f"{count} {WORDS.get(verdict, verdict)}" for verdict, count in counts.items()]
    assert page.locator("#counts .swatch").all_text_contents() == words


def test_a_cell_tells_everything_about_itself_on_click(opened):
    data = made_up.report()
    page = opened(data).page
    at = made_up.index(data, "word", "ink")
    page.locator(".matrix td[data-row='1'][data-column='0']").click()
    details = page.locator("#details")
    cells = data["runs"][0]["cells"]["all/all/both"]["interference/leave-one-out/mean-of-ratios"]
    assert details.locator("h3").text_content() == "A step of ink on the loss of word"
    assert details.locator("dd").all_text_contents() == [
        number(cells["value"][at], coarse=False),
        f"[{number(cells['low'][at], coarse=False)}, {number(cells['high'][at], coarse=False)}]",
        f"{cells['q'][at]:.3f}",
        f"{100 * cells['nonpositive'][at]:.0f} %",
        f"{100 * cells['leverage'][at]:.0f} %",
    ]
    assert details.locator(".facts strong").text_content() == cells["verdict"][at]
    examples = page.locator("#drivers .examples")
    assert examples.locator("li").count() == 3
    assert examples.locator("img").evaluate_all("images => images.map(image => image.src)") == [made_up.PIXEL]
    assert "31 % of the value · word.json#12" in examples.locator("li").first.inner_text()


def test_keyboard_alone_reaches_controls_cells_and_details(opened):
    data = made_up.report()
    page = opened(data).page

    def tab_until(selector):
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        pytest.fail(f"Tab does not reach {selector}")

    tab_until("[data-field='metric'] select")
    page.keyboard.press("d")  # a native list: the first option that begins with it
    page.keyboard.press("Tab")
    assert page.locator(".scope-words").text_content().startswith("Delta")
    tab_until("td[data-row]")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowLeft", "End"):
        page.keyboard.press(key)
    assert page.locator("#details h3").text_content() == "A step of place on the loss of word"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "details"
    tab_until("#details .draw")
    page.keyboard.press("Enter")
    assert page.locator("#profile .chip bdi").last.text_content() == "place → word"


def test_focus_stays_on_a_control_that_was_used(opened):
    page = opened(made_up.report()).page
    page.locator("#controls [data-field='layers'] select").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.locator(".scope-words").text_content().endswith("layer 1, attention, A")
    page.locator("#profile [data-field='side'] select").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.locator("#profile [data-field='side'] option:checked").text_content() == "B"


def test_negative_is_blue_positive_is_red_on_one_scale(opened):
    data = made_up.report(runs=2)
    page = opened(data).page
    cells = page.locator(".matrix td[data-row]").evaluate_all(
        """cells => cells.filter(cell => cell.style.backgroundColor && cell.dataset.verdict !== "no-signal").map(cell =>
            [cell.querySelector(".value").textContent, getComputedStyle(cell).backgroundColor])"""
    )
    known = [(float(text.replace("−", "-")), [255 * c for c in rgb(colour)]) for text, colour in cells if text != "–"]
    assert len(known) > 70
    redness = [red - blue for _, (red, _, blue) in sorted(known, key=lambda pair: (pair[0], pair[1][0] - pair[1][2]))]
    assert all(before <= after + 3 for before, after in pairwise(redness))
    assert redness[0] < -100
    assert redness[-1] > 100
    limit = page.locator(".scale .swatch").last.text_content()
    assert limit.startswith("+1.0")
    assert "90 % quantile" in page.locator(".legend .hint").text_content()


def test_a_small_matrix_brings_its_scope_up(opened):
    data = made_up.report()
    page = opened(data).page
    small = page.locator(".small")
    assert small.count() == 16
    cells = data["runs"][0]["cells"]["3/mlp/B"]["interference/leave-one-out/mean-of-ratios"]
    signs = {"conflict": "−", "synergy": "+", "no-signal": "·"}
    assert small.last.locator("td").all_text_contents() == [signs.get(verdict, "") for verdict in cells["verdict"]]
    small.last.click()
    assert shown(page) == expected(data, cells)
    assert page.locator("#controls [data-field='layers'] select option:checked").text_content() == "layer 3"


def test_pairs_are_drawn_along_the_layers_as_chosen(opened):
    page = opened(made_up.report()).page
    while page.locator("#profile .chip").count():
        page.locator("#profile .chip").first.click()
    assert page.locator("#profile svg").count() == 0
    page.locator("#profile label", has_text="A step of").locator("select").select_option(label="shape")
    page.locator("#profile label", has_text="on the loss of").locator("select").select_option(label="place")
    page.locator("#profile button", has_text="Draw this pair").click()
    assert page.locator("#profile .role-legend-label text").all_text_contents() == ["shape → place"]
    page.locator(".matrix td[data-row='0'][data-column='2']").click()
    page.locator("#details .draw").click()
    assert page.locator("#profile .role-legend-label text").all_text_contents() == ["shape → place", "count → ink"]
    assert page.locator("#profile .chart .mark-rule.role-mark line").count() == 1  # at 0


def test_every_question_has_its_chart_and_numbers(opened):
    data = made_up.report(runs=2)
    page = opened(data).page
    assert page.locator("#runs svg").count() == 2
    half = data["runs"][1]["null"][2]
    row = page.locator("#runs .run").nth(1).locator("tbody tr").nth(2).locator("td").all_text_contents()
    ends = f"[{number(half['low'], coarse=False)}, {number(half['high'], coarse=False)}]"
    assert row[3] == f"{number(half['value'], coarse=False)} {ends}"
    assert page.locator("#grouping svg").count() == 2
    labels = page.locator("#grouping svg").first.locator(".role-axis-label text").all_text_contents()
    assert sorted(labels) == sorted(data["tasks"] * 2)
    assert (
        page.locator("#grouping .split").first.locator(".name").all_text_contents()
        == data["runs"][0]["grouping"]["order"]
    )
    assert page.locator("#differences svg").count() == 1
    assert data["differences"][0]["words"] in page.locator("#differences").inner_text()
    for words in [
        *data["headline"],
        *data["advice"],
        *data["conventions"],
        *data["left_out"],
        data["runs"][0]["notes"][0],
    ]:
        assert page.get_by_text(words, exact=True).first.is_visible()


def test_what_is_assumed_and_found_of_the_units_stands_where_the_question_is_asked(opened):
    page = opened(data := made_up.report(runs=2)).page
    (told,) = data["dependence"]
    assert page.locator("#real .dependence p").all_text_contents() == [told["assumed"], told["found"]]
    table = page.locator("#real .overlap")
    assert table.locator("thead th").all_text_contents() == ["task", "groups", "ink", "word"]
    rows = [row.locator("th, td").all_text_contents() for row in table.locator("tbody tr").all()]
    assert rows == [["ink", "20", "–", "40 %"], ["word", "40", "20 %", "–"]]
    assert opened(made_up.report(tasks=["alone"])).page.locator("#real .overlap").count() == 0


def test_a_verdict_that_its_value_does_not_bear_out_is_not_printed(opened):
    data = made_up.report()
    scope, choice = "all/all/both", "interference/leave-one-out/mean-of-ratios"
    cells = data["runs"][0]["cells"][scope][choice]
    k, clear = 1, (cells["verdict"][:1] + cells["verdict"][2:]).count("conflict")
    cells["verdict"][k], cells["value"][k], cells["low"][k], cells["high"][k] = "conflict", 1.59, -3.57, 4.73
    cells["at_odds"] = ["sign" if place == k else "" for place in range(len(cells["value"]))]
    page = opened(data).page
    value, _, verdict = shown(page)[k]
    assert (value, verdict) == ("+1.59", "at odds")
    assert [cell[2] for cell in shown(page)].count("conflict") == clear
    page.locator(".matrix td[data-row='0'][data-column='1']").click()
    said = page.locator("#details .facts p").first.text_content()
    assert said.startswith("at odds: the value's sign, or an interval that contains 0, does not match the verdict")
    assert "at odds" in page.locator("#legend").inner_text()


@pytest.mark.parametrize("width", [360, 1400])
def test_hostile_names_are_text_and_nothing_runs(opened, width):
    data = made_up.report(runs=2, tasks=made_up.HOSTILE, layers=2)
    page = opened(data, width).page
    names = page.locator(".matrix").first.locator("th[scope=row]").all_text_contents()
    printable = [re.sub("[\x00-\x08\x0b-\x1f\ud800-\udfff\u202e]", "\ufffd", name) for name in made_up.HOSTILE]
    assert names == printable
    page.locator(".matrix td[data-row='1'][data-column='0']").first.click()
    assert page.locator("#details h3").text_content() == f"A step of {printable[0]} on the loss of {printable[1]}"
    page.locator("#details .draw").click()
    page.locator("#details .copy").first.click()
    assert page.evaluate("window.hurt") is None
    assert page.locator("body b").count() == 0
    assert page.locator("script").count() == 4
    assert page.locator("img:not([src^='data:'])").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_hostile_words_of_examples_labels_and_sources_are_text(opened):
    data = made_up.report(runs=2, layers=2)
    words = made_up.HOSTILE[:5] + made_up.HOSTILE[6:]
    printable = [re.sub("[\x00-\x08\x0b-\x1f\ud800-\udfff\u202e]", "\ufffd", text) for text in words]
    for place, run in enumerate(data["runs"]):
        run["label"], run["source"] = words[place], words[place + 2]
    examples = [example for run in data["runs"] for driver in run["drivers"] for example in driver["examples"]]
    for place, example in enumerate(examples):
        example["prompt"], example["answer"] = words[place], words[-1 - place]
        example["source"] = words[(place + 3) % len(words)]
    page = opened(data).page
    assert page.locator(".matrix .figure-title").all_text_contents()[:2] == printable[:2]
    sources = page.locator("#sources tbody tr").evaluate_all("rows => rows.map(row => row.cells[2].textContent)")
    assert sources == printable[2:4]
    page.locator(".matrix td[data-row='1'][data-column='0']").first.click()
    for part, wanted in {
        ".prompt": printable[: len(examples)],
        ".answer": printable[: -1 - len(examples) : -1],
        ".source bdi": [printable[(place + 3) % len(words)] for place in range(len(examples))],
    }.items():
        assert page.locator(f"#drivers .examples {part}").all_text_contents() == wanted
    assert page.evaluate("window.hurt") is None
    assert page.locator("body b").count() == 0 and page.locator("script").count() == 4
    assert page.locator("img:not([src^='data:'])").count() == 0


def test_only_scopes_that_a_choice_was_measured_for_are_offered(opened):
    data = made_up.report()
    for scope in data["scopes"]:
        if scope["layers"] != "all":
            del data["runs"][0]["cells"][scope["key"]]["cosine"]
    page = opened(data).page
    choose_cell(page, layers="2", modules="mlp", side="A")
    choose(page, "metric", "gradient cosine")
    assert shown(page) == expected(data, data["runs"][0]["cells"]["all/mlp/A"]["cosine"])
    assert page.locator("#controls [data-field='layers'] option").all_text_contents() == ["all layers"]
    assert page.locator("#multiples").inner_text() == "This report has no gradient cosine of single layers."


def test_one_task_has_a_page(opened):
    data = made_up.report(tasks=["ink"])
    page = opened(data, 360).page
    assert shown(page) == [["+1.00", None, "own step"]]
    assert page.locator("#runs svg").count() == 1
    assert page.locator("#profile").inner_text() == "This report has no profile along the layers."


def test_forty_tasks_open_and_scroll_within_their_box(opened):
    data = made_up.report(tasks=[f"task number {k}" for k in range(40)], layers=1)
    page = opened(data).page
    cells = data["runs"][0]["cells"]["all/all/both"]["interference/leave-one-out/mean-of-ratios"]
    assert shown(page) == expected(data, cells, intervals=False)
    assert page.evaluate("document.documentElement.scrollWidth") == 1400
    assert page.locator(".box").first.evaluate("box => box.scrollWidth > box.clientWidth")


def test_a_run_without_a_scope_says_so(opened):
    data = made_up.report(runs=2)
    del data["runs"][1]["cells"]["all/q_proj/both"]
    page = opened(data).page
    choose_cell(page, modules="q_proj")
    assert page.locator("#matrices .note").text_content() == (
        "MixLoRA E=16 r=4 has no interference I, leave-one-out, mean-of-ratios for all layers, q_proj, A and B in this "
        "report."
    )
