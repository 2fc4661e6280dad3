"""Records of every shape, and what is said about those that cannot be used."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixlora.common.errors import DataError
from mixlora.data.examples import Example, Form, Turn
from mixlora.data.images import image_size, open_image
from mixlora.data.reading import tasks
from mixlora.data.reading.problems import Noted
from mixlora.data.reading.tasks import read_task
from mixlora.data.reading.values import Record
from tests.support.needed import needed
from tests.support.records import QA, SHOWN, read, refusal, save_picture, task_of, write

# --- shapes ---


def test_chat_and_prompt_records_of_one_file(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}]
    file = write(
        tmp_path,
        {"messages": [*messages, {"role": "assistant", "content": "Red"}], "id": "a"},
        {"prompt": "What?", "response": "Red", "id": 5},
        {"prompt": "What?", "response": "Red"},
    )
    assert read(file) == [
        Example("a", "colors", (Turn("system", "Be brief."), *QA), (), "records.jsonl:1"),
        Example("5", "colors", QA, (), "records.jsonl:2", form=Form.QUESTION),
        Example("3", "colors", QA, (), "records.jsonl:3", form=Form.QUESTION),
    ]


def test_content_in_parts(tmp_path):
    save_picture(tmp_path / "a.png")
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Red"}]}
    file = write(
        tmp_path,
        {"messages": [{"role": "user", "content": parts}, answer], "image": "a.png"},
        {"messages": [{"role": "user", "content": parts}, answer], "images": ["a.png"]},
        {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, parts[1]]}, answer]},
    )
    assert [(e.turns, e.images) for e in read(file)] == [(SHOWN, (tmp_path / "a.png",))] * 3


def test_llava_records_filtered_by_task_without_their_placeholder(tmp_path):
    save_picture(tmp_path / "images" / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red"}]
    later = [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes"}]
    record = {"id": "x1", "image": "a.png", "task_name": "color", "conversations": turns + later}
    file = write(tmp_path, {**record, "task_name": "shape", "image": "gone.png"}, record, name="annotation.json")
    assert read(file, images=tmp_path / "images", where={"task_name": "color"}) == [
        Example(
            "x1",
            "colors",
            (*SHOWN, Turn("user", "Sure?"), Turn("assistant", "Yes")),
            (tmp_path / "images" / "a.png",),
            "annotation.json[1]",
        )
    ]


def test_evaluation_records(tmp_path):
    save_picture(tmp_path / "a.png")
    file = write(tmp_path, {"unique_id": "u7", "prompt": "What?", "target": "Red", "image_path": "a.png"})
    picture = (tmp_path / "a.png",)
    assert read(file) == [Example("u7", "colors", SHOWN, picture, "records.jsonl:1", form=Form.QUESTION)]


def test_fields_of_other_names(tmp_path):
    save_picture(tmp_path / "a.png")
    file = write(tmp_path, {"question": "What?", "label": "Red", "picture": "a.png", "qid": 9})
    names = {"prompt": "question", "response": "label", "image": "picture", "id": "qid"}
    picture = (tmp_path / "a.png",)
    assert read(file, fields=names) == [Example("9", "colors", SHOWN, picture, "records.jsonl:1", form=Form.QUESTION)]
    other = write(tmp_path, {"prompt": "What?", "response": "Red", "image_path": "a.png"}, name="other.jsonl")
    assert read(other, fields={"image": "image_path"})[0].images == picture
    assert refusal(file, fields={"prompt": "query"}) == (
        "records.jsonl:1: the record has no field 'query', which `fields` names as the prompt; it has question, "
        "label, picture, qid."
    )


def test_where_compares_a_configurations_text_with_a_files_number(tmp_path):
    file = write(tmp_path, {"prompt": "a", "response": "b", "level": 3}, {"prompt": "c", "response": "d", "level": 4})
    assert [e.turns[0].text for e in read(file, where={"level": "4"})] == ["c"]
    assert read(file, where={"level": 4})[0].source == "records.jsonl:2"


def test_bom_crlf_blank_lines_and_odd_separators_are_tolerated(tmp_path):
    file = tmp_path / "records.jsonl"
    line = '{"prompt": "one\u2028two\u0085three", "response": "Red"}'
    file.write_bytes(f"\ufeff{line}\r\n\r\n   \n{line}\r\n".encode())
    assert [(e.turns[0].text, e.source) for e in read(file)] == [
        ("one\u2028two\u0085three", "records.jsonl:1"),
        ("one\u2028two\u0085three", "records.jsonl:4"),
    ]


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(TEXT, TEXT.filter(str.strip)), min_size=1, max_size=4), escaped=st.booleans())
def test_any_text_comes_back_as_it_was_written(tmp_path_factory, pairs, escaped):
    file = tmp_path_factory.mktemp("r") / "records.jsonl"
    lines = [json.dumps({"prompt": q, "response": a}, ensure_ascii=escaped) for q, a in pairs]
    file.write_bytes("\n".join(lines).encode())
    assert [tuple(turn.text for turn in e.turns) for e in read(file)] == pairs


def test_ids_are_unique_and_do_not_depend_on_the_order(tmp_path):
    records = [{"id": "a", "prompt": q, "response": "Red"} for q in ("one", "two")]
    other = {"id": "b", "prompt": "one", "response": "Red"}
    found = {e.turns[0].text: e.id for e in read(write(tmp_path, *records))}
    assert {e.turns[0].text: e.id for e in read(write(tmp_path, *records[::-1]))} == found
    assert [name.split("~")[0] for name in found.values()] == ["a", "a"] and len(set(found.values())) == 2
    copies = [e.id for e in read(write(tmp_path, other, records[0], records[0]))]
    assert copies == ["b", found["one"], found["one"] + "~2"]


# --- datasets and parquet ---


def test_dataset_directories(tmp_path):
    datasets = needed("datasets")
    shown = Image.new("RGB", (6, 4), (0, 0, 255))
    columns = {"prompt": ["What?", "Which?"], "response": ["Red", "Blue"], "image": [None, shown], "level": [1, 2]}
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("prompt", "response")}
        | {"image": datasets.Image(), "level": datasets.Value("int64")}
    )
    dataset = datasets.Dataset.from_dict(columns, features=features)
    dataset.save_to_disk(tmp_path / "flat")
    datasets.DatasetDict({"train": dataset, "test": dataset.select([1])}).save_to_disk(tmp_path / "split")
    plain, pictured = read(tmp_path / "flat")
    assert plain == Example("0", "colors", QA, (), "flat[0]", form=Form.QUESTION)
    assert open_image(pictured).getpixel((0, 0)) == (0, 0, 255) and image_size(pictured) == (6, 4)
    assert [e.source for e in read(tmp_path / "split", split="test", where={"level": 2})] == ["split/test[0]"]
    assert refusal(tmp_path / "split").endswith("split has the splits train, test; choose one with `split`.")
    assert refusal(tmp_path / "split", split="dev").endswith(
        "split has the splits train, test; choose one with `split`, not dev."
    )
    assert refusal(tmp_path / "flat", split="dev").endswith("flat has no splits; leave out `split: dev`.")


def test_parquet_files(tmp_path):
    from pyarrow import Table, parquet

    encoded = io.BytesIO()
    Image.new("RGB", (6, 4), (0, 255, 0)).save(encoded, "PNG")
    rows = [{"prompt": "What?", "response": "Red", "image": {"bytes": encoded.getvalue(), "path": "x.png"}}]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "data")
    (example,) = read(tmp_path / "data")
    assert (example.turns, example.source) == (SHOWN, "data[0]")
    assert open_image(example).getpixel((5, 3)) == (0, 255, 0)
    rows[0]["image"]["bytes"] = b"no picture"
    parquet.write_table(Table.from_pylist(rows), tmp_path / "data")
    assert refusal(tmp_path / "data").startswith("data[0]: an embedded image cannot be opened (cannot identify")
    (tmp_path / "data").write_bytes(b"PAR1 and nothing")
    assert refusal(tmp_path / "data").startswith("data: a parquet file cannot be read (")


def test_a_folder_that_is_no_dataset(tmp_path):
    needed("datasets")
    assert refusal(tmp_path) == (
        f"{tmp_path} has no data: no file ends in .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, and "
        "datasets' save_to_disk did not write it; give another."
    )


# --- refusals of files ---


def test_files_and_folders_that_are_not_there(tmp_path):
    gone = tmp_path / "gone.jsonl"
    assert refusal(gone) == f"Task colors: {gone} does not exist; check the path in `file`."
    file = write(tmp_path, {"prompt": "What?", "response": "Red"})
    assert refusal(file, images=tmp_path / "no") == (
        f"Task colors: the image folder {tmp_path / 'no'} does not exist; check the path in `images`."
    )
    assert refusal(file, split="train") == f"{file} has no splits; leave out `split: train`."


@pytest.mark.parametrize("content", ["", "\n \n", "[]", "\ufeff"])
def test_a_file_without_records(tmp_path, content):
    file = tmp_path / "records.jsonl"
    file.write_text(content, encoding="utf-8")
    assert refusal(file) == f"Task colors: {file} has no record; give a file with at least one."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"prompt": "a", "response": "b"}\n{"prompt": a}\n',
            "r:2: invalid JSON at column 12 (Expecting value); write one",
        ),
        (b'[{"prompt": "a",\n "response" "b"}]', "r:2: invalid JSON at column 13 (Expecting ':' delimiter); write one"),
        (b'{\n  "prompt": "a"\n  "response"}', "r:3: invalid JSON at column 3 (Expecting ',' delimiter"),
        (b'{"prompt": "a"}\n{"prompt": "\xff"}', "r:2: byte 0xff is not UTF-8; save the file as UTF-8."),
        ('{"prompt": "a"}'.encode("utf-16"), "r:1: byte 0xff is not UTF-8; save the file as UTF-8."),
        (b'{"a": ' * 100_000, "r:1: the JSON cannot be read (maximum recursion depth exceeded"),
        (b'{"a": ' + b"1" * 5000 + b"}", "r:1: the JSON cannot be read (Exceeds the limit"),
        (b'{"a": 1, "b": 2, "b": 3}', "r:1: the JSON cannot be read (the key 'b' appears twice); simplify it."),
        (b'[{"a": 1}, {"a": 1, "a": 1}]', "r:1: the JSON cannot be read (the key 'a' appears twice); simplify it."),
        (b'"text"', "r:1: a str where a record is expected; write an object."),
        (b'[{"prompt": "a", "response": "b"}, 3]', "r[1]: an int where a record is expected; write an object."),
    ],
)
def test_content_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "r").write_bytes(content)
    assert refusal(tmp_path / "r").startswith(message)


def test_where_that_matches_nothing_tells_the_nearest_values(tmp_path):
    names = [f"task-{k}" for k in range(30)] + ["scienceqa+question_answering"]
    file = write(tmp_path, *[{"prompt": "a", "response": "b", "task_name": name, "n": len(name)} for name in names])
    told = refusal(file, where={"task_name": "scienceqa"})
    assert told.startswith(
        f"No record of {file} has task_name = 'scienceqa'; its values are scienceqa+question_answering, "
    )
    assert told.endswith(" and 21 more.") and told.count("task-") == 9
    assert refusal(file, where={"tsak": "x"}) == (
        f"No record of {file} has the field 'tsak' of `where`; the first has prompt, response, task_name, n."
    )
    both = {"task_name": "task-1", "n": 7}
    assert refusal(file, where=both) == f"No record of {file} has all of {both} at once; ask for fewer."


def test_what_is_nested_too_deeply_is_a_problem_like_others(tmp_path):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    usual, problems = {"prompt": "What?", "response": "Red", "tag": "x"}, []
    rows = [Record(usual | more, f"r.jsonl:{at}", at) for at, more in enumerate(({"tag": deep}, {}, {"id": deep}), 1)]
    file, where = tmp_path / "r.jsonl", {"tag": "x"}
    kept = tasks._matching(rows, where, file, problems)
    found = tasks._examples(kept, task_of(file=file), file, "t", problems, None)
    assert [example.source for example in found] == ["r.jsonl:2"]
    assert [str(problem) for problem in problems] == [
        "r.jsonl:1: tag is nested too deeply; simplify it.",
        "r.jsonl:3: something in it is nested too deeply; simplify it.",
    ]
    with pytest.raises(DataError, match=r"^r\.jsonl:1: tag is nested too deeply"):
        tasks._matching(rows, where, file, None)
    assert tasks._matching(rows[:1], where, file, problems) == []


# --- refusals of records ---

USER, ASSISTANT = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "Red"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"question": "What?", "answer": "Red"},
            "the record has an unknown shape, with the keys question, answer; supported are "
            "{messages: [{role, content}]}, "
            "{conversations: [{from, value}]}, {prompt, completion}, {prompt, response}, {instruction, input, output}, "
            "{query, response}, {texts: [{user, assistant}]}, {text}, {prompt, target, image_path}; "
            "map other names with `fields`.",
        ),
        ({}, "the record has an unknown shape, with the keys none; supported are"),
        (
            {"messages": "hello"},
            "messages is 'hello', which is not valid JSON (Expecting value: line 1 column 1 (char 0)).",
        ),
        ({"messages": 3}, "messages is 3; write a list of messages."),
        ({"prompt": "What?", "response": " \n"}, "an answer is empty, so there is nothing to learn; fill it or drop"),
        ({"text": " "}, "the text is empty, so there is nothing to learn; fill it or drop the record."),
        ({"messages": [USER, ASSISTANT, USER]}, "the conversation ends with a user turn; end it with the assistant's"),
        ({"messages": [ASSISTANT]}, "the conversation does not begin with a user turn; add the question."),
        (
            {"messages": [ASSISTANT, USER, ASSISTANT]},
            "the conversation does not begin with a user turn; add the question.",
        ),
        ({"messages": []}, "messages is []; write a list of messages."),
        ({"messages": [USER, "Red"]}, "message 2 is 'Red'; write {role, content} or {from, value}."),
        ({"conversations": [{"role": "user"}]}, "message 1 is {'role': 'user'}, which says nothing; give it content."),
        (
            {"messages": [USER, {"role": "judge", "content": "x"}]},
            "message 2 has the role 'judge'; roles are user, human, prompter, assistant, gpt, model, bot, chatgpt, "
            "system, developer, tool, function, observation, ipython, function_response, function_call.",
        ),
        (
            {"messages": [USER, {"role": "tool", "content": "x"}]},
            "the conversation ends with a tool turn; end it with the assistant's answer.",
        ),
        (
            {"prompt": "What?", "response": float("nan")},
            "response is missing (nan); fill it or drop the record.",
        ),
        ({"prompt": None, "response": "Red"}, "prompt is missing (None); fill it or drop the record."),
        ({"messages": None}, "messages is missing (None); fill it or drop the record."),
        ({"prompt": "What?", "target": {"a": 1}}, "the text of target is {'a': 1}, a dict; write it as a string."),
        ({"prompt": "What?", "target": True}, "the text of target is True, a bool; write it as a string."),
        ({"messages": [{"role": "user", "content": {}}]}, "the text of message 1 is {}, a dict; write it as a string."),
        ({"prompt": "a\ud800", "response": "Red"}, "the text of prompt holds '\\ud800', half a character; remove it."),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}, ASSISTANT]},
            "message 1 has a part {'type': 'video'}; parts are",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}, ASSISTANT]},
            "a message has an image, but the record names none; add `image`.",
        ),
        (
            {"prompt": "<image><image> What?", "response": "Red", "images": ["a.png", "a.png", "a.png"]},
            "the text has <image> 2 times, but the record has 3 images.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, ASSISTANT]},
            "a message has an image, but the record names none; add `image`.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, ASSISTANT], "images": ["a.png", "a.png"]},
            "the record names 1 more images than its messages have places for.",
        ),
        (
            {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red"}]},
            "the text has <image>, but the record names no image; add `image` or remove it.",
        ),
        ({"prompt": "What?", "response": "Red", "image": 3}, "the image is 3, an int; give the name of a file."),
        (
            {"messages": [USER, ASSISTANT], "prompt": "What?"},
            "prompt is 'What?', which is not read together with messages; set ignore: [prompt] to train without it",
        ),
        (
            {"prompt": "What?", "response": "Red", "text": "What? Red"},
            "text is 'What? Red', which is not read together with prompt, response; set ignore: [text] to train "
            "without it",
        ),
        (
            {"messages": [USER, ASSISTANT], "chosen": "Red"},
            "chosen is 'Red', which is not read together with messages; set ignore: [chosen] to train without it",
        ),
    ],
)
def test_records_that_cannot_be_used(tmp_path, record, message):
    save_picture(tmp_path / "a.png")
    file = write(tmp_path, {"prompt": "What?", "response": "Red"}, record)
    assert refusal(file).startswith(f"records.jsonl:2: {message}")


def test_what_is_ignored_is_not_read(tmp_path):
    file = write(tmp_path, {"messages": [USER, ASSISTANT], "prompt": "Other?", "chosen": "x"})
    (example,) = read(file, ignore=["prompt", "chosen"])
    assert (example.turns, example.form) == (QA, Form.MESSAGES)


def test_a_number_is_its_text(tmp_path):
    file = write(tmp_path, *[{"prompt": "1+1", "response": answer} for answer in (2, 2.5, 0)])
    assert [e.turns[1].text for e in read(file)] == ["2", "2.5", "0"]


def test_each_record_of_a_file_is_of_its_own_shape_and_none_loses_a_key(tmp_path):
    """Shapes of one form may be mixed: each record is understood alone, or refused by its place and its keys."""
    shapes = [
        {"prompt": "What?", "response": "Red", "messages": None},
        {"messages": [USER, ASSISTANT], "prompt": None},
        {"instruction": "What?", "output": "Red"},
    ]
    assert [e.form for e in read(write(tmp_path, *shapes))] == [Form.QUESTION, Form.MESSAGES, Form.QUESTION]
    other = {"question": "What?", "answer": "Red"}
    told = refusal(write(tmp_path, *shapes, other, other))
    assert told.startswith(
        "records.jsonl:4: the record has an unknown shape, with the keys question, answer; supported are"
    )
    noted = Noted()
    read_task(task_of(file=write(tmp_path, shapes[0] | {"level": 3}, shapes[2] | {"url": "x"})), "t", None, noted)
    assert list(noted.sentences("t")) == ["task 't': these keys of its records are not read: level, url"]
