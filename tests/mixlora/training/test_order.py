"""Epochs: who comes, how often, and with whom."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlora.common.errors import ConfigError
from mixlora.data.examples import Example
from mixlora.training.corpus import Corpus
from mixlora.training.order import Epochs, apportioned, draw


def corpus(counts, lengths=None, weights=None):
    tasks = [task for task, count in counts.items() for _ in range(count)]
    examples = [Example(str(k), task, (), (), "s") for k, task in enumerate(tasks)]
    return Corpus(examples, lengths or list(range(1, len(tasks) + 1)), weights or {})


@given(
    counts=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 30), min_size=1),
    order=st.sampled_from(["length", "shuffled", "task"]),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_everyone_comes_each_epoch_and_batches_are_whole(counts, order, batch_size, seed):
    known = corpus(counts)
    batch_size = min(batch_size, len(known.tasks))
    epochs = Epochs(known, order, batch_size, seed)
    found = list(epochs)
    assert len(found) == len(epochs) and len(found) % batch_size == 0
    assert set(found) == set(range(len(known.tasks)))
    batches = len(found) // batch_size
    if order == "task":
        assert batches == sum(-(-count // batch_size) for count in counts.values())
    else:
        assert batches == -(-len(known.tasks) // batch_size)
        assert max(Counter(found).values()) <= 2


@given(seed=st.integers(0, 20), batch_size=st.integers(2, 7))
@settings(max_examples=30, deadline=None)
def test_a_batch_of_one_task_is_of_one_task(seed, batch_size):
    known = corpus({"a": 13, "b": 5, "c": 8})
    found = np.array(list(Epochs(known, "task", batch_size, seed))).reshape(-1, batch_size)
    assert all(len({known.tasks[place] for place in batch}) == 1 for batch in found)


@given(
    counts=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 30), min_size=1),
    each=st.integers(1, 4),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_a_balanced_batch_has_equally_many_of_every_task_in_turn(counts, each, seed):
    known = corpus(counts)
    each = min(each, len(known.tasks) // len(counts))
    epochs = Epochs(known, "balanced", each * len(counts), seed)
    found = np.array(list(epochs)).reshape(-1, len(counts), each)  # [batches, tasks, examples]
    assert len(found) == -(-len(known.tasks) // (each * len(counts)))  # as many as in other orders
    for batch in found:
        assert [{known.tasks[place] for place in own} for own in batch] == [{task} for task in counts]
    for place, count in enumerate(counts.values()):
        taken = Counter(found[:, place].flat)
        assert max(taken.values()) - min([*taken.values(), *[0] * (len(taken) < count)]) <= 1
    assert sum(epochs.taken(len(found)).values()) == found.size


def test_an_epoch_is_the_same_again_and_the_next_one_is_another():
    epochs, again = (Epochs(corpus({"a": 40}), "length", 4, 7) for _ in range(2))
    first = list(epochs)
    assert first == list(epochs) == list(again)
    again.set_epoch(1)
    assert list(again) != first and sorted(again) == sorted(first)
    assert list(Epochs(corpus({"a": 40}), "length", 4, 8)) != first


def test_batches_by_length_spare_padding_and_come_in_random_order():
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 1000, size=4000).tolist()
    known = corpus({"a": 4000}, lengths)

    def padding(order):
        batches = np.array(lengths)[list(Epochs(known, order, 8, 0))].reshape(-1, 8)
        return 1 - batches.sum() / (8 * batches.max(axis=1).sum())

    assert padding("length") < 0.02 < 0.3 < padding("shuffled")
    longest = np.array(lengths)[list(Epochs(known, "length", 8, 0))].reshape(-1, 8).max(axis=1)
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.1


def test_weights_say_how_much_of_an_epoch_a_task_has():
    known = corpus({"a": 90, "b": 10}, weights={"a": 1.0, "b": 3.0})
    found = Counter(known.tasks[place] for place in Epochs(known, "shuffled", 10, 0))
    assert found == {"a": 25, "b": 75}
    places = Counter(place for place in Epochs(known, "shuffled", 10, 0) if known.tasks[place] == "b")
    assert set(places.values()) == {7, 8} and len(places) == 10  # each comes again only when all have come


@given(total=st.integers(0, 500), weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=9))
def test_apportioned_numbers_add_up_and_stray_by_less_than_one(total, weights):
    found = apportioned(total, weights)
    assert sum(found) == total
    assert all(abs(n - total * w / sum(weights)) < 1 + 1e-6 for n, w in zip(found, weights, strict=True))


def test_draws_go_through_all_before_anyone_comes_again():
    drawn = draw(np.random.default_rng(0), np.arange(5), 13)
    assert sorted(drawn[:5]) == sorted(drawn[5:10]) == list(range(5)) and len(set(drawn[10:])) == 3


def test_what_is_taken_is_counted_over_epochs():
    known = corpus({"a": 9, "b": 5}, weights={"a": 1.0, "b": 2.0})
    epochs, seen = Epochs(known, "shuffled", 4, 0), Counter()
    for epoch, batches in ((0, 4), (1, 2)):
        epochs.set_epoch(epoch)
        seen.update(known.tasks[place] for place in list(epochs)[: 4 * batches])
    assert epochs.taken(6) == seen and sum(seen.values()) == 24


def test_a_batch_larger_than_all_there_is():
    with pytest.raises(
        ConfigError, match=r"^training.batch_size is 8, but there are only 5 examples; choose a smaller one$"
    ):
        Epochs(corpus({"a": 5}), "shuffled", 8, 0)
