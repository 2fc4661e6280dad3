"""The report's page on paper: everything in order and whole, black on white also from a dark screen, no controls."""

import io

import numpy as np
import pypdfium2
import pytest

from interference.report.data import report
from tests.support import made_up
from tests.support.reported import TWO_GROUPS, made

MARGIN = dict.fromkeys(("top", "right", "bottom", "left"), "14mm")
EDGE = 14 / 25.4 * 72 - 2  # points


def printed(page, **options):
    """The pages of the page's PDF: text, boxes of text [left, bottom, right, top] with it, size, and picture."""
    document = pypdfium2.PdfDocument(io.BytesIO(page.pdf(format="A4", margin=MARGIN, **options)))
    found = []
    for sheet in document:
        words = sheet.get_textpage()
        boxes = [words.get_rect(k) for k in range(words.count_rects())]
        texts = [words.get_text_bounded(*box) for box in boxes]
        picture = np.asarray(sheet.render(scale=0.5).to_pil().convert("RGB"))
        found.append((words.get_text_range(), list(zip(texts, boxes, strict=True)), sheet.get_size(), picture))
    return found


def plain(text):
    return " ".join(text.replace("\ufffe", "").split())


@pytest.mark.parametrize("runs", [1, 4])
def test_paper_has_every_section_in_order_and_no_control(opened, runs):
    data = made_up.report(runs=runs, layers=2)
    page = opened(data, color_scheme="dark").page
    headings = page.locator("h2").all_text_contents()
    sheets = printed(page)
    text = plain(" ".join(sheet[0] for sheet in sheets))
    places = [text.index(heading) for heading in headings]
    assert len(places) >= 5 and places == sorted(places)
    for sentence in [*data["headline"], *data["advice"], *data["conventions"], *data["left_out"]]:
        assert plain(sentence) in text, sentence
    for control in ("Copy as", "Contents", "Draw this pair", "Colours", "Metric"):
        assert control not in text
    for sheet in sheets:
        assert_whole(sheet)
        assert (sheet[3][:10] == 255).all() and sheet[3].mean() > 200  # white, and no dark part
        low = [box[1] for words, box in sheet[1] if plain(words) in headings]
        assert all(bottom > 0.13 * sheet[2][1] for bottom in low), low  # something stands below each heading
    assert page.locator("#profile svg").first.evaluate("svg => svg.clientWidth") > 400  # as before on the screen


def assert_whole(sheet):
    for words, (left, bottom, right, top) in sheet[1]:
        width, height = sheet[2]
        within = left >= EDGE and right <= width - EDGE and bottom >= EDGE and top <= height - EDGE
        assert within or not words.strip(), (words, left, right)


def test_nothing_is_cut_of_a_matrix_wider_than_the_paper(opened):
    tasks = [f"task number {k}" for k in range(24)]
    data = made_up.report(tasks=tasks, layers=1)
    page = opened(data).page
    values = [text for text in page.locator(".matrix .value").all_text_contents() if text != "–"]
    sheets = printed(page)
    for sheet in sheets:
        assert_whole(sheet)
    text = plain(" ".join(sheet[0] for sheet in sheets))
    assert all(value in text for value in values)
    assert page.locator(".box").first.evaluate("box => box.style.zoom") == ""  # the screen has its size again


def test_what_is_folded_on_the_screen_is_whole_on_paper(opened):
    long = "\n".join(f"line {k} of a long prompt" for k in range(80))
    example = {"id": "7", "tokens": 600, "supervised": 2, "cut": 0}
    reached = {name: {**example, "pieces": [[f"{name}:\n{long}", False], ["Paris", True]]} for name in TWO_GROUPS}
    meta = {"data": {"template": None, "tasks": {}, "examples": reached}}
    page = opened(report({"r": made(TWO_GROUPS, noise=0.6, meta=meta)}, "small", replicates=60).to_dict()).page
    assert page.locator("#reached details[open]").count() == 1
    text = plain(" ".join(sheet[0] for sheet in printed(page)))
    assert text.count("line 79 of a long prompt") == len(TWO_GROUPS)
    assert page.locator("#reached details[open]").count() == 1
