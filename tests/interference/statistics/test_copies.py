"""One example in two tasks, and a task under two names: an example never steps on itself, so I is 1, not infinity."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from interference import config, load
from interference.measurement.compute import compute_config
from interference.statistics import metrics
from interference.statistics.bootstrap import bootstrap_weights
from interference.statistics.estimand import Aggregate, Reduce
from interference.statistics.layout import Layout, Pairs, copies_of, equal_pairs, kept_apart, layout_of
from interference.statistics.pairs import Kernel, pair_means
from interference.statistics.significance import pair_mean_variance
from interference.statistics.uncertainty import compare, table
from tests.support.checkpoints import data


def noisy(count=12, seed=0, scale=3.0):
    """Gradients of one task whose units agree a little: mostly their own noise, so that a self pair would stand out."""
    rng = np.random.default_rng(seed)
    return np.array([1.0] + [0.0] * 199) + scale * rng.normal(size=(count, 200)) / np.sqrt(200)


def twice(count=12):
    gradients = np.concatenate([noisy(count), noisy(count), noisy(count, seed=1)])
    return gradients @ gradients.T, ["a"] * count + ["again"] * count + ["b"] * count


def literal(gram, tasks, same, weights=None):
    """Delta by loops: of every affected unit over the stepped units that are another example, all drawn `weights`."""
    weights = np.ones(len(tasks)) if weights is None else weights
    names = list(dict.fromkeys(tasks))
    found = np.empty((len(names), len(names)))
    for i, affected in enumerate(names):
        for j, stepped in enumerate(names):
            total = share = 0.0
            for v in range(len(tasks)):
                others = [u for u in range(len(tasks)) if tasks[u] == stepped and same[u] != same[v] and weights[u]]
                if tasks[v] == affected and weights[v]:
                    falls = [weights[u] * gram[u, v] / np.sqrt(gram[u, u]) for u in others]
                    total += weights[v] * sum(falls) / sum(weights[u] for u in others)
                    share += weights[v]
            found[i, j] = total / share
    return found


@pytest.mark.parametrize("aggregate", Aggregate)
@pytest.mark.parametrize("reduce", Reduce)
@pytest.mark.parametrize("pairs", [Pairs.LEAVE_ONE_OUT, Pairs.UNI_PERCEIVER, Pairs.ALL])
def test_a_task_under_two_names_has_i_1(pairs, reduce, aggregate):
    gram, tasks = twice()
    found = metrics.interference(np.stack([gram, 2 * gram]), tasks, pairs, reduce, aggregate)
    assert_allclose(found[:2, :2], 1, rtol=1e-9)
    assert_allclose(found[:2, 2], found[0, 2], rtol=1e-9)


def test_two_units_twice_by_hand():
    gradients = np.array([[2.0, 0], [1, 1], [2, 0], [1, 1]])
    own = (2 / 2 + 2 / np.sqrt(2)) / 2  # <g_0, g_1> = 2 along |g_0| = 2 and along |g_1| = sqrt 2
    found = metrics.delta(gradients @ gradients.T, ["a", "a", "again", "again"])
    assert_allclose(found, own)
    assert_allclose(metrics.interference(gradients @ gradients.T, ["a", "a", "again", "again"]), 1)


def test_a_shared_example_is_left_out_of_the_means_it_would_be_alone_in():
    gradients = np.concatenate([noisy(5), noisy(4, seed=1), noisy(5)[[3, 1]]])
    tasks, same = list("aaaaabbbbbb"), [0, 1, 2, 3, 4, 5, 6, 7, 8, 3, 1]
    gram = gradients @ gradients.T
    assert_allclose(metrics.delta(gram, tasks), literal(gram, tasks, same))
    order = [9, 0, 5, 1, 10, 2, 6, 3, 7, 4, 8]  # units of tasks in turn: "b" comes first
    mixed = metrics.delta(gram[order][:, order], [tasks[k] for k in order])
    assert_allclose(mixed, metrics.delta(gram, tasks)[::-1, ::-1])


def test_no_resample_pairs_an_example_with_its_copy():
    gram, tasks = twice(6)
    layout, weights = layout_of(gram, tasks, None), bootstrap_weights(tasks, 20, seed=2)
    same = [*range(6), *range(6), *range(6, 12)]
    values = gram / np.sqrt(np.diagonal(gram))[:, None]
    kernel = Kernel(values)
    found = pair_means(kernel, weights, layout, Pairs.LEAVE_ONE_OUT)
    for one, drawn in zip(found, weights, strict=True):
        assert_allclose(one, literal(gram, tasks, same, drawn))


def test_where_an_example_comes_several_times_the_kth_is_the_kth():
    gradients = noisy(4)[[0, 0, 1, 0, 2, 0, 3]]
    copies = copies_of(gradients @ gradients.T, Layout.of(list("aaabbbb")))
    assert_array_equal(copies, [[-1, -1, -1, 0, -1, 1, -1], [3, 5, -1, -1, -1, -1, -1]])


def test_near_gradients_zero_gradients_and_a_task_of_its_own_are_no_copies():
    gradients = noisy(4)
    near = gradients + 0.1 * noisy(4, seed=1)
    stack = np.concatenate([gradients, gradients, near, np.zeros((2, 200)), np.zeros((2, 200))])
    tasks = ["a"] * 8 + ["b"] * 4 + ["c"] * 2 + ["d"] * 2
    assert (copies_of(stack @ stack.T, Layout.of(tasks)) == -1).all()


def test_the_verdict_of_a_task_under_two_names_is_synergy_and_its_interval_holds_1():
    gram, tasks = twice(60)
    for reduce in ("mean-of-ratios", "ratio-of-means"):
        found = table(gram, tasks, reduce=reduce)
        assert found.verdict[0, 1] == found.verdict[1, 0] == "synergy"
        assert found.low[0, 1] <= 1 <= found.high[0, 1] and found.high[0, 1] - found.low[0, 1] < 2
    longer = np.tile(np.linspace(1, 2, 60), 3)  # the same factor for a unit and its copy
    change = compare(gram, gram * np.outer(longer, longer), tasks, "delta")
    assert_allclose(change.difference[0, 1], change.difference[0, 0])
    assert change.verdict[0, 1] == change.verdict[0, 0] == "higher"


def test_the_variance_of_a_mean_does_not_count_the_pair_left_out():
    gram, tasks = twice(6)
    layout = layout_of(gram, tasks, None)
    kernels = [Kernel(gram)]
    wild = gram.copy()
    wild[np.arange(6), np.arange(6, 12)] = 1e6
    kernels.append(Kernel(wild))
    variances = [pair_mean_variance(kernel, layout, Pairs.LEAVE_ONE_OUT)[0] for kernel in kernels]
    assert_allclose(*variances)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_under_two_names_in_a_real_run(tiny, tmp_path, dtype):
    """The copies come in another order and in other batches, so gradients are the same but for rounding."""
    tasks = {**tiny.tasks, "red again": tiny.tasks["red"]}
    settings = data(tiny.base, tiny.adapter, tasks, tmp_path / "run", layers=[0, 2], samples=8)
    settings["model"]["dtype"] = dtype
    compute_config(config.build(settings, "test"))
    run = load(tmp_path / "run")
    for reduce in Reduce:
        found = run.matrix(reduce=reduce)
        assert_allclose(found.loc["red", "red again"], 1, rtol=1e-4 if dtype == "float32" else 0.05)
        assert_allclose(found.loc["red again", "red"], 1, rtol=1e-4 if dtype == "float32" else 0.05)


def test_copies_within_a_task_share_a_group_where_there_are_labels():
    gradients = np.concatenate([noisy(6), noisy(6)[[0, 1, 1]], noisy(8, seed=1)])
    tasks, same = ["a"] * 9 + ["b"] * 8, [0, 1, 2, 3, 4, 5, 0, 1, 1, *range(6, 14)]
    gram = gradients @ gradients.T
    assert equal_pairs(gram).tolist() == [[0, 6], [1, 7], [1, 8], [7, 8]]
    assert_allclose(metrics.delta(gram, tasks, groups=range(17)), literal(gram, tasks, same))
    assert_allclose(metrics.delta(gram, tasks), literal(gram, tasks, range(17)))
    assert_allclose(table(gram, tasks, "delta").value, literal(gram, tasks, same))
    assert_allclose(table(gram, tasks, "delta").low, table(gram, tasks, "delta", groups=same).low)


def test_units_that_are_all_the_same_stay_apart():
    gradients = np.repeat(noisy(2), 5, axis=0)
    tasks = ["a"] * 5 + ["b"] * 5
    layout = layout_of(gradients @ gradients.T, tasks, range(10))
    assert layout.groups is None
    again = np.concatenate([gradients, gradients[:5]])
    layout = layout_of(again @ again.T, [*tasks, *"ccccc"], range(15))
    assert layout.groups.tolist() == [*range(10), *range(5)]


def test_a_task_of_one_example_alone_keeps_its_copies_apart_and_others_do_not():
    gradients = np.concatenate([np.repeat(noisy(1, seed=3), 6, axis=0), np.repeat(noisy(7), 2, axis=0), noisy(5, 1)])
    tasks, same = ["a"] * 6 + ["b"] * 14 + ["c"] * 5, [*range(6), *np.repeat(range(6, 13), 2), *range(13, 18)]
    gram = gradients @ gradients.T
    assert_allclose(table(gram, tasks, "delta").value, literal(gram, tasks, same))
    without, kept = gram[6:, 6:], tasks[6:]
    found, expected = (table(one, names, "delta").value for one, names in ((gram, tasks), (without, kept)))
    assert_allclose(found[1:, 1:], expected)
    assert kept_apart(gram, tasks, range(25)) == list(range(6)) and kept_apart(without, kept, range(19)) == []


def test_of_a_task_that_would_be_left_a_single_group_only_what_it_repeats_stays_apart():
    """Task a is one example, which b holds three times, beside another that b holds twice and c once."""
    gradients = noisy(8)[[0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 1, 4, 5]]
    tasks = ["a"] * 3 + ["b"] * 7 + ["c"] * 3
    layout = layout_of(gradients @ gradients.T, tasks, range(13))
    assert layout.groups.tolist() == [0, 1, 2, 0, 1, 2, 3, 3, 4, 5, 3, 6, 7]
    mixed = [12, 0, 5, 3, 9, 1, 7, 10, 2, 4, 6, 8, 11]
    shuffled = gradients[mixed]
    apart = kept_apart(shuffled @ shuffled.T, [tasks[k] for k in mixed], range(13))
    assert sorted(mixed[k] for k in apart) == [0, 1, 2, 3, 4, 5]


def test_a_task_that_groups_of_another_would_join_shares_none_by_its_copies():
    gradients = noisy(9)[[0, 1, 0, 1, 2, 3, 4, 4, 5]]
    tasks, groups = list("aabbbbccc"), [0, 1, 2, 2, 3, 4, 5, 6, 7]  # b's copies of both of a's examples are one group
    layout = layout_of(gradients @ gradients.T, tasks, groups)
    assert layout.groups.tolist() == [0, 1, 2, 2, 3, 4, 5, 5, 6]
    assert kept_apart(gradients @ gradients.T, tasks, groups) == [0, 1, 2, 3]


def test_an_example_that_only_one_of_two_runs_shows_to_be_shared_counts_in_neither():
    gradients = np.concatenate([noisy(8), noisy(8, seed=1)])
    gradients[12] = gradients[3]
    blurred = gradients.copy()
    blurred[12] += 0.1 * noisy(1, seed=2)[0]  # no copy by itself
    tasks, same = list("aaaaaaaabbbbbbbb"), [*range(12), 3, *range(13, 16)]
    first, second = gradients @ gradients.T, 2 * blurred @ blurred.T
    assert (copies_of(second, Layout.of(tasks)) == -1).all()
    for found in (compare(first, second, tasks, "delta"), compare(first, second, tasks, "interference")):
        assert ((found.low <= found.difference) & (found.difference <= found.high)).all()
    found = compare(first, second, tasks, "delta")
    assert_allclose(found.a, literal(first, tasks, same))
    assert_allclose(found.b, literal(second, tasks, same))
    assert_allclose(compare(second, first, tasks, "delta").difference, -found.difference)
