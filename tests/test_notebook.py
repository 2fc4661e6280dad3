"""reports/explore.ipynb: it runs in a kernel of its own, shows what it promises, and its stored outputs are up to date.

`python -m tests.test_notebook` stores the outputs of the cells as they are now in the notebook.
"""

import copy
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

import interference
from interference import errors
from interference.run import Run
from tests.support.paths import ROOT
from tests.support.public import sections

NOTEBOOK = ROOT / "reports" / "explore.ipynb"
RUNS = ROOT / "reports" / "reference"
STYLES = re.compile(r"T_[0-9a-f]+|rgb\(\d+, \d+, \d+\)|<style.*</style>| at 0x[0-9a-f]+", re.DOTALL)
PATHS = re.compile(r"(?<![\w.])(?:/[\w.+-]+){2,}|[A-Za-z]:\\|site-packages")


def executed(notebook, folder):
    """A copy of the notebook as a kernel of this very interpreter leaves it in `folder`, where its runs are."""
    shutil.copytree(RUNS, folder / "reference")
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "here",
        "language": "python",
    }
    (folder / "specs" / "here").mkdir(parents=True)
    (folder / "specs" / "here" / "kernel.json").write_text(json.dumps(spec))
    specs = KernelSpecManager(kernel_dirs=[str(folder / "specs")], ensure_native_kernel=False)
    manager = AsyncKernelManager(kernel_name="here", kernel_spec_manager=specs)
    client = NotebookClient(
        copy.deepcopy(notebook),
        km=manager,
        timeout=300,
        record_timing=False,
        allow_errors=True,
        resources={"metadata": {"path": str(folder)}},
    )
    own = {"IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return client.execute(cleanup_kc=True, env={**os.environ, **own})


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag):
    return [cell for cell in code(notebook) if tag in cell.metadata.get("tags", [])]


def texts(cell):
    """What a cell prints or displays, but pictures."""
    for output in cell.outputs:
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "image/png" not in data:
            yield from (text for _, text in sorted(data.items()))


@pytest.fixture(scope="module")
def stored():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def anew(stored, tmp_path_factory):
    return executed(stored, tmp_path_factory.mktemp("notebook"))


@pytest.mark.slow
def test_every_cell_runs_in_silence(anew):
    assert [cell.execution_count for cell in code(anew)] == list(range(1, len(code(anew)) + 1))
    for cell in code(anew):
        assert {output.output_type for output in cell.outputs} <= {"execute_result"}, (cell.source, cell.outputs)


@pytest.mark.slow
def test_every_cell_shows_something_or_says_that_it_does_not(anew):
    assert [cell for cell in code(anew) if not cell.outputs] == tagged(anew, "quiet")


@pytest.mark.slow
def test_figures_are_shown_as_pictures(stored, anew):
    shown = [cell.source for cell in code(anew) for output in cell.outputs if "image/png" in output.data]
    assert shown == [cell.source for cell in tagged(anew, "figure")] and len(shown) >= 4
    assert all(cell.source.startswith("figures.") for cell in tagged(stored, "figure"))


@pytest.mark.slow
def test_runs_and_tables_are_shown_as_html(anew):
    by_end = {cell.source.splitlines()[-1]: cell.outputs[0].data for cell in code(anew) if cell.outputs}
    frames = [
        line for line in by_end if re.match(r"(pd\.(DataFrame|concat)|change\[|lora[.\[]|verification\.steps)", line)
    ]
    assert len(frames) > 8
    for line in [*frames, "lora", "start", "trained"]:
        assert "<table" in by_end[line]["text/html"], line


@pytest.mark.slow
def test_what_is_stored_is_what_the_cells_say_now(stored, anew):
    for before, after in zip(stored.cells, anew.cells, strict=True):
        assert before.source == after.source
    for before, after in zip(code(stored), code(anew), strict=True):
        assert before.execution_count == after.execution_count
        assert [sorted(output.data) for output in before.outputs] == [sorted(output.data) for output in after.outputs]
        if "live" not in before.metadata.get("tags", []):  # what is trained anew depends on the machine
            assert_same(list(texts(before)), list(texts(after)))


def assert_same(before, after):
    """The same words, and the same numbers but for rounding."""
    number = re.compile(r"-?\d+\.\d+")
    before, after = ([STYLES.sub("#", text) for text in found] for found in (before, after))
    assert [re.sub(r"[\s-]+", " ", number.sub("#", text)) for text in before] == [
        re.sub(r"[\s-]+", " ", number.sub("#", text)) for text in after
    ]
    for one, other in zip(before, after, strict=True):
        found = ([float(value) for value in number.findall(text)] for text in (one, other))
        np.testing.assert_allclose(*found, rtol=0.02, atol=0.011)


