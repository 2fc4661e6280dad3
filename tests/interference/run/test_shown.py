"""What a notebook shows of a run: the matrix in the page's colours, its words, nothing that a name slips in."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from interference.errors import ConfigError
from interference.run import Run, notebook
from tests.support import runs
from tests.support.paths import ROOT

STYLE = (ROOT / "interference" / "report" / "html" / "style.css").read_text(encoding="utf-8")


class Cells(HTMLParser):
    """The texts of the cells of a page's first table, and the style of every cell by its id."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.tags, self._inside = [], [], False
        self.feed(page.partition("</table>")[0])
        self.styles = {
            name: body for names, body in re.findall(r"^([^{}]+) \{([^}]*)\}", page, re.M) for name in names.split(", ")
        }

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._inside = tag == "td"
        if self._inside:
            self.texts.append("")

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "td"

    def handle_data(self, data):
        if self._inside:
            self.texts[-1] += data


@pytest.mark.parametrize("name", ["POSITIVE", "NEGATIVE"])
def test_colours_are_those_of_the_page(name):
    side = name.lower()
    drawn = [
        re.search(rf"--{stop}: light-dark\(#(\w+),", STYLE)[1]
        for stop in ["middle", *(f"{side}-{k}" for k in range(1, 5))]
    ]
    assert [bytes(stop).hex() for stop in getattr(notebook, name)] == drawn


@pytest.mark.parametrize(
    ("value", "css"),
    [
        (0.0, "background-color: rgb(247, 247, 247); color: #000000"),
        (-2.0, "background-color: rgb(47, 127, 189); color: #000000"),
        (9.0, "background-color: rgb(207, 74, 60); color: #000000"),
        (0.25, "background-color: rgb(250, 233, 223); color: #000000"),  # half way to the first stop
        (float("nan"), "background-color: #ffffff; color: #000000"),
    ],
)
def test_a_value_has_its_place_on_the_scale(value, css):
    assert notebook.shade(value, 2.0) == css


def test_a_run_shows_value_interval_and_verdict_of_every_cell():
    run = runs.contradicted()
    found, table = Cells(run._repr_html_()), run.table()
    cell = table[(table["affected"] == "a") & (table["stepped"] == "b")].iloc[0]
    assert found.texts[:2] == ["1.00", f"{cell.value:.2f}\n[{cell.low:.2f}, {cell.high:.2f}]\nconflict"]
    framed = {name: "solid" in css for name, css in found.styles.items() if "_row" in name}
    assert [where for name, where in sorted(framed.items())] == [False, True, True, False]


def test_a_run_says_where_no_signal_means_too_few_units():
    few = runs.grouped()
    page = few._repr_html_()
    assert "<p>a has 3 units, b has 3 units, and an interval of own Delta takes 4: no signal means" in page
    assert "an interval of own Delta takes" not in runs.contradicted()._repr_html_()


def test_a_run_shows_its_tasks_and_blocks():
    page = runs.grouped()._repr_html_()
    cells = re.findall("<t[hd]>(.*?)</t[hd]>", page.partition("</table>")[2])
    assert cells == ["task", "units", "loss (nats per token)", "a", "3", "0.50", "b", "3", "2.00"]
    assert page.endswith("<p>10 blocks; layers 0, 2, 5; modules q_proj, up_proj; sides A, B</p>")


def test_names_of_tasks_are_no_html_and_steer_nothing():
    names = ("<script>alert('x')</script>", 'a & "b</style>\x1b[2J\u202e')
    run = runs.grouped(names=names)
    for page in (run._repr_html_(), run[2, "mlp"]._repr_html_(), run.styled().to_html()):
        assert "<script" not in page and page.count("</style>") == 1 and not set("\x1b\u202e") & set(page)
        assert "&lt;script&gt;alert(" in page and "a &amp; " in page


def many(count):
    """A run of two units in each of many tasks."""
    run = runs.made(planted=1.0)
    probes = run.probes.iloc[[0] * 2 * count].assign(task=[f"t{k // 2}" for k in range(2 * count)])
    rows = np.random.default_rng(0).normal(size=(2 * count, 5)).astype(np.float32)
    packed = (rows @ rows.T)[np.triu_indices(2 * count)]
    return Run(probes.reset_index(drop=True), run.blocks, dict.fromkeys(run.blocks["name"], packed), run.meta)


def test_the_matrix_of_many_tasks_is_shown_when_asked_for():
    page = many(13)._repr_html_()
    said = "<p>The matrix of 13 tasks is not shown automatically (the limit is 12 tasks). <code>run.styled()</code>"
    assert page.startswith(said) and ">t12<" in page
    assert len(Cells(many(13).styled().to_html()).texts) == 169
    assert len(Cells(many(12)._repr_html_()).texts) == 144


def test_a_matrix_of_much_data_is_shown_when_asked_for(monkeypatch):
    monkeypatch.setattr(notebook, "MOST_BYTES", 4 * 4 * 21 - 1)
    page = runs.made()._repr_html_()
    assert page.startswith("<p>The matrix is not shown automatically, because it would read 336 B of Gram matrices.")
    monkeypatch.setattr(notebook, "MOST_BYTES", 4 * 4 * 21)
    assert "<style" in runs.made()._repr_html_()


def test_a_run_without_a_matrix_says_why():
    run = runs.made()
    alone = Run(run.probes.assign(task="a"), run.blocks, run._grams, run.meta)
    assert alone._repr_html_().startswith("<p>A run of one task has no pair of tasks to compare.</p>")
    silent = Run(run.probes, run.blocks, {name: 0 * gram for name, gram in run._grams.items()}, run.meta)
    assert "<p>There is no matrix to show: every Gram is zero" in silent._repr_html_()


def test_a_styled_matrix_holds_its_numbers():
    run = runs.grouped()
    style = run.styled("delta", replicates=50)
    np.testing.assert_allclose(style.data.astype(float), run.matrix("delta"), rtol=1e-6)
    assert "delta. Rows are the affected task, columns the stepped task." in style.to_html()
    with pytest.raises(ConfigError, match="styled shows one matrix, so `by` cannot be given"):
        run.styled(by="layer")
