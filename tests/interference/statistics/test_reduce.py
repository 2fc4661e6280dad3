"""One default of `reduce`, the same wherever none is named."""

import inspect

import pytest

from interference.cli import options
from interference.figures.ways import published
from interference.report.scopes import BASE
from interference.run.remarks import reduced_by
from interference.statistics import metrics, uncertainty
from interference.statistics.estimand import REDUCE, Estimand, Reduce
from tests.support.runs import contradicted


@pytest.mark.parametrize(
    "function",
    [metrics.interference, uncertainty.table, uncertainty.compare, uncertainty.split_half_null, Estimand],
)
def test_the_default_is_the_ratio_of_means(function):
    assert inspect.signature(function).parameters["reduce"].default is REDUCE is Reduce.RATIO_OF_MEANS


def test_what_cannot_import_the_default_agrees_with_it():
    assert options.RATIO_OF_MEANS == BASE.reduce == reduced_by(None) == REDUCE.value
    assert [way.judged for way in published("interference", {})] == [True]


def test_a_run_takes_the_ratio_of_means():
    run, quick = contradicted(), {"replicates": 20}
    assert run.matrix().equals(run.matrix(reduce="ratio-of-means"))
    assert run.table(**quick).equals(run.table(reduce="ratio-of-means", **quick))
    assert run.null().equals(run.null(reduce="ratio-of-means"))
    assert run.matrix().loc["a", "b"] < 0 < run.matrix(reduce="mean-of-ratios").loc["a", "b"]


def test_commands_say_and_take_the_default(interference, tmp_path):
    contradicted().save(tmp_path / "run")
    for command in (["show", tmp_path / "run"], ["compare", tmp_path / "run", tmp_path / "run"]):
        assert "[default: ratio-of-means]" in interference(command[0], "--help").out
        named = interference(*command, "--json", "--reduce", "ratio-of-means")
        assert interference(*command, "--json").out == named.out
