"""Keys within messages: what keeps a turn out of the loss, what is refused by name, what is only told."""

import json

import pytest

from mixlora.data.described import of_task, sentences
from mixlora.data.reading.problems import Noted
from mixlora.data.sources import examples_of
from tests.support.records import refusal, task_of


def written(tmp_path, **answer):
    """A file of one record whose second answer has more keys."""
    turns = [("user", "Q"), ("assistant", "A"), ("user", "R"), ("assistant", "B")]
    messages = [{"role": role, "content": text} for role, text in turns]
    messages[3] |= answer
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": messages}))
    return path


def read(path, **keys):
    noted = Noted()
    (example,) = examples_of("t", task_of(file=path, **keys), None, 0, None, noted)["t"]
    return example, noted


@pytest.mark.parametrize("key", ["weight", "train", "loss", "trainable", "training"])
def test_a_turn_is_context_where_a_key_says_so(tmp_path, key):
    for value, expected in ((0, False), (False, False), (1, True), (True, True)):
        example, noted = read(written(tmp_path, **{key: value}))
        assert [turn.supervised for turn in example.turns] == [True, True, True, expected]
        assert noted.json() == {"skipped": {}, "unread_keys": []}
    assert read(written(tmp_path, **{key: 0}), ignore=[key])[0].turns[3].supervised


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("mask", True), ("masked", True), ("loss_weight", 0.5), ("loss_mask", [0]), ("prefix", True)),
        *(("train_detail", [{"begin_offset": 0, "end_offset": 2, "train": False}]), ("thought", "hm")),
    ],
)
def test_a_key_of_a_message_that_says_what_is_trained_on_is_refused_or_ignored(tmp_path, key, value):
    path = written(tmp_path, **{key: value})
    said = refusal(path)
    assert said.startswith(
        f"x.jsonl:1: message 4 has {key} {value!r:.60}, which is not supported there; remove it, or set "
    )
    assert said.endswith(f"ignore: [{key}].")
    assert [turn.text for turn in read(path, ignore=[key])[0].turns] == ["Q", "A", "R", "B"]


@pytest.mark.parametrize("key", ["mask", "masked", "prefix"])
def test_a_flag_that_is_false_means_nothing(tmp_path, key):
    example, noted = read(written(tmp_path, **{key: False}))
    assert example.turns[3].supervised and noted.json()["unread_keys"] == []


def test_other_keys_of_messages_are_told_once(tmp_path):
    assert read(written(tmp_path, wieght=0, id=7, empty=None))[1].json()["unread_keys"] == [
        "messages[].id", "messages[].wieght",
    ]  # fmt: skip
    assert read(written(tmp_path, id=7), ignore=["id"])[1].json()["unread_keys"] == []


def test_a_part_has_no_weight_of_its_own(tmp_path):
    part = {"type": "text", "text": "B", "weight": 0}
    said = refusal(written(tmp_path, content=[part]))
    assert said == (
        "x.jsonl:1: message 4 has a part with weight 0; only whole messages can be left out of the loss; write it "
        "there, or set ignore: [weight]."
    )
    assert read(written(tmp_path, content=[part]), ignore=["weight"])[0].turns[3].text == "B"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "p", "response": "r", "loss_mask": 0}, "loss_mask is 0, which is not read together with prompt"),
        (
            {"prompt": "p", "completion": "c", "suffix": "s"},
            "suffix is 's', which is not read together with completion",
        ),
        (
            {"text": "t", "assistant_masks": [0]},
            "assistant_masks is [0], which is not read together with text; set ignor",
        ),
        ({"prompt": "p", "completion": "c", "label": False}, "label marks completions as wanted or not, which is n"),
        (
            {"segments": [{"label": True, "text": "x"}]},
            "the record has an unknown shape, with the keys segments; supported",
        ),
        ({"prompt": "p", "completion": ["a", "b"]}, "completion is ['a', 'b']; write a text, or a list of messages."),
    ],
)
def test_keys_of_a_record_that_say_what_is_trained_on_are_refused(tmp_path, record, said):
    (tmp_path / "x.jsonl").write_text(json.dumps(record))
    assert refusal(tmp_path / "x.jsonl").startswith(f"x.jsonl:1: {said}")


def test_several_answers_are_told(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": "p", "response": ["a", "b", "b"]}))
    example, _ = read(tmp_path / "x.jsonl")
    assert (example.turns[1].text, example.references) == ("b", ("a", "b", "b"))
    data = {"tasks": {"t": of_task([example], 0, Noted(), marked=1)}}
    assert sentences(data) == [
        "task 't': messages of 1 of 1 examples contain special tokens of the model, which are read as text here; "
        "SFTTrainer reads them as the tokens",
        "task 't': 1 of 1 examples list several answers; the conversation ends with one of them",
    ]


def test_the_fields_of_dolly(tmp_path):
    record = {"instruction": "I", "context": "C", "response": "R", "category": "qa"}
    (tmp_path / "x.jsonl").write_text(json.dumps(record))
    fields = {"instruction": "instruction", "input": "context", "output": "response"}
    example, noted = read(tmp_path / "x.jsonl", fields=fields)
    assert [turn.text for turn in example.turns] == ["I\nC", "R"]
    assert noted.json()["unread_keys"] == ["category"]
