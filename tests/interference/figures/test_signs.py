"""Signs that the usual font lacks: from a font that has them, else a box; nothing is said of fonts."""

import io
import warnings

import pytest
from matplotlib.text import Text

from interference import paper
from interference.figures import canvas, matrices
from tests.support.figures import QUICK
from tests.support.runs import grouped

NAMES = ("party 🎉", "数学 𝒜")
"""Of the second, a font has 𝒜 that comes with matplotlib, and none the rest unless one is installed."""


@pytest.fixture(scope="module")
def run():
    return grouped(names=NAMES)


@pytest.fixture(autouse=True)
def _no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.slow
@pytest.mark.parametrize("draw", [matrices.heatmap, matrices.panels, paper.blocks])
def test_a_notebook_shows_and_saves_without_a_warning(run, draw):
    figure = draw(run, **QUICK)
    assert figure._repr_png_()
    for kind in ("png", "svg", "pdf"):
        figure.savefig(made := io.BytesIO(), format=kind, bbox_inches="tight")
        assert made.getvalue() and canvas.files({"x": figure}, (kind,))[f"x.{kind}"]


def test_a_font_that_has_a_sign_draws_it(run):
    figure = matrices.heatmap(run, **QUICK)
    figure.savefig(io.BytesIO())
    families = {text.get_text(): text.get_fontfamily() for text in figure.findobj(Text)}
    others = families[NAMES[1]][1:]
    assert others and any(canvas._has(canvas._file(family), "𝒜") for family in others)
    assert families["affected task"] == ["sans-serif"]


def test_a_font_of_any_file_is_looked_into(tmp_path, monkeypatch):
    fonts = canvas.font_manager.fontManager.ttflist
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    there = [canvas.font_manager.FontEntry(str(broken), name="A"), *fonts]
    monkeypatch.setattr(canvas.font_manager.fontManager, "ttflist", there)
    canvas.family_with.cache_clear()
    assert canvas.family_with("𝒜") not in ("", "A")
    assert canvas.family_with("\N{CUNEIFORM SIGN A}") != "A"


@pytest.mark.slow
def test_commands_say_nothing_of_fonts(interference, run, tmp_path):
    run.save(tmp_path / "run")
    report = interference("report", tmp_path / "run", "--out", tmp_path / "report", "--detail", "small", "--quiet")
    drawn = interference("figure", "blocks", tmp_path / "run", "--out", tmp_path / "drawn")
    for said in (report, drawn):
        assert said.code == 0 and not any(word in said.err for word in ("Glyph", "font", ".py"))
