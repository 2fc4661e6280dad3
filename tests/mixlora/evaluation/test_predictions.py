"""Predictions from files: this project's, the release's, and those that cannot be used."""

import json

import pytest

from mixlora.common.errors import DataError
from mixlora.evaluation.predictions import Prediction, read

RECORD = {"question_id": "a", "prompt": "What?", "predict": "red", "target": "Red"}


def write(folder, *lines, end="\n"):
    path = folder / "colors.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + end, encoding="utf-8")
    return path


def refusal(path):
    with pytest.raises(DataError) as error:
        read(path)
    return str(error.value)


def test_what_is_written_is_read_back(tmp_path):
    own = [
        Prediction("a", "ink", "What?\n", "rouge é", "red", ("red", "crimson"), "images/a.png"),
        Prediction("b", "ink", "What?", "", "red"),
        Prediction("c", "ink", "What?", "", "red", group="d41d"),
    ]
    assert "group" not in own[1].to_record() and own[2].to_record()["group"] == "d41d"
    assert "references" not in own[1].to_record()
    assert list(own[0].to_record())[:5] == ["question_id", "prompt", "predict", "target", "image_path"]
    assert read(write(tmp_path, *(one.to_record() for one in own)), task="other") == own


def test_a_file_of_the_release(tmp_path):
    record = RECORD | {"question_id": 7, "target": 3, "image_path": "/x/7.png"}
    path = write(tmp_path, record | {"answer_id": "X9", "model_id": "m", "metadata": {}})
    wanted = Prediction("7", "colors", "What?", "red", "3", (), "/x/7.png")
    assert read(path) == [wanted]
    assert read(path, task="mnist")[0].task == "mnist"


def test_blank_lines_and_a_mark_of_the_encoding_are_passed_over(tmp_path):
    path = write(tmp_path, "\ufeff" + json.dumps(RECORD), "", end="\n\n")
    assert [one.question_id for one in read(path)] == ["a"]


def test_an_unfinished_last_line_is_told_as_one(tmp_path):
    path = write(tmp_path, RECORD, json.dumps(RECORD | {"question_id": "b", "predict": "é"}, ensure_ascii=False))
    data = path.read_bytes()
    for kept in range(data.index(b"\n") + 2, len(data) - 1):  # wherever the writer was killed, also within a letter
        path.write_bytes(data[:kept])
        assert refusal(path).startswith("colors.jsonl:2: the last line is unfinished")
    path.write_bytes(data[:-1])
    assert [one.question_id for one in read(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{oops}", "colors.jsonl:2: invalid JSON (Expecting property name enclosed in double quotes)"),
        ("[" * 100_000, "colors.jsonl:2: invalid JSON"),
        (
            "[1]",
            "colors.jsonl:2: found a list, but a line must be an object with question_id, prompt, predict, target.",
        ),
        ({"question_id": "b"}, "colors.jsonl:2: no 'prompt'; a prediction has question_id, prompt, predict, target."),
        (RECORD | {"target": None}, "colors.jsonl:2: no 'target'"),
        (RECORD | {"predict": ["x"]}, "colors.jsonl:2: predict is ['x'], but must be a string or a number."),
        (RECORD | {"predict": True}, "colors.jsonl:2: predict is True"),
        (RECORD | {"references": "x"}, "colors.jsonl:2: the references are 'x', but must be a list"),
        (RECORD, "colors.jsonl:2: the question_id 'a' already appears at colors.jsonl:1; remove one of them."),
    ],
)
def test_lines_that_cannot_be_used(tmp_path, line, words):
    assert refusal(write(tmp_path, RECORD, line, RECORD | {"question_id": "z"})).startswith(words)


def test_numbers_and_strings_are_one_id(tmp_path):
    path = write(tmp_path, RECORD | {"question_id": 1}, RECORD | {"question_id": "1"})
    assert "question_id '1' already appears at colors.jsonl:1" in refusal(path)


def test_no_file(tmp_path):
    assert refusal(tmp_path / "gone.jsonl").endswith(
        "gone.jsonl cannot be read: No such file or directory; check the path."
    )
    assert "Is a directory" in refusal(tmp_path)
