"""The draw depends on ids, task and seed alone."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlora.common.errors import DataError
from mixlora.data.examples import Example, Turn
from mixlora.data.sampling import sample


def examples(ids) -> list[Example]:
    return [Example(str(i), "t", (Turn("user", "q"), Turn("assistant", "a")), None, f"f:{i}") for i in ids]


def ids(drawn: list[Example]) -> list[str]:
    return [example.id for example in drawn]


@given(st.lists(st.text(), unique=True, min_size=1, max_size=30), st.integers(1, 40), st.integers(), st.randoms())
def test_the_order_of_the_file_does_not_matter_and_nothing_is_drawn_twice(names, count, seed, shuffler):
    given_order = examples(names)
    shuffled = list(given_order)
    shuffler.shuffle(shuffled)
    drawn = ids(sample(given_order, count, seed, "t"))
    assert drawn == ids(sample(shuffled, count, seed, "t"))
    assert len(set(drawn)) == len(drawn) == min(count, len(names))


def test_a_larger_count_extends_the_draw_and_a_new_record_displaces_at_most_one():
    pool = examples(range(100))
    ten = ids(sample(pool, 10, 0, "t"))
    assert ids(sample(pool, 20, 0, "t"))[:10] == ten
    assert len(set(ten) - set(ids(sample(examples(range(101)), 10, 0, "t")))) <= 1


def test_seed_and_task_change_the_draw():
    pool = examples(range(1000))
    draws = [ids(sample(pool, 10, seed, task)) for seed, task in [(0, "t"), (1, "t"), (0, "u"), (10, "t")]]
    assert len({tuple(draw) for draw in draws}) == 4
    assert draws[0] == [
        "553",
        "153",
        "959",
        "379",
        "29",
        "745",
        "997",
        "77",
        "473",
        "478",
    ]  # kept as it is: runs are repeated by it


def test_every_example_is_drawn_equally_often():
    pool = examples(range(10))
    counts = dict.fromkeys(ids(pool), 0)
    for seed in range(2000):
        for name in ids(sample(pool, 3, seed, "t")):
            counts[name] += 1
    # 600 expected, standard deviation sqrt(2000 * 0.3 * 0.7) = 20.5
    assert all(abs(count - 600) < 4 * 20.5 for count in counts.values())


def test_the_ids_and_not_the_positions_decide():
    pool = examples(range(50))
    random.Random(0).shuffle(pool)
    assert sample(pool, 50, 3, "t") == sample(examples(range(50)), 50, 3, "t")


@pytest.mark.parametrize("count", [0, -3])
def test_a_count_below_one_is_refused(count):
    with pytest.raises(DataError, match=f"Task t: {count} examples were asked for; ask for at least 1"):
        sample(examples(range(3)), count, 0, "t")
