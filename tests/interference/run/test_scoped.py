"""run[...]: which scope the brackets name, that its numbers are the run's, and what IPython offers between them."""

import inspect

import numpy as np
import pandas as pd
import pytest
from IPython.core.completer import IPCompleter, provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

from interference.blocks import Scope
from interference.errors import ScopeError
from interference.run import Run
from interference.run.scoped import Scoped, scope_of
from tests.support import runs

QUICK = {"replicates": 50}


@pytest.fixture(scope="module")
def run():
    return runs.grouped()


@pytest.mark.parametrize(
    ("key", "scope"),
    [
        (5, Scope([5])),
        ([0, np.int64(2)], Scope([0, 2])),
        (range(2), Scope([0, 1])),
        ("mlp", Scope(None, ["mlp"])),
        ((0, "mlp", "B"), Scope([0], ["mlp"], "B")),
        (([0, 2], ["q_proj", "up_proj"]), Scope([0, 2], ["q_proj", "up_proj"])),
        (("weight", 3), Scope([3], space="weight")),
        ("W", Scope(space="weight")),
    ],
)
def test_brackets_name_a_scope(key, scope):
    assert scope_of(key) == scope


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (9, "layer 9 is not among the adapted layers: 0, 2, 5"),
        ("k_proj", "module 'k_proj' is not among those here"),
        (("A", "B"), r"run\[\.\.\.\] names 2 sides \(A, B\); name one, or none for all"),
        ([], r"run\[\.\.\.\] names an empty list, which is not a scope; name layers or modules, or leave it out"),
        (([], "mlp"), "names an empty list"),
        (("weight", "A"), "this run has no weight-space Gram"),
        (0.5, r"run\[\.\.\.\] takes layers, modules and sides, but 0.5 is a float"),
        (True, "True is a bool"),
        (slice(2), "slice"),
    ],
)
def test_what_is_not_there_is_refused_at_once(run, key, said):
    with pytest.raises(ScopeError, match=said):
        run[key]


def test_numbers_are_those_of_the_run_in_that_scope(run):
    part, scope = run[[0, 2], "mlp", "B"], {"layers": [0, 2], "modules": ["mlp"], "side": "B"}
    assert repr(part) == f"{run!r} in layers=[0, 2], modules=['mlp'], side='B'"
    np.testing.assert_array_equal(part.gram(), run.gram(**scope))
    pd.testing.assert_frame_equal(part.matrix("cosine"), run.matrix("cosine", **scope))
    pd.testing.assert_frame_equal(part.table("delta", **QUICK), run.table("delta", **scope, **QUICK))
    pd.testing.assert_frame_equal(part.signal(), run.signal(**scope))
    assert part.styled(**QUICK).set_uuid("x").to_html() == run.styled(**scope, **QUICK).set_uuid("x").to_html()
    with pytest.raises(ScopeError, match="split-half null needs 4 units"):
        part.null()


def test_every_method_of_a_run_that_takes_a_scope_is_one_of_a_scope(run):
    takes = {
        name
        for name, method in inspect.getmembers(Run, inspect.isfunction)
        if not name.startswith("_") and {"layers", "scope", "options"} & set(inspect.signature(method).parameters)
    }
    assert takes - {"scope"} == {name for name in dir(Scoped) if not name.startswith("_")} - {"run", "scope"}
    assert run[5].carriers() == run.carriers(layers=[5])


@pytest.mark.parametrize("method", ["matrix", "table", "null", "styled", "to_xarray"])
def test_a_scope_is_not_named_twice(run, method):
    with pytest.raises(ScopeError, match="so layers cannot be given again; name it in brackets"):
        getattr(run[5], method)(layers=[0])


def test_a_run_is_no_sequence(run):
    with pytest.raises(TypeError, match="not iterable"):
        list(run)


def test_names_are_lists_in_the_order_of_the_model(run):
    assert (run.layers, run.sides) == ([0, 2, 5], ["A", "B"])
    assert run.modules == ["q_proj", "up_proj", "attention", "mlp"]


def offered(run, text):
    """What IPython's completer offers at the end of a line in which `run` is a run."""
    with provisionalcompleter():
        completer = IPCompleter(InteractiveShell.instance(), {"run": run}, {}, use_jedi=False)
        return {one.text.strip("'\"") for one in completer.completions(text, len(text))}


def test_ipython_completes_layers_modules_and_sides(run):
    assert {"0", "2", "5", "q_proj", "up_proj", "attention", "mlp", "A", "B"} <= offered(run, "run[")
    assert offered(run, "run['q") == {"q_proj"}
    assert {"q_proj", "mlp", "A"} <= offered(run, "run[2, '")
    assert {"A", "B"} <= offered(run, "run['mlp', '")


def test_ipython_completes_tasks_of_a_matrix(run):
    assert "ocr" in offered(runs.grouped(names=("ocr", "vqa")).matrix(), "run['o")
