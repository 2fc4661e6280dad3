"""The report's page in a real browser: nothing leaves its cell, chart or page, at any width and on paper."""

import pytest

from tests.support import made_up


def overflowing(page):
    """What leaves its cell, its chart or the page's width."""
    return page.evaluate(
        """() => {
        const found = [];
        const within = (inner, outer, what) => {
            const [a, b] = [inner.getBoundingClientRect(), outer.getBoundingClientRect()];
            if (a.width && (a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1))
                found.push(`${what}: ${inner.textContent}`);
        };
        for (const span of document.querySelectorAll(".matrix td span")) within(span, span.parentElement, "cell");
        for (const text of document.querySelectorAll("svg text")) within(text, text.closest("svg"), "chart");
        const parts = "section > *, header > *, .controls > *, #details > *, li, dl > *";
        for (const part of document.querySelectorAll(parts)) within(part, document.body, "page");
        const sections = [...document.querySelectorAll("header, section")].map((part) => part.getBoundingClientRect());
        const covered = sections.slice(1).filter((below, k) => below.top < sections[k].bottom - 1);
        return [...found, ...covered.map(({ top }) => `a section at ${top}`)];
    }"""
    )


@pytest.mark.parametrize("width", [360, 800, 1400])
@pytest.mark.parametrize("runs", [1, 2])
def test_nothing_overflows_at_any_width(opened, runs, width):
    page = opened(made_up.report(runs=runs), width).page
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert overflowing(page) == []


def test_captions_stay_in_sight_where_a_table_is_wider_than_the_page(opened):
    page = opened(made_up.report(runs=2), 360).page
    captions = page.locator("caption > *")
    assert captions.count() == 2 * 3 + 2 + 1  # of the matrices, the differences, and the overlap
    wider = page.locator(".box").evaluate_all("boxes => boxes.filter(box => box.scrollWidth > box.clientWidth).length")
    assert wider >= 3
    ends = "found => found.map(one => [one.getBoundingClientRect().left, one.getBoundingClientRect().right])"
    assert all(0 <= left < right <= 360 for left, right in captions.evaluate_all(ends))
    page.locator(".box").first.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    assert all(0 <= left < right <= 360 for left, right in captions.evaluate_all(ends))


def test_charts_follow_the_windows_width(opened):
    page = opened(made_up.report(), 1400).page
    page.set_viewport_size({"width": 360, "height": 800})
    widest = "Math.max(...[...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect().width))"
    for _ in range(50):
        if page.evaluate(widest) <= 330:
            break
        page.wait_for_timeout(100)
    assert 200 < page.evaluate(widest) <= 330
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_paper_has_the_matrix_without_its_controls(opened):
    page = opened(made_up.report(), 1000).page
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator("#controls").is_visible()
    assert page.locator(".matrix").is_visible()
    assert page.locator(".matrix td").nth(1).evaluate("cell => getComputedStyle(cell).printColorAdjust") == "exact"
    assert page.evaluate("document.documentElement.scrollWidth") == 1000
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_forty_tasks_stay_within_their_cells(opened):
    page = opened(made_up.report(tasks=[f"task number {k}" for k in range(40)], layers=1)).page
    assert overflowing(page) == []