@pytest.mark.slow
def test_no_place_of_a_machine_and_no_moment_is_stored(stored, anew):
    assert stored.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(set(cell.metadata) <= {"tags"} for cell in stored.cells)
    for notebook in (stored, anew):
        found = [PATHS.search(re.sub(r"</\w+>", "", text)) for cell in code(notebook) for text in texts(cell)]
        assert [match[0] for match in found if match] == []
    assert NOTEBOOK.stat().st_size < 1_500_000


def test_prose_says_no_number_that_a_run_could_contradict(stored):
    prose = [cell.source for cell in stored.cells if cell.cell_type == "markdown"]
    prose = [re.sub(r"95%|-100", "", text) for text in prose]  # what the words mean
    assert len(prose) > 20 and [text for text in prose if re.search(r"\d[.,]\d|\d{2}", text)] == []


def test_a_place_of_a_machine_would_be_found():
    for text in ("in /tmp/x/run", "'/home/someone/x'", "C:\\Users", "lib/python3.11/site-packages/torch"):
        assert PATHS.search(text)
    for text in ("reports/demo/checkpoints", "reference/lora", "1/2", "mini/read_word/word-1"):
        assert not PATHS.search(text)


@pytest.mark.parametrize("name", ["lora", "mixlora"])
def test_reference_runs_name_no_place_of_a_machine(name):
    text = (RUNS / name / "run.json").read_text(encoding="utf-8")
    assert PATHS.findall(text) == []
    config = json.loads(text)["config"]
    assert config["model"]["adapter"].startswith(f"reports/demo/checkpoints/{name}/snapshots/step-")
    assert config["probe"] | {"unit_size": 5, "granularity": "group", "samples": 100} == config["probe"]


def test_reference_runs_tell_the_story_of_the_readme():
    runs = {name: interference.load(RUNS / name) for name in ("lora", "mixlora")}
    options = {"reduce": "ratio-of-means"}
    for run in runs.values():
        cells = run.table(**options).set_index(["affected", "stepped"])
        for pair in (("read_word", "name_ink"), ("name_ink", "read_word")):
            assert cells.loc[pair, "verdict"] == "conflict" and cells.loc[pair, "high"] < -0.1
    losses = [run.probes["loss"].mean() for run in runs.values()]
    assert abs(losses[0] - losses[1]) < 0.1
    change = interference.compare(*runs.values(), **options).set_index(["affected", "stepped"])
    assert change.loc[("read_word", "name_ink"), "verdict"] == "higher"
    assert set(runs["mixlora"].selections["unit"]) == set(range(120))


def made(tasks, layers=2):
    rows = [("language", layer, "q_proj", "attention", side) for layer in range(layers) for side in "AB"]
    blocks = pd.DataFrame(rows, columns=["component", "layer", "module", "group", "side"])
    blocks.insert(0, "name", [f"{row[1]}.{row[2]}.{row[4]}" for row in rows])
    blocks = blocks.assign(size=4).astype({"layer": "Int64"})
    probes = pd.DataFrame({"task": tasks, "loss": np.arange(len(tasks)) + 0.5, "tokens": 1})
    return Run(probes, blocks, {}, {})


def test_a_run_of_many_layers_is_shown_in_short():
    assert "layers 0, 1, 2, 3, 4, 5, 6, 7, …, 31; modules" in made(["a"], layers=32)._repr_html_()


MISTAKES = """\
import interference
run = interference.load("reference/lora")
run.table(layers=[99])
---
%tb
---
run["no \\x1b[31msuch module"]
"""


@pytest.mark.slow
def test_an_error_of_ours_is_one_sentence_in_a_notebook(tmp_path):
    cells = [nbformat.v4.new_code_cell(text) for text in MISTAKES.split("---\n")]
    done = executed(nbformat.v4.new_notebook(cells=cells), tmp_path)
    first, again, other = (cell.outputs[0] for cell in done.cells)
    hint = "(%tb shows the traceback, %debug opens the debugger there)"
    said = "ScopeError: layer 99 is not among the adapted layers: 0-3 (counted from 0)"
    assert first.traceback == [said, hint]
    assert again.traceback[0] == "Traceback (most recent call last):" and again.traceback[-1].endswith(said[12:])
    assert any("run.table(layers=[99])" in line for line in again.traceback)
    assert (
        other.traceback[0].startswith(r"ScopeError: module 'no \x1b[31msuch module' is not among")
        and len(other.traceback) == 2
    )


@pytest.mark.parametrize("name", ["scope", "gram", "matrix", "table", "signal", "null"])
def test_a_scope_that_is_not_there_raises_what_the_docstring_says(name):
    method = getattr(Run, name)
    for wrong in ({"layers": [9]}, {"modules": ["no"]}, {"side": "C"}, {"space": "no"}):
        with pytest.raises(errors.InterferenceError) as raised:
            method(made(["a", "b"]), **wrong)
        assert type(raised.value).__name__ in sections(method)["Raises"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        now = executed(nbformat.read(NOTEBOOK, as_version=4), Path(folder))
    for cell in now.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
    now.metadata["language_info"] = {"name": "python"}
    nbformat.write(now, NOTEBOOK)
