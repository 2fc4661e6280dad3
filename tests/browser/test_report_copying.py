"""What leaves the report's page by its buttons: a cell as a line of text, figures as SVG."""

import re
from xml.etree import ElementTree

import pytest

from tests.support import made_up
from tests.support.pages import number

SVG = "{http://www.w3.org/2000/svg}"
READ = "navigator.clipboard.readText()"
REFUSED = """navigator.clipboard.write = navigator.clipboard.writeText = () => Promise.reject(new Error("refused"));"""


def allowed(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    return page


def press(page, button):
    """By the keyboard alone."""
    button.focus()
    page.keyboard.press("Enter")


def said(page, end=""):
    page.locator("#said.visible", has_text=end).wait_for()
    assert page.locator("#said").get_attribute("role") == "status"
    return page.locator("#said").text_content()


def test_a_cell_is_copied_as_one_line(opened):
    page = allowed(opened(data := made_up.report(runs=2, layers=1)).page)
    page.locator(".matrix td[data-row='1'][data-column='0']").first.click()
    at = made_up.index(data, "word", "ink")
    choice = data["choices"][0]["key"]
    first = data["runs"][0]["cells"]["all/all/both"][choice]
    change = data["differences"][0]["cells"]["all/all/both"][choice]
    buttons = page.locator("#details").get_by_role("button", name="as text")
    for place, (title, cells) in {0: ("LoRA r=4", first), 2: ("MixLoRA E=16 r=4 minus LoRA r=4", change)}.items():
        value, low, high = (number(cells[name][at], coarse=False) for name in ("value", "low", "high"))
        press(page, buttons.nth(place))
        line = (
            f"{title}; interference I, leave-one-out, mean-of-ratios; affected word; stepped ink; value {value}; "
            f"95 % [{low}, {high}]; {cells['verdict'][at]}; all layers, all modules, A and B"
        )
        assert said(page, line) == f"Copied: {line}"
        assert page.evaluate(READ) == line
        assert page.evaluate("document.activeElement.textContent") == "Copy as text"  # focus stays


def test_a_line_break_in_a_name_stays_out_of_the_line(opened):
    data = made_up.report(layers=1)
    data["runs"][0]["label"] = "two\nlines\tand <b>tab</b>"
    page = allowed(opened(data).page)
    press(page, page.get_by_role("button", name="as text"))
    assert said(page).startswith("Copied: two lines and <b>tab</b>; interference I")


def test_the_matrix_is_copied_as_an_svg_of_its_own(opened):
    page = allowed(opened(data := made_up.report(layers=1), color_scheme="dark").page)
    press(page, page.locator("#matrices .copy"))
    assert said(page) == "Copied as SVG: LoRA r=4"
    drawing = ElementTree.fromstring(text := page.evaluate(READ))
    assert drawing.tag == f"{SVG}svg" and "var(" not in text and "color(" not in text and "light-dark" not in text
    cells = data["runs"][0]["cells"]["all/all/both"][data["choices"][0]["key"]]
    groups = drawing.findall(f"{SVG}g")
    values = [group.findall(f"{SVG}text")[0].text for group in groups]
    assert values == [number(value) for value in cells["value"]]
    assert [group.findall(f"{SVG}text")[2].text for group in groups][1] == cells["verdict"][1]
    written = [text.text for text in drawing.findall(f"{SVG}text")]
    assert all(written.count(task) == 2 for task in data["tasks"])  # a row and a column
    assert "a step of →" in written and "the loss of ↓" in written
    assert drawing.find(f"{SVG}rect").get("fill") == "#ffffff"
    fills = [group.find(f"{SVG}rect").get("fill") for group in groups]
    assert fills[0] == "rgb(236, 234, 228)" and fills[-2] == "url(#hatch)"  # light colours from a dark page
    sizes = [float(part.get("font-size", 12)) for part in drawing.iter(f"{SVG}text")]
    assert min(sizes) >= 12
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light dark"


def test_a_chart_is_copied_as_it_is_drawn(opened):
    page = allowed(opened(made_up.report(layers=3), color_scheme="dark").page)
    chart = page.locator("#profile .figure").first
    press(page, chart.locator(".copy"))
    assert said(page) == "Copied as SVG: LoRA r=4 along the layers"
    drawing = ElementTree.fromstring(text := page.evaluate(READ))
    assert "var(" not in text and "light-dark" not in text
    assert drawing.get("width") == chart.locator("svg").get_attribute("width")
    texts = [part.text for part in drawing.iter(f"{SVG}text") if part.text]
    assert sorted(texts) == sorted(filter(None, chart.locator("svg text").all_text_contents()))
    strokes = {part.get("stroke") for part in drawing.iter(f"{SVG}path") if "mark-line" in str(part.get("class"))}
    lines = {path.get("stroke") for path in drawing.iter(f"{SVG}path")} | strokes
    assert "rgb(0, 114, 178)" in lines  # of the light set


def test_every_figure_has_its_button(opened):
    page = allowed(opened(made_up.report(runs=2, layers=1)).page)
    for place, count in {"#matrices": 3, "#profile": 2, "#runs": 2, "#grouping": 2, "#differences": 1}.items():
        figures = page.locator(f"{place} .figure:has(svg), {place} .figure:has(.matrix)")
        assert figures.count() == page.locator(f"{place} .copy").count() == count
        button = page.locator(f"{place} .copy").last
        press(page, button)
        title = button.get_attribute("aria-label").removeprefix("Copy as SVG: ")
        assert said(page, title) == f"Copied as SVG: {title}"
        ElementTree.fromstring(page.evaluate(READ))


def test_where_the_clipboard_is_refused_a_figure_is_downloaded(opened, tmp_path):
    page = opened(made_up.report(layers=1), before=REFUSED).page
    with page.expect_download() as waiting:
        press(page, page.locator("#matrices .copy"))
    assert waiting.value.suggested_filename == "LoRA-r-4.svg"
    waiting.value.save_as(tmp_path / "figure.svg")
    assert ElementTree.parse(tmp_path / "figure.svg").getroot().tag == f"{SVG}svg"
    assert said(page) == "The browser refused the clipboard, so the figure was downloaded as LoRA-r-4.svg."


@pytest.mark.parametrize("older", [True, False])
def test_where_the_clipboard_is_refused_a_cell_is_copied_the_older_way_or_shown(opened, older):
    never = "" if older else "document.execCommand = () => false;"
    page = allowed(opened(made_up.report(layers=1), before=REFUSED + never).page)
    button = page.get_by_role("button", name="as text")
    press(page, button)
    words = said(page)
    start = "Copied: " if older else "The browser refused the clipboard. Select and copy: "
    assert re.match(f"{re.escape(start)}LoRA r=4; interference I", words)
    if older:
        assert page.evaluate(READ) == words.removeprefix(start)
    assert page.evaluate("document.activeElement.textContent") == "Copy as text"
    assert page.locator("textarea").count() == 0
