"""Docstrings of the public API: whole, true to their signatures, and their examples run."""

import builtins
import doctest
import importlib
import inspect
import re
import subprocess
import sys

import pytest

from interference import errors as of_measuring
from mixlora.common import errors as of_both
from tests.support.paths import ROOT
from tests.support.public import PACKAGES, public, sections, source

PUBLIC = public()
CALLED = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
SHOWN = {name: value for name, value in PUBLIC.items() if not inspect.ismodule(value)}
FILES = sorted({str(source(value).relative_to(ROOT)) for value in CALLED.values()})
WITH_EXAMPLES = {
    "interference": "load compare compute verify from_trainer InterferenceCallback LookaheadCallback",
    "interference.Run": "table gram matrix to_xarray styled",
    "interference.figures": "heatmap panels difference",
    "interference.factors": "load",
    "interference.metrics": "interference delta cosine pair_cosine conflict_rate magnitude_similarity curvature signal",
    "interference.uncertainty": "table",
    "interference.reference": "gradients",
    "mixlora": "MixLoraConfig routed",
    "mixlora.MixLoraConfig": "paper official",
    "mixlora.official": "import_checkpoint",
}
FOLLOWED = ("DOC502", "DOC503")
"""That a docstring names errors that no statement of the function raises: what it calls does."""
LONGEST = 30
"""Words of a sentence."""


@pytest.fixture(scope="module")
def complaints():
    """{(file, name of a function or class): what pydoclint says of it}, short docstrings not spared."""
    strict = ["--skip-checking-short-docstrings", "False", "--skip-checking-raises", "False"]
    command = [sys.executable, "-m", "pydoclint.main", "--quiet", "--config", "pyproject.toml", *strict, *FILES]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode in (0, 1), said.stderr
    found, file = {}, ""
    for line in (said.stdout + said.stderr).splitlines():
        if line in FILES:
            file = line
        elif match := re.match(r" *\d+: (DOC\d+): \w+ `([^`]+)`:? ?(.*)", line):
            code, name, rest = match.groups()
            found.setdefault((file, name), []).append(f"{code} {rest}")
    assert found, "pydoclint names nothing at all, not even of private classes: is it read rightly?"
    return found


@pytest.mark.parametrize("name", CALLED)
def test_signatures_and_docstrings_agree(name, complaints):
    value = CALLED[name]
    key = (str(source(value).relative_to(ROOT)), inspect.unwrap(value).__qualname__)
    said = complaints.get(key, [])
    assert [line for line in said if not line.startswith(FOLLOWED)] == []
    for line in said:  # every error of its own is named
        if match := re.search(r"docstring: \[(.*?)\]\. Raised exceptions in the body: \[(.*?)\]", line):
            named, raised = (set(re.findall(r"\w+Error", found)) for found in match.groups())
            assert raised <= named


@pytest.mark.parametrize("name", SHOWN)
def test_the_first_line_is_a_sentence(name):
    value = SHOWN[name].fget if isinstance(SHOWN[name], property) else SHOWN[name]
    assert re.match(r"[^a-z\s].*[.:](\n|$)", value.__doc__ or "", re.DOTALL)


@pytest.mark.parametrize("name", SHOWN)
def test_sentences_are_short(name):
    value = SHOWN[name].fget if isinstance(SHOWN[name], property) else SHOWN[name]
    text = re.sub(r"\nExample:.*", "", inspect.cleandoc(value.__doc__ or ""), flags=re.DOTALL)
    parts = re.split(r"\n\s*\n|\n(?=\s*\*{0,2}\w+: )|\n(?=\w+:\n)", text)
    sentences = [one for part in parts for one in re.split(r"(?<=[.:;])\s", " ".join(part.split()))]
    assert [one for one in sentences if len(one.split()) > LONGEST] == []


@pytest.mark.parametrize("name", [name for name in SHOWN if not isinstance(SHOWN[name], property)])
def test_errors_that_are_named_exist(name):
    for error in sections(SHOWN[name]).get("Raises", []):
        found = next((vars(home)[error] for home in (of_measuring, of_both, builtins) if error in vars(home)), None)
        assert inspect.isclass(found) and issubclass(found, Exception), error


def test_the_linter_reads_the_files_of_the_public_api():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = re.search(r"^PUBLIC := ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)[1].replace("\\\n", " ").split()
    assert sorted(listed) == FILES
    assert re.search(r"^\t\$\(BIN\)/pydoclint .*\$\(PUBLIC\)$", makefile, re.MULTILINE)


@pytest.mark.parametrize("name", [f"{home}.{name}" for home, names in WITH_EXAMPLES.items() for name in names.split()])
def test_what_people_start_with_has_an_example(name):
    assert ">>> " in SHOWN[name].__doc__


@pytest.mark.parametrize("file", [file for file in FILES if ">>> " in (ROOT / file).read_text(encoding="utf-8")])
def test_examples_run(file, monkeypatch):
    monkeypatch.chdir(ROOT)  # examples read reports/reference
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    assert module.__name__.partition(".")[0] in PACKAGES
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
