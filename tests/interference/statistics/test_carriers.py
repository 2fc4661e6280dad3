"""Effective units, which units carry a task, and what is then withheld or studentised."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from interference.statistics.bootstrap import studentised
from interference.statistics.carriers import (
    carried_by,
    carriers,
    effective_units,
    is_carried,
    is_scarce,
    squared_norms,
)
from interference.statistics.estimand import Estimand
from interference.statistics.layout import Layout
from interference.statistics.metrics import signal
from interference.statistics.resamples import Resamples
from interference.statistics.uncertainty import compare, table
from tests.interference.statistics.laws import Law


def heavy(task: int = 0, scale: float = 40.0) -> tuple[np.ndarray, list[str]]:
    """Two tasks of 60 equal units, of which one has two units of `scale` times the length."""
    gradients = Law(60, count=2).gradients(np.random.default_rng(0), np.random.default_rng(1), None)
    gradients[60 * task : 60 * task + 2] *= scale
    return gradients @ gradients.T, ["a"] * 60 + ["b"] * 60


def test_effective_units_are_kishs_number() -> None:
    norms = np.array([1.0, 1.0, 1.0, 1.0, 9.0, 1.0, 0.0, 0.0])
    layout = Layout.of(["a"] * 4 + ["b"] * 2 + ["c"] * 2)
    assert_allclose(effective_units(norms, layout.cells), [4, 100 / 82, np.nan])
    assert_allclose(effective_units(norms * 1e200, layout.cells), [4, 100 / 82, np.nan])
    found = signal(np.diag(norms[:6] + 0.0), ["a"] * 4 + ["b"] * 2).effective
    assert_allclose(found, [4, 100 / 82])


def test_the_gradient_of_a_group_is_its_units_sum() -> None:
    gradients = np.random.default_rng(3).normal(size=(7, 4))
    layout = Layout.of(["a"] * 4 + ["b"] * 3, ["x", "y", "x", "z", "p", "q", "p"])
    sums = [gradients[[0, 2]].sum(0), gradients[1], gradients[3], gradients[[4, 6]].sum(0), gradients[5]]
    assert_allclose(squared_norms(gradients @ gradients.T, layout), [one @ one for one in sums])


def test_few_units_carry_or_lead_a_task_of_many_only() -> None:
    effective, counts = np.array([4.9, 4.9, 15.9, 16.0, 20.0, 6.0, np.nan]), np.array([5, 50, 50, 50, 90, 20, 9])
    assert is_carried(effective, counts).tolist() == [False, True, False, False, False, False, False]
    assert is_scarce(effective, counts).tolist() == [False, True, True, False, False, True, False]


def test_carriers_are_the_fewest_with_half_of_the_squared_norms() -> None:
    assert carriers(np.array([1.0, 5.0, 1.0, 4.0])).tolist() == [1, 3]
    assert carriers(np.array([1.0, 1.0])).tolist() == [0]


def test_carriers_are_named_by_unit_in_any_order_and_by_group() -> None:
    gram, tasks = heavy(task=1)
    assert carried_by(gram, tasks) in ({"b": [[60]]}, {"b": [[61]]})
    order = np.random.default_rng(2).permutation(len(tasks))
    (one,) = carried_by(gram, tasks)["b"]
    (moved,) = carried_by(gram[np.ix_(order, order)], [tasks[k] for k in order])["b"]
    assert order[moved].tolist() == one
    groups = [*range(60), *np.repeat(np.arange(60, 90), 2)]  # the two long ones share a group
    assert carried_by(gram, tasks, groups) == {"b": [[60, 61]]}
    assert carried_by(*heavy(scale=1.0)) == {}


def test_rows_of_carried_tasks_say_so_and_have_no_interval_of_delta() -> None:
    gram, tasks = heavy()
    found, plain = table(gram, tasks, "delta", replicates=100), table(*heavy(scale=1.0), "delta", replicates=100)
    assert found.verdict.tolist() == [["self", "carried"], [plain.verdict[1, 0], "self"]]
    assert np.isnan(found.low).tolist() == np.isnan(found.high).tolist() == [[True, True], [False, False]]
    ratio = table(gram, tasks, reduce="ratio-of-means", replicates=100)
    assert ratio.verdict[0, 1] == "carried" and np.isfinite([ratio.low, ratio.high]).all()
    change = compare(gram, heavy(scale=1.0)[0], tasks, "delta", replicates=100)
    assert np.isnan(change.low).tolist() == [[True, True], [False, False]]
    assert change.verdict[0].tolist() == ["unclear", "unclear"]


@pytest.mark.parametrize("grouped", [False, True])
def test_studentised_own_delta_is_that_of_resampled_groups_one_by_one(grouped: bool) -> None:
    law = Law(6, count=2, size="unequal" if grouped else 1, tail=1.0, intraclass=0.3 if grouped else 0.0)
    drawn = Resamples(law.gram(0), law.tasks, replicates=20, groups=law.labels)
    kernel, layout = drawn.kernel(Estimand("delta")).values, drawn.layout
    found = studentised(drawn.kernel(Estimand("delta")), drawn.weights, layout, 1)
    own = np.arange(layout.starts[1], len(layout.order))

    def by_hand(weights: np.ndarray) -> tuple[float, float]:
        pairs = [(u, v) for u in own for v in own if layout.labels[u] != layout.labels[v]]
        count = sum(weights[u] * weights[v] for u, v in pairs)
        value = sum(weights[u] * weights[v] * kernel[u, v] for u, v in pairs) / count
        variance = 0.0
        for label in np.unique(layout.labels[own]):
            inside = [unit for unit in own if layout.labels[unit] == label]
            outside = [unit for unit in own if layout.labels[unit] != label]
            sums = [weights[u] * ((kernel[u, v] + kernel[v, u]) / 2 - value) for v in inside for u in outside]
            variance += weights[inside[0]] * (2 * sum(sums) / count) ** 2
        return value, np.sqrt(variance)

    value, error = by_hand(np.ones(len(layout.order)))
    assert_allclose([found.value, found.error], [value, error], rtol=1e-10)
    expected = [by_hand(weights) for weights in drawn.weights]
    assert_allclose(found.t, [(one - value) / scatter for one, scatter in expected], rtol=1e-8)


def test_own_delta_alone_has_no_interval_where_a_few_more_units_lead_a_task() -> None:
    gradients = Law(60, count=2).gradients(np.random.default_rng(0), np.random.default_rng(1), None)
    gradients[:9] *= 8
    gram, tasks = gradients @ gradients.T, ["a"] * 60 + ["b"] * 60
    assert 5 < Resamples(gram, tasks, replicates=10).effective[0] < 16
    found = table(gram, tasks, "delta", replicates=100)
    assert np.isnan(found.low).tolist() == np.isnan(found.high).tolist() == [[True, False], [False, False]]
    assert found.verdict[0, 1] != "carried" and carried_by(gram, tasks) == {}
    change = compare(gram, gram, tasks, "delta", replicates=100)
    assert np.isnan(change.low).tolist() == [[True, False], [False, False]]


def test_own_delta_is_studentised_where_lengths_scatter_widely_and_nowhere_else() -> None:
    law = Law(100, carriers=0.1)
    drawn = Resamples(law.gram(0), law.tasks, replicates=200)
    assert drawn.tailed.tolist() == [True, True, True, False] and not drawn.carried.any()
    found = table(law.gram(0), law.tasks, "delta", replicates=200)
    below, above = np.quantile(drawn.studentised(drawn.delta, 0).t, [0.025, 0.975], method="weibull")
    one = drawn.studentised(drawn.delta, 0)
    assert_allclose([found.low[0, 0], found.high[0, 0]], [one.value - one.error * above, one.value - one.error * below])
    twice = table(law.gram(0), law.tasks, "delta", step=2.0, replicates=200)
    assert_allclose([twice.low, twice.high], [2 * found.low, 2 * found.high])
