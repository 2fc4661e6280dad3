"""Units in groups: independent ones give what was always given; groups are left out, drawn and analysed whole."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file

from interference import load
from interference.errors import ScopeError
from interference.statistics import metrics, uncertainty
from interference.statistics.bootstrap import bootstrap_weights
from interference.statistics.layout import Layout, Pairs
from interference.statistics.pairs import Kernel, pair_means
from interference.statistics.significance import pair_mean_variance
from interference.statistics.uncertainty import compare, split_half_null, table
from tests.support.paths import GOLDEN, ROOT

BEFORE = json.loads((Path(__file__).parent / "independent.json").read_text())
"""What the statistics gave before they knew groups: {"kind data metric settings": arrays}."""


def recorded(name: str) -> tuple[np.ndarray, list[str]]:
    """The Gram and tasks that `BEFORE` is of: the golden gradients, or 30 units of the reference run in two blocks."""
    if name == "golden":
        stored = load_file(GOLDEN / "interference_matrix.safetensors")
        gradients = np.concatenate([stored[f"gradients.{task}"] for task in range(3)]).astype(np.float64)
        return gradients @ gradients.T, [task for task in "abc" for _ in range(20)]
    run = load(ROOT / "reports/reference/lora")
    tasks = run.probes["task"].to_numpy()
    first = run.probes.groupby("task", sort=False).head(10).index.to_numpy()
    kept = first[np.isin(tasks[first], run.tasks[:3])]
    blocks = np.stack([matrix[np.ix_(kept, kept)] for matrix in run.grams(list(run.blocks["name"]))])
    halves = np.array_split(blocks.astype(np.float64), [len(blocks) // 2])
    return np.stack([half.sum(axis=0) for half in halves]), list(tasks[kept])


@pytest.mark.parametrize("groups", [None, "numbers", "labels"])
@pytest.mark.parametrize("what", BEFORE)
def test_independent_units_give_what_was_given_before_groups(what: str, groups: str | None) -> None:
    kind, name, metric, settings = what.split(" ", 3)
    gram, tasks = recorded(name)
    labels = {None: None, "numbers": range(len(tasks)), "labels": [("x", -k) for k in range(len(tasks))]}[groups]
    options: dict[str, Any] = {**json.loads(settings), "groups": labels}
    found: Any
    if kind == "table":
        found = table(gram, tasks, metric, replicates=50, seed=3, **options)
    elif kind == "compare":
        found = compare(gram, gram * 1.5 + np.eye(len(tasks)), tasks, metric, replicates=50, seed=3, **options)
    elif kind == "null":
        found = split_half_null(gram, tasks, splits=20, seed=3, reduce="ratio-of-means", **options)
    else:
        found = metrics.signal(gram, tasks, **options)
    rows = [0, 1] if name == "reference" and kind in ("table", "compare") else slice(None)
    rounding = kind == "compare" and options.get("norms") == "unbiased"  # the cosine is the same: p is that of rounding
    for field, values in BEFORE[what].items():
        if rounding and field in ("p", "q"):
            continue
        if field == "tasks":
            assert np.array_equal(found.tasks, values)
        elif field == "verdict":
            assert np.array_equal(found.verdict[rows], np.array(values)[rows])
        else:
            expected = np.array(values, dtype=float)
            new = field in ("low", "high") and metric == "delta"  # withheld where few units carry the task
            got, expected = (array[rows] if new else array for array in (getattr(found, field), expected))
            single = options.get("aggregate") == "mean" and field in ("low", "high")  # resamples in float32
            assert_allclose(got, expected, rtol=1e-5 if single else 1e-12, atol=1e-12, err_msg=field)
    if rows != slice(None) and kind == "table":
        assert found.verdict[2].tolist() == ["carried", "carried", "self"]


def sharing(seed: int = 0) -> tuple[np.ndarray, list[str], list[str]]:
    """The Gram of 3 tasks in mixed order whose groups are of 1 to 4 units, and of which two share some groups."""
    rng = np.random.default_rng(seed)
    tasks = [task for task, count in (("a", 13), ("b", 9), ("c", 11)) for _ in range(count)]
    groups = [str(k) for k in [0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 5, 6, 0, 0, 2, 7, 7, 8, 9, 10, 11]]
    groups += [f"c{k // 2}" for k in range(11)]
    shared = {label: rng.normal(size=40) for label in dict.fromkeys(groups)}
    mean = {"a": np.eye(40)[0] * 3, "b": np.eye(40)[0] * -2 + np.eye(40)[1] * 3, "c": np.eye(40)[2] * 3}
    rows = [mean[t] + shared[g] + rng.normal(size=40) for t, g in zip(tasks, groups, strict=True)]
    order = rng.permutation(len(tasks))
    gradients = np.array(rows)[order]
    return gradients @ gradients.T, [tasks[k] for k in order], [groups[k] for k in order]


def falls(gram: np.ndarray, tasks: list[str], groups: list[str], j: str, v: int) -> float:
    """Delta_j L(v) by a loop over the stepped units that are of another group than v."""
    others = [u for u in range(len(tasks)) if tasks[u] == j and groups[u] != groups[v]]
    return float(np.mean([gram[u, v] / np.sqrt(gram[u, u]) for u in others]))


def literal(gram: np.ndarray, tasks: list[str], groups: list[str], reduce: str | None) -> np.ndarray:
    """Delta, or I, by loops."""
    names = list(dict.fromkeys(tasks))
    found = np.empty((len(names), len(names)))
    for i, affected in enumerate(names):
        units = [v for v, task in enumerate(tasks) if task == affected]
        by_task = np.array([[falls(gram, tasks, groups, j, v) for v in units] for j in names])
        own = by_task[i]
        found[i] = {
            None: by_task.mean(axis=1),
            "mean-of-ratios": (by_task / own).mean(axis=1),
            "ratio-of-means": by_task.mean(axis=1) / own.mean(),
            "median-of-ratios": np.median(by_task / own, axis=1),
        }[reduce]
    return found


def test_no_unit_steps_on_its_own_group_within_a_task_or_between_two() -> None:
    gram, tasks, groups = sharing()
    assert_allclose(metrics.delta(gram, tasks, groups=groups), literal(gram, tasks, groups, None))
    for reduce in metrics.Reduce:
        found = metrics.interference(gram, tasks, reduce=reduce, groups=groups)
        assert_allclose(found, literal(gram, tasks, groups, reduce.value), err_msg=reduce)
        assert_allclose(table(gram, tasks, reduce=reduce, groups=groups, replicates=20).value, found)


@pytest.mark.parametrize("metric", metrics.METRICS)
@pytest.mark.parametrize("aggregate", metrics.Aggregate)
@pytest.mark.parametrize("pairs", Pairs)
def test_tables_of_groups_hold_the_metric_and_do_not_depend_on_order_or_names(
    metric: str, aggregate: str, pairs: str
) -> None:
    gram, tasks, groups = sharing()
    keep = [k for task in "ab" for k in np.flatnonzero(np.array(tasks) == task)[:9]]  # as pairs "uni-perceiver" need
    gram, tasks, groups = gram[np.ix_(keep, keep)], [tasks[k] for k in keep], [groups[k] for k in keep]
    stack = np.stack([gram, 2 * gram + np.eye(len(gram))])
    options: dict[str, Any] = {"aggregate": aggregate, "pairs": pairs, "reduce": "ratio-of-means", "replicates": 200}
    found = table(stack, tasks, metric, groups=groups, **options)
    assert ((found.low <= found.value + 1e-9) & (found.value <= found.high + 1e-9)).all()
    renamed = table(stack, tasks, metric, groups=[label + "!" for label in groups], **options)
    assert_array_equal(renamed.low, found.low)


def test_equal_groups_that_no_tasks_share_are_analysed_as_their_means() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 60))
    tasks, groups = [task for task in "ab" for _ in range(30)], [k // 5 for k in range(60)]
    means = np.kron(np.eye(12), np.full((1, 5), 0.2))
    whole = pair_mean_variance(Kernel(values), Layout.of(tasks, groups), Pairs.LEAVE_ONE_OUT)
    of_means = Layout.of(["a"] * 6 + ["b"] * 6)
    expected = pair_mean_variance(Kernel(means @ values @ means.T), of_means, Pairs.LEAVE_ONE_OUT)
    assert_allclose(whole, expected, rtol=1e-9)


def test_the_variance_is_that_of_simulated_draws_of_groups() -> None:
    """Groups of 1 to 5 units, tasks a and b share 12 of their 20 groups, which move both alike."""
    rng = np.random.default_rng(2)
    values, estimates = [], []
    sizes = np.tile([1, 2, 5, 3], 5)
    groups = [f"{k}" for k in range(20) for _ in range(sizes[k])]
    groups += [f"{k + 8}" for k in range(20) for _ in range(sizes[k])]
    groups += [f"c{k}" for k in range(20) for _ in range(sizes[k])]
    tasks = [task for task in "abc" for _ in range(sizes.sum())]
    layout, labels = Layout.of(tasks, groups), np.unique(groups, return_inverse=True)[1]
    for _ in range(1500):
        effects = rng.normal(size=(labels.max() + 1, 6))
        gradients = 0.7 * np.eye(6)[0] + effects[labels] + 0.5 * rng.normal(size=(len(tasks), 6))
        kernel = Kernel(gradients @ gradients.T)
        values.append(pair_means(kernel, np.ones((1, len(tasks))), layout, Pairs.LEAVE_ONE_OUT)[0])
        estimates.append(pair_mean_variance(kernel, layout, Pairs.LEAVE_ONE_OUT)[0])
    assert_allclose(np.mean(estimates, axis=0), np.var(values, axis=0), rtol=0.2)
    assert_allclose(np.mean(values, axis=0), 0.49, atol=0.03)


def test_bootstrap_weights_draw_whole_groups_and_the_same_ones_for_tasks_that_share_them() -> None:
    _, tasks, groups = sharing()
    weights = bootstrap_weights(tasks, 300, 1, groups)
    for label in set(groups) - {label for label in groups if label.startswith("c")}:
        own = weights[:, [k for k, group in enumerate(groups) if group == label]]
        assert_array_equal(own, np.repeat(own[:, :1], own.shape[1], axis=1))
    of_c = [next(k for k in range(len(groups)) if groups[k] == f"c{label}") for label in range(6)]
    assert_array_equal(weights[:, of_c].sum(axis=1), 6)
    of_a_or_b = [groups.index(str(label)) for label in range(12)]
    assert_array_equal(weights[:, of_a_or_b].sum(axis=1), 12)


def test_every_resample_has_two_groups_of_a_task_however_few_of_the_familys_it_has() -> None:
    tasks = ["a"] * 60 + ["b"] * 2
    weights = bootstrap_weights(tasks, 500, 0, [*range(60), 0, 1])
    assert (weights[:, 60:] > 0).all() and (weights[:, 60:] > 1).any()
    assert_array_equal(weights[:, :2], weights[:, 60:])
    assert_array_equal(weights[:, :60].sum(axis=1), 60)


def test_tasks_too_many_and_small_for_that_count_as_measured() -> None:
    tasks = [f"t{k // 2}" for k in range(60)] + ["b"] * 60
    weights = bootstrap_weights(tasks, 50, 0, [*range(60), *range(60)])
    assert (weights[:, :60].reshape(50, 30, 2).sum(axis=2) >= 2).all()
    assert_array_equal(weights[:, 60:].sum(axis=1), 60)


@pytest.mark.parametrize("shared", [False, True])
def test_a_small_task_that_shares_a_group_with_a_large_one_keeps_its_interval_and_signal(shared: bool) -> None:
    rng = np.random.default_rng(0)
    gradients = 3 * np.eye(50)[0] + 0.1 * rng.normal(size=(305, 50))
    groups = [*range(5), 0 if shared else 5, *range(6, 305)]
    found = table(gradients @ gradients.T, ["a"] * 5 + ["b"] * 300, "delta", groups=groups, replicates=500)
    assert found.low[0, 0] < found.value[0, 0] < found.high[0, 0]
    assert found.verdict[0, 1] == found.verdict[1, 0] == "synergy"


@pytest.mark.parametrize(("count", "signal"), [(2, "no-signal"), (3, "no-signal"), (4, "synergy")])
@pytest.mark.parametrize("grouped", [False, True])
def test_fewer_than_four_groups_have_no_interval_and_are_told(count: int, signal: str, grouped: bool) -> None:
    rng = np.random.default_rng(0)
    size = 10 if grouped else 1
    gradients = 5 * np.eye(60)[0] + 0.3 * rng.normal(size=(count * size + 40, 60))
    tasks = ["a"] * (count * size) + ["b"] * 40
    groups = [*np.repeat(range(count), size).tolist(), *range(100, 140)] if grouped else None
    found = table(gradients @ gradients.T, tasks, groups=groups, replicates=200)
    assert found.verdict[0, 1] == signal and found.verdict[1, 0] == "synergy"
    own = table(gradients @ gradients.T, tasks, "delta", groups=groups, replicates=200)
    assert np.isnan(own.low[0, 0]) == np.isnan(own.high[0, 0]) == (count < 4)
    told = uncertainty.too_few(gradients @ gradients.T, tasks, groups)
    assert told == ({"a": count} if count < 4 else {})


def test_signal_of_groups_is_the_mean_over_pairs_of_different_groups() -> None:
    gram, tasks, groups = sharing()
    found = metrics.signal(gram, tasks, groups)
    for index, task in enumerate(found.tasks):
        own = [k for k in range(len(tasks)) if tasks[k] == task]
        per_unit = [np.mean([gram[u, v] for u in own if groups[u] != groups[v]]) for v in own]
        whole = gram[np.ix_(own, own)].mean()
        assert_allclose(found.squared_norm[index], np.mean(per_unit))
        assert_allclose(found.reliability[index], np.mean(per_unit) / whole)
        assert_allclose(found.snr[index], np.mean(per_unit) / (whole - np.mean(per_unit)))
        assert_allclose(found.unit_noise[index], np.diagonal(gram)[own].mean() - np.mean(per_unit))


def test_ratio_health_is_of_groups() -> None:
    gram, tasks, groups = sharing()
    found = metrics.ratio_health(gram, tasks, groups=groups)
    names = list(dict.fromkeys(tasks))
    for i, affected in enumerate(names):
        labels = dict.fromkeys(group for group, task in zip(groups, tasks, strict=True) if task == affected)
        members = [[k for k in range(len(tasks)) if tasks[k] == affected and groups[k] == one] for one in labels]
        means = np.array([[np.mean([falls(gram, tasks, groups, j, v) for v in own]) for own in members] for j in names])
        assert_allclose(found.nonpositive[i], (means[i] <= 0).mean())
        size = np.abs(means / means[i]) * [len(own) for own in members]
        assert_allclose(found.leverage[i], size.max(axis=1) / size.sum(axis=1))


def test_the_null_is_of_halves_of_groups() -> None:
    gram, tasks, groups = sharing()
    found = split_half_null(gram, tasks, groups=groups, splits=1, seed=5, reduce="ratio-of-means")
    first = found.tasks[0]
    own = [k for k in range(len(tasks)) if tasks[k] == first]
    labels = list(dict.fromkeys(groups[k] for k in own))
    half = np.random.default_rng(5).permuted(np.arange(len(labels))[None] < len(labels) // 2, axis=1)[0]
    chosen = {label for label, taken in zip(labels, half, strict=True) if taken}
    units = [k for k in own if groups[k] in chosen] + [k for k in own if groups[k] not in chosen]
    sides = ["half" if groups[k] in chosen else "other half" for k in units]
    expected = metrics.interference(
        gram[np.ix_(units, units)], sides, reduce="ratio-of-means", groups=[groups[k] for k in units]
    )
    assert_allclose(found.mean[0], expected[0, 1])


def test_a_comparison_of_a_run_with_itself_by_groups_has_not_changed() -> None:
    gram, tasks, groups = sharing()
    for metric in ("delta", "interference", "cosine"):
        found = compare(gram, gram, tasks, metric, groups=groups, replicates=50)
        assert_array_equal(found.difference, np.zeros((3, 3)))
        assert (found.verdict == "unclear").all()


@pytest.mark.parametrize("metric", ["delta", "interference", "cosine"])
def test_runs_are_resampled_alike_whichever_of_them_has_groups_and_in_any_order(metric: str) -> None:
    gram, tasks, groups = sharing()  # tasks in turn
    other = gram * 1.1 + np.diag(np.arange(len(tasks)) / 50)
    expected = compare(gram, other, tasks, metric, groups=groups, groups_b=groups, replicates=100)
    for one, two in ((None, groups), (groups, None), ([f"{label} {label}" for label in groups], groups)):
        found = compare(gram, other, tasks, metric, groups=one, groups_b=two, replicates=100)
        assert_array_equal(found.low, expected.low)
    order = sorted(range(len(tasks)), key=lambda k: list(dict.fromkeys(tasks)).index(tasks[k]))
    squares = [one[np.ix_(order, order)] for one in (gram, other)]
    labels = [groups[k] for k in order]
    found = compare(*squares, [tasks[k] for k in order], metric, groups_b=labels, replicates=100)
    assert_allclose(found.low, expected.low)


def test_groups_that_leave_a_task_one_group_when_taken_together_are_not_compared() -> None:
    gram, tasks = recorded("golden")
    halves = [k % 20 // 10 for k in range(20)]
    crossed = [k % 2 for k in range(20)]
    rest = list(range(2, 42))
    message = (
        "the groups of both runs, taken together, leave task 'a' a single one, so that no two of its units are "
        "independent in both; compute both with the same `group`"
    )
    for one, two in ((halves, crossed), (crossed, halves)):
        with pytest.raises(ScopeError, match=message):
            compare(gram, gram, tasks, groups=one + rest, groups_b=two + rest)


def test_copies_of_one_example_share_a_group_where_units_have_groups() -> None:
    gram, tasks, groups = sharing()
    first_a, first_c = tasks.index("a"), tasks.index("c")
    same = np.arange(len(tasks))
    same[first_c] = first_a
    gram = gram[np.ix_(same, same)]
    merged = [groups[first_a] if label == groups[first_c] else label for label in groups]
    assert_allclose(metrics.delta(gram, tasks, groups=groups), literal(gram, tasks, merged, None))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([1] * 59, "groups has 59 labels, but there are 60 units: give one per unit"),
        (
            [1] * 20 + list(range(2, 42)),
            "the 20 units of task 'a' are 1 group, but at least 2 are needed: give it examples that share nothing with "
            "these, or leave out its groups if its examples are independent",
        ),
    ],
)
def test_groups_that_cannot_be_used_say_why(groups: list[int], message: str) -> None:
    gram, tasks = recorded("golden")
    for call in (uncertainty.table, metrics.delta, metrics.signal, split_half_null):
        with pytest.raises(ScopeError, match=message):
            call(gram, tasks, groups=groups)


def test_the_null_needs_four_groups() -> None:
    gram, tasks = recorded("golden")
    with pytest.raises(ScopeError, match="a split-half null needs 4 groups per task, but 'a' has 3"):
        split_half_null(gram, tasks, groups=[*np.arange(20) // 7, *range(20, 60)])
