"""The report's page with several runs: the contents, the current place, and the runs that stand beside each other."""

from tests.support import made_up
from tests.support.pages import show_runs, shown

CURRENT = "links => links.map(link => link.textContent.trim())"


def current(page):
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.locator(".contents a[aria-current]").evaluate_all(CURRENT)


def test_contents_name_the_sections_and_their_runs_at_the_side(opened):
    page = opened(data := made_up.report(runs=4, layers=1)).page
    labels = [run["label"] for run in data["runs"]]
    changes = [f"{labels[d['second']]} minus {labels[d['first']]}" for d in data["differences"]]
    sections = page.locator(".contents ol > li")
    assert sections.locator("> a").all_text_contents() == [
        "Which tasks, and where?", "In which layers?", "Is it real?", "What can I do?", "Did it help?",
        "How it was measured",
    ]  # fmt: skip
    runs = [section.locator("li").all_text_contents() for section in sections.all()]
    assert runs == [[], [], labels, labels, changes, []]
    side, main = (page.locator(part).bounding_box() for part in (".contents", "main"))
    assert side["x"] + side["width"] <= main["x"]
    page.evaluate("scrollTo(0, 4000)")
    assert page.locator(".contents").bounding_box()["y"] == 0


def test_the_section_and_run_in_view_are_marked(opened):
    page = opened(made_up.report(runs=4, layers=1)).page
    for name in ("In which layers?", "Is it real?", "How it was measured"):
        page.locator(".contents ol > li > a", has_text=name).click()
        assert current(page)[0] == name
    link = page.locator(".contents li", has_text="What can I do?").locator("li a", has_text="MixLoRA")
    link.click()
    assert current(page) == ["What can I do?", "MixLoRA E=16 r=4"]
    heading = page.locator(link.get_attribute("href")).locator("h3")
    assert heading.text_content() == "Tasks that go together: MixLoRA E=16 r=4"
    assert 0 <= heading.bounding_box()["y"] < 200


def test_contents_are_a_bar_on_top_of_narrow_screens(opened):
    page = opened(made_up.report(runs=4, layers=1), 360).page
    bar, summary = page.locator(".contents"), page.locator(".contents summary")
    assert bar.bounding_box()["y"] == 0 and bar.bounding_box()["height"] < 60
    assert not page.locator(".contents a").first.is_visible()
    page.evaluate("scrollTo(0, 3000)")
    assert bar.bounding_box()["y"] == 0
    summary.focus()
    page.keyboard.press("Enter")
    page.locator(".contents a", has_text="Is it real?").click()
    assert not page.locator(".contents a").first.is_visible()  # out of the way again
    top = page.locator("#real-title").bounding_box()["y"]
    assert bar.bounding_box()["height"] <= top < 300
    summary.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert not page.locator(".contents a").first.is_visible()
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_a_reader_chooses_the_runs_that_stand_beside_each_other(opened):
    page = opened(data := made_up.report(runs=4, layers=1)).page
    for chosen in [(2,), (1, 3), (0, 2, 3), (0, 1, 2, 3)]:
        compare_runs(page, data, chosen)


def compare_runs(page, data, chosen):
    labels = [data["runs"][k]["label"] for k in chosen]
    show_runs(page, *labels)
    titles = labels + ([f"{labels[1]} minus {labels[0]}"] if len(labels) == 2 else [])
    assert page.locator(".matrix .figure-title").all_text_contents() == titles
    assert page.locator("#details h4").all_text_contents() == titles
    assert page.locator("#counts .count > bdi").all_text_contents() == labels
    headings = page.locator("#multiples h4 bdi").all_text_contents()
    assert set(headings) == (set(labels) if len(labels) > 1 else {""})
    values = data["runs"][chosen[-1]]["cells"]["all/all/both"][data["choices"][0]["key"]]["value"]
    printed = [cell[0].replace("−", "-") for cell in shown(page, len(chosen) - 1)]
    assert printed == ["–" if value is None else f"{value:+.2f}" for value in values]
    boxes = page.locator("#controls .runs input")
    assert [boxes.nth(k).is_checked() for k in range(4)] == [k in chosen for k in range(4)]
    assert boxes.nth(chosen[0]).is_disabled() == (len(chosen) == 1)  # the last one stays
    assert page.evaluate("document.documentElement.scrollWidth") == 1400
