"""Groups are drawn first, then examples: as many groups as there can be, of tasks together, apart or by themselves."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mixlora.common.errors import DataError
from mixlora.data.draws import draw, packed
from mixlora.data.examples import Example, Turn

PICTURES = [f"p{k}" for k in range(20)]


def pool(task, groups, each=1, first=0):
    """`each` examples of every group; None is an example without one."""
    turns = (Turn("user", "q"), Turn("assistant", "a"))
    named = [group for group in groups for _ in range(each)]
    return [Example(f"{task}{first + k}", task, turns, (), f"f:{k}", group=group) for k, group in enumerate(named)]


def drawn(pools, count, paired=None, seed=0):
    modes = paired if isinstance(paired, dict) else dict.fromkeys(pools, paired)
    return draw(pools, dict.fromkeys(pools, "picture"), count, seed, modes)


def groups(examples):
    return [example.group for example in examples]


def overlap(found):
    """Shares of groups that the first two tasks have in common, as `Run.overlap` has them."""
    first, second = (set(groups(own)) for own in list(found.values())[:2])
    return len(first & second) / len(first), len(first & second) / len(second)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=12), st.integers(2, 40), st.integers(0, 9), st.randoms())
def test_every_group_gives_one_example_before_any_gives_a_second(sizes, count, seed, shuffler):
    examples = [example for k, size in enumerate(sizes) for example in pool(f"t{k}-", [f"p{k}"], size)]
    found = drawn({"t": examples}, count, seed=seed)["t"]
    assert len(found) == len({example.id for example in found}) == min(count, sum(sizes))
    often = [groups(found).count(f"p{k}") for k in range(len(sizes))]
    left = [size - number for size, number in zip(sizes, often, strict=True)]
    assert all(number >= max(often) - 1 for number, more in zip(often, left, strict=True) if more)
    shuffled = list(examples)
    shuffler.shuffle(shuffled)
    assert found == drawn({"t": shuffled}, count, seed=seed)["t"]  # the order of a file does not matter
    assert found == drawn({"t": examples}, count + 3, seed=seed)["t"][: len(found)]  # more extend the sample


def test_groups_are_drawn_alike_whatever_their_size():
    first = [
        groups(drawn({"t": pool("t", ["small"]) + pool("u", ["large"], 9)}, 1, seed=k)["t"])[0] for k in range(400)
    ]
    assert 150 < first.count("small") < 250  # binomial, 5 sigma


def test_seed_and_task_change_the_draw_and_examples_without_a_group_are_their_own():
    pools = {"a": pool("a", PICTURES, 3), "b": pool("b", PICTURES, 3)}
    orders = [groups(found) for seed in (0, 1) for found in drawn(pools, 10, seed=seed).values()]
    assert len({tuple(order) for order in orders}) == 4
    alone = pool("c", [None] * 6 + ["p"] * 6)
    assert sorted(map(str, groups(drawn({"c": alone}, 7)["c"]))) == ["None"] * 6 + ["p"]


def test_groups_that_another_task_connects_are_one(tmp_path):
    turns = (Turn("user", "q", places=(0,)), Turn("assistant", "a"))
    files = [tmp_path / f"{k}.png" for k in range(4)]
    for k, file in enumerate(files):
        Image.new("RGB", (4, 4), (60 * min(k, 2), 0, 0)).save(file)  # the last two are one picture by content

    def seen(task, *shown):
        return [Example(f"{task}{n}", task, turns, tuple(files[k] for k in own), "f") for n, own in enumerate(shown)]

    pools = {"s": seen("s", [0], [1], [2], [3]), "t": seen("t", [0, 1])}
    for seed in range(8):
        found = draw(pools, dict.fromkeys(pools, "image"), 2, seed, dict.fromkeys(pools))["s"]
        assert {one.id in ("s0", "s1") for one in found} == {True, False}
    files[0].unlink()
    with pytest.raises(DataError, match=r"^f: a picture cannot be read: No such file or directory"):
        draw(pools, dict.fromkeys(pools, "image"), 2, 0, dict.fromkeys(pools))


@pytest.mark.parametrize(
    ("first", "second", "count", "mode", "expected"),
    [
        (PICTURES, PICTURES, 10, True, (1.0, 1.0)),
        (PICTURES, PICTURES, 30, True, (1.0, 1.0)),
        (PICTURES[:12], PICTURES[2:], 10, True, (1.0, 1.0)),  # ten in common
        (PICTURES[:15], PICTURES[10:], 8, True, (5 / 8, 5 / 8)),  # five in common
        (PICTURES, PICTURES, 10, False, (0.0, 0.0)),
        (PICTURES, PICTURES, 20, False, (0.0, 0.0)),  # two examples of each of ten groups
        (PICTURES[:15], PICTURES[5:], 10, False, (0.0, 0.0)),
        (PICTURES[:4], PICTURES, 8, False, (0.0, 0.0)),  # the second leaves the four to the first
    ],
)
def test_paired_tasks_share_what_they_can_and_tasks_apart_nothing_where_possible(first, second, count, mode, expected):
    for seed in range(5):
        found = drawn({"a": pool("a", first, 2), "b": pool("b", second, 2)}, count, mode, seed)
        assert all(len(own) == min(count, 2 * len(of)) for own, of in zip(found.values(), (first, second), strict=True))
        assert overlap(found) == expected


def test_tasks_by_themselves_share_by_chance():
    shares = [
        overlap(drawn({"a": pool("a", PICTURES, 2), "b": pool("b", PICTURES, 2)}, 10, None, k))[0] for k in range(60)
    ]
    assert 0.4 < sum(shares) / 60 < 0.6


def test_one_task_apart_leaves_the_draws_of_the_others():
    pools = {name: pool(name, PICTURES, 2) for name in ("a", "b", "c")}
    by_itself = drawn(pools, 6)
    found = drawn(pools, 6, {"a": None, "b": None, "c": False})
    assert (found["a"], found["b"]) == (by_itself["a"], by_itself["b"])
    assert not set(groups(found["c"])) & {*groups(found["a"]), *groups(found["b"])}
    mixed = drawn(pools, 6, {"a": True, "b": True, "c": False})
    assert groups(mixed["a"]) == groups(mixed["b"]) and not set(groups(mixed["c"])) & set(groups(mixed["a"]))


def test_three_tasks_apart_divide_their_groups_evenly():
    found = drawn({name: pool(name, PICTURES[:18], 2) for name in ("a", "b", "c")}, 12, False)
    held = [set(groups(own)) for own in found.values()]
    assert [len(own) for own in held] == [6, 6, 6] and len(set.union(*held)) == 18


def test_paired_tasks_without_a_common_group_are_refused():
    with pytest.raises(DataError) as told:
        drawn({"a": pool("a", PICTURES[:5]), "b": pool("b", PICTURES[5:])}, 3, True)
    assert (
        str(told.value) == "paired is true, but 'a' and 'b' have no group in common in their files; leave paired out."
    )


def test_a_paired_task_that_shares_nothing_is_refused_by_name():
    pools = {"a": pool("a", PICTURES[:5]), "b": pool("b", PICTURES[:5]), "c": pool("c", PICTURES[5:])}
    with pytest.raises(DataError) as told:
        drawn(pools, 3, True)
    assert str(told.value) == (
        "paired is true, but 'c' has no group in common with 'a' or 'b' in their files; give it paired: false."
    )
    kinds = dict.fromkeys(pools, "picture")
    modes = dict.fromkeys(pools, True)
    assert len(draw(pools, kinds | {"c": "none"}, 3, 0, modes)["c"]) == 3  # it asks for no groups
    assert len(draw(pools, kinds, 3, 0, modes | {"c": False})["c"]) == 3


def test_a_unit_is_of_one_group_where_it_can_be():
    drawn_order = list("abcabcabcd")
    assert packed(drawn_order, [[name] for name in drawn_order], 3) == list("aaabbbcccd")
    assert packed(drawn_order, [[name] for name in drawn_order], 2) == list("aabbccabcd")
    assert packed(list("dcba"), [[], [], [], []], 2) == list("dcba")
    shuffled = random.Random(0).sample(drawn_order, 10)
    assert packed(shuffled, [[name] for name in shuffled], 1) == sorted(shuffled, key=shuffled.index)
