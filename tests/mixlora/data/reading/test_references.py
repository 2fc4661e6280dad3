"""Records with several accepted answers, and which of them is supervised."""

import pytest

from tests.support.records import read, refusal, write

TEN = ["net", "net", "net", "racket", "net", "mesh", "", "net", "racket", "net"]


@pytest.mark.parametrize(
    ("answers", "supervised", "references"),
    [
        ({"target": ["Red", "Crimson"]}, "Red", ("Red", "Crimson")),
        ({"target": ["Rouge", "Red", "Crimson", "Red"]}, "Red", ("Rouge", "Red", "Crimson", "Red")),
        ({"response": ["b", "a", "a", "b"]}, "b", ("b", "a", "a", "b")),
        ({"answers": TEN}, "net", tuple(TEN)),
        ({"answers": [{"answer": text, "answer_id": at} for at, text in enumerate(TEN)]}, "net", tuple(TEN)),
        ({"references": ["Red"]}, "Red", ("Red",)),
        ({"target": "Scarlet", "answers": ["Red", "Red"]}, "Scarlet", ("Red", "Red")),
        ({"response": "Scarlet", "references": ["Red"]}, "Scarlet", ("Red",)),
        ({"target": None, "answers": ["Red"]}, "Red", ("Red",)),
        ({"target": "Scarlet", "references": None, "answers": None}, "Scarlet", ()),
        ({"target": ["", " ", "", "Red"]}, "Red", ("", " ", "", "Red")),
    ],
)
def test_the_most_frequent_answer_is_supervised_unless_one_is_given(tmp_path, answers, supervised, references):
    file = write(tmp_path, {"unique_id": "u1", "prompt": "What?", "image_path": None, **answers})
    (example,) = read(file)
    assert (example.id, example.turns[-1].text, example.references) == ("u1", supervised, references)


def test_conversations_list_no_answers(tmp_path):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Red"}]
    file = write(tmp_path, {"conversations": turns, "references": ["https://a.b"]})
    assert refusal(file).startswith(
        "records.jsonl:1: references is ['https://a.b'], which is not read together with conversations; set ignore: "
    )
    (example,) = read(file, ignore=["references"])
    assert example.references == ()


def test_other_names_of_the_lists(tmp_path):
    file = write(tmp_path, {"question": "What?", "ten": ["Red", "Blue", "Blue"], "human": ["x"]})
    (example,) = read(file, fields={"prompt": "question", "response": "ten"})
    assert (example.turns[-1].text, example.references) == ("Blue", ("Red", "Blue", "Blue"))
    (example,) = read(file, fields={"prompt": "question", "references": "human"})
    assert (example.turns[-1].text, example.references) == ("x", ("x",))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"target": []}, "target is []; write a list of at least one answer."),
        ({"answers": []}, "answers is []; write a list of at least one answer."),
        ({"target": "Red", "references": "Red"}, "references is 'Red'; write a list of at least one answer."),
        ({"target": "Red", "answers": {"text": "Red"}}, "answers is {'text': 'Red'}; write a list of at least one"),
        (
            {"response": "Red", "answers": ["Red"]},
            "answers is ['Red'], which is not read together with prompt, response; set",
        ),
        ({"target": ["Red", [3]]}, "the text of answer 2 of target is [3], a list; write it as a string."),
        ({"answers": [{"text": "Red"}]}, "the text of answer 1 of answers is None, a NoneType; write it as a string."),
        ({"target": {"a": 7}, "answers": ["7"]}, "the text of target is {'a': 7}, a dict; write it as a string."),
        ({"target": ["", " "]}, "an answer is empty, so there is nothing to learn; fill it or drop the record."),
    ],
)
def test_answers_that_cannot_be_used(tmp_path, answers, message):
    file = write(tmp_path, {"prompt": "What?", **answers})
    assert refusal(file).startswith(f"records.jsonl:1: {message}")
