"""The arms of a trial: equal steps and examples by arithmetic, random splits, parameters, and what does not divide."""

import math
from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interference.advice import arms as library
from interference.advice.arms import arms, check_steps, config_of, others_of, possible, split_of, spread
from interference.errors import ConfigError
from mixlora.common import settings
from mixlora.training.config import TrainConfig

TASKS = list("abcdef")
GROUPS = [["e", "b", "a"], ["f", "d", "c"]]


def trained(**sections):
    values = {"method": "lora", "model": {"base": "b"}, "tasks": {"a": {"file": "f"}}, "lora": {"r": 4, "alpha": 6}}
    return settings.build(TrainConfig, values | sections, "the test")


def counted_by_hand(tasks, sizes):
    """All splits into groups of these sizes, by trying every order of the tasks."""
    ends = list(pairwise(sum(sizes[:k]) for k in range(len(sizes) + 1)))
    return {frozenset(frozenset(order[a:b]) for a, b in ends) for order in permutations(tasks)}


@pytest.mark.parametrize("sizes", [[3, 3], [2, 4], [1, 5], [2, 2, 2], [1, 2, 3], [1, 1, 4], [6], [1] * 6])
def test_how_many_splits_there_are(sizes):
    parts, left = [], list(TASKS)
    for size in sizes:
        parts.append(left[:size])
        left = left[size:]
    assert possible(split_of(parts, TASKS)) == len(counted_by_hand(TASKS, sizes))


def test_random_splits_are_others_of_the_same_sizes():
    own = split_of(GROUPS, TASKS)
    assert own == (("a", "b", "e"), ("c", "d", "f"))
    found = others_of(own, 5, 7)
    assert len(set(found)) == 5 and own not in found and found == others_of(own, 5, 7) != others_of(own, 5, 8)
    assert all(sorted(map(len, split)) == [3, 3] and sorted(sum(split, ())) == TASKS for split in found)
    assert len(others_of(own, 50, 7)) == possible(own) - 1 == 9  # all that there are
    assert others_of((("a",), ("b",)), 5, 7) == []


def test_every_split_is_as_likely():
    """Of sizes 1 and 3 there are three others, drawn one at a time."""
    own = (("a",), ("b", "c", "d"))
    counts = {}
    for seed in range(600):
        (split,) = others_of(own, 1, seed)
        counts[split] = counts.get(split, 0) + 1
    assert len(counts) == 3 and all(150 < count < 250 for count in counts.values())


def test_all_arms():
    found = {arm.name: arm for arm in arms(TASKS, GROUPS, 2, 0)}
    names = ["together", "advised groups", "random groups 1", "random groups 2", "specialists"]
    assert list(found) == [*names, "together, 2 times the rank", "mixlora"]
    assert [piece.tasks for piece in found["advised groups"].pieces] == [("a", "b", "e"), ("c", "d", "f")]
    assert [piece.tasks for piece in found["specialists"].pieces] == [(task,) for task in TASKS]
    (large,), (mixed,) = (found[name].pieces for name in ["together, 2 times the rank", "mixlora"])
    assert (large.method, large.size, mixed.method, mixed.size) == ("lora", 2, "mixlora", 2)
    assert all(sorted(task for piece in arm.pieces for task in piece.tasks) == TASKS for arm in found.values())


def test_arms_without_a_split_and_with_one_into_single_tasks():
    none = [arm.name for arm in arms(TASKS, [], 5, 0)]
    assert none == ["together", "specialists", "together, 6 times the rank", "mixlora"]
    single = [arm.name for arm in arms(["a", "b"], [["a"], ["b"]], 5, 0)]
    assert single == ["together", "advised groups", "together, 2 times the rank", "mixlora"]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 4))
def test_every_task_is_seen_as_often_in_every_arm(sizes, multiple, share):
    """In steps times examples in a step, for any groups whose numbers divide."""
    count, total = sum(sizes), sum(sizes) * multiple
    share *= spread(sizes, count)
    seen = {(share * count / size) * (total * size / count) for size in [*sizes, 1, count]}
    assert seen == {share * total}
    assert all((share * count) % size == 0 and (total * size) % count == 0 for size in sizes)
    assert spread(sizes, count) == math.lcm(*(size // math.gcd(size, count) for size in sizes))


def test_what_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"trial.steps is 20, but must be a multiple of the 6 tasks: .*; write 24"):
        check_steps(20, 2, GROUPS, TASKS)
    with pytest.raises(
        ConfigError, match=r"trial.share is 3, but must be a multiple of 2: .* of 2 and 4 tasks; write 4"
    ):
        check_steps(24, 3, [["a", "b"], ["c", "d", "e", "f"]], TASKS)
    check_steps(24, 2, [["a", "b"], ["c", "d", "e", "f"]], TASKS)


@pytest.mark.parametrize(("rslora", "alpha"), [(False, 12), (True, 8)])
def test_more_ranks_keep_their_scale(rslora, alpha):
    """Alpha / r stays 6 / 4; alpha / sqrt(r) as near as whole numbers are: 6 * sqrt(2) is 8.5."""
    found = config_of(library.Piece("lora", 2, ()), trained(lora={"r": 4, "alpha": 6, "rslora": rslora}))
    assert (found.method, found.lora.r, found.lora.alpha, found.lora.rslora) == ("lora", 8, alpha, rslora)


def test_a_mixlora_has_as_many_factors_as_the_groups_have_ranks():
    found = config_of(library.Piece("mixlora", 3, ()), trained(mixlora={"r": 2, "conditional": False}))
    assert (found.method, found.mixlora.r, found.mixlora.num_factors, found.mixlora.alpha) == ("mixlora", 4, 12, 6)
    assert not found.mixlora.conditional
    assert config_of(library.Piece("mixlora", 3, ()), trained(mixlora={"alpha": 9})).mixlora.alpha == 9
