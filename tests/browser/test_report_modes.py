"""The report's page in light and dark: the switch, contrast proven by axe and by the drawn colours, sizes of text."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.support import made_up
from tests.support.pages import choose, contrast

AXE = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa"]}, "resultTypes": ["violations", "incomplete"]}
ENOUGH = 4.5  # contrast of text, WCAG 2 AA
LOOKS = [(width, scheme) for width in (1400, 360) for scheme in ("light", "dark")]
TOO_SMALL = """() => {
    const found = [], walker = document.createTreeWalker(document.documentElement, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const element = node.parentElement;
        if (!node.textContent.trim() || ["SCRIPT", "STYLE", "TITLE"].includes(element.tagName)) continue;
        if (element.closest("noscript")) continue;
        const matrix = element.ownerSVGElement ? element.getScreenCTM() : { a: 1, b: 0 };
        const size = parseFloat(getComputedStyle(element).fontSize) * Math.hypot(matrix.a, matrix.b);
        if (size < 11.99) found.push([node.textContent.trim().slice(0, 40), size]);
    }
    return found;
}"""
WIDEST = "Math.max(...[...document.querySelectorAll('svg')].map(svg => svg.clientWidth))"
UNREACHED = """[...document.querySelectorAll(".box:has(.numbers)")].filter(
    box => box.scrollWidth > box.clientWidth && box.tabIndex < 0).length"""
CELLS = """cells => cells.map(cell => {
    const style = getComputedStyle(cell);
    const stripes = style.backgroundImage.match(/(rgba?|color)\\([^)]*\\)/g) ?? [];
    return [cell.textContent, style.color, stripes.length ? stripes : [style.backgroundColor]];
})"""
UNKEPT = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('', 'SecurityError'); } })"
WRITTEN = """texts => texts.map(text => {
    const own = text.closest(".mark-text") && document.querySelectorAll("#grouping .mark-rect path");
    const [x, y] = [text.getBoundingClientRect()].map(at => [at.x + at.width / 2, at.y + at.height / 2])[0];
    const behind = own && [...own].find(rect => {
        const at = rect.getBoundingClientRect();
        return at.left <= x && x <= at.right && at.top <= y && y <= at.bottom;
    });
    const paper = getComputedStyle(document.documentElement).backgroundColor;
    return [text.textContent, getComputedStyle(text).fill, behind ? getComputedStyle(behind).fill : paper];
})"""


def settle(page, width):
    """Waits until charts and tables have followed the window's width."""
    for _ in range(200):
        if page.evaluate(WIDEST) <= width and page.evaluate(UNREACHED) == 0:
            break
        page.wait_for_timeout(100)


def paper(page):
    return page.evaluate("getComputedStyle(document.documentElement).backgroundColor")


@pytest.mark.parametrize("runs", [1, 4])
def test_axe_finds_nothing_and_no_text_is_small_in_both_modes_at_both_widths(opened, runs):
    page = opened(made_up.report(runs=runs, tasks=["ink", "word", "count"], layers=1)).page
    for width, scheme in LOOKS:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        settle(page, width)
        found = Axe().run(page, options=AXE)
        assert found.violations_count == 0, (width, scheme, found.generate_report())
        assert len([rule for rule in found.response["passes"] if rule["id"] == "color-contrast"]) == 1
        left = [rule for rule in found.response["incomplete"] if rule["id"] != "color-contrast"]
        assert [rule["id"] for rule in left] == [], (width, scheme)
        assert page.evaluate(TOO_SMALL) == [], (width, scheme)


def test_what_axe_cannot_judge_has_contrast_too(opened):
    """Cells of every value in every metric, also on stripes, and the text of charts."""
    page = opened(made_up.report(runs=2, layers=2)).page
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        seen = 0
        for metric in ("interference I", "Delta, fall of the loss", "conflict rate"):
            choose(page, "metric", metric)
            cells = page.locator(".matrix td[data-row], .swatch, .small td").evaluate_all(CELLS)
            seen += len([cell for cell in cells if len(cell[2]) > 1])
            for text, ink, backs in cells:
                assert min(contrast(ink, back) for back in backs) >= ENOUGH, (scheme, metric, text, ink, backs)
        assert seen >= 3 * 10  # rows of a task without signal
        texts = page.locator("svg text").evaluate_all(WRITTEN)
        assert len({back for _, _, back in texts}) > 5  # signs on cells of a grouped matrix, and labels on paper
        for text, ink, back in texts:
            assert contrast(ink, back) >= ENOUGH, (scheme, text, ink, back)


def test_the_page_follows_the_system_until_a_reader_chooses(opened):
    page = opened(made_up.report(layers=1), color_scheme="dark").page
    dark = paper(page)
    assert contrast(dark, "rgb(0, 0, 0)") < 1.3
    page.emulate_media(color_scheme="light")
    assert paper(page) == "rgb(255, 255, 255)"
    page.locator("#theme").select_option(label="dark")
    assert paper(page) == dark
    fill = "getComputedStyle(document.querySelector('#profile svg .role-axis-label text')).fill"
    assert contrast(page.evaluate(fill), dark) > 10  # a chart that is drawn follows
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert paper(page) == dark
    assert page.locator("#theme").input_value() == "dark"
    page.locator("#theme").select_option(label="automatic")
    assert paper(page) == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    assert paper(page) == dark


def test_where_nothing_may_be_kept_the_switch_works_all_the_same(opened):
    refused = (
        """Object.defineProperty(window, "localStorage", { get() { throw new DOMException("", "SecurityError"); } })"""
    )
    page = opened(made_up.report(layers=1), before=refused).page
    page.locator("#theme").select_option(label="dark")
    assert contrast(paper(page), "rgb(0, 0, 0)") < 1.3
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert paper(page) == "rgb(255, 255, 255)"


def test_the_middle_of_the_scale_is_nearest_to_the_page_in_both_modes(opened):
    page = opened(made_up.report(layers=1)).page
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        steps = page.locator(".scale .swatch").evaluate_all(
            "all => all.map(one => getComputedStyle(one).backgroundColor)"
        )
        far = [contrast(step, paper(page)) for step in steps]
        assert far[0] > far[1] > far[2] < far[3] < far[4]
        assert far[2] < 1.4 and min(far[0], far[4]) > 2.8, (scheme, far)
