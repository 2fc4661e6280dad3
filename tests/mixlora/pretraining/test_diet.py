"""The pictures and sentences that the mini base learns: none of the tasks', and captions that tell all the facts."""

from random import Random

import pytest

from mixlora.data import mini
from mixlora.data.mini import draw
from mixlora.pretraining import diet


def test_no_stroop_picture_and_no_question_of_the_tasks_is_in_the_diet():
    tasks = {one.turns[0].text for task in mini.TASKS for one in mini.examples(task, "train", 40)}
    rng = Random(0)
    for picture in diet.pictures("train", 1000, seed=0):
        if picture.facts.get("word") in draw.INKS:
            assert picture.facts["ink"] in draw.PLAIN_INKS
        assert not tasks & {question for question, _ in diet.conversation(rng, picture.facts, 20)}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"digit": "seven"}, "a handwritten seven"),
        ({"shape": "circle", "colour": "teal"}, "a teal circle"),
        ({"word": "tree", "ink": "red", "style": "bold"}, "the bold word tree in red"),
        ({"word": "tree", "board": "red", "style": "bold"}, "the bold word tree in white on a red board"),
        ({"letter": "q", "ink": "pink", "style": "mono"}, "the mono letter q in pink"),
        (
            {"first": "circle", "second": "triangle", "first_ink": "red", "second_ink": "blue", "relation": "left"},
            "a red circle left of a blue triangle",
        ),
    ],
)
def test_a_caption_tells_all_the_facts(facts, expected):
    assert diet.caption(facts) == expected
