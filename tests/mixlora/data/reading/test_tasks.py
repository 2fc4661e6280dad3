"""Several tasks in one file, and reading that goes on behind records that cannot be used."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlora.common.errors import ConfigError, DataError
from mixlora.common.sections import TaskSection
from mixlora.common.settings import build
from mixlora.data.reading.tasks import read_task, read_tasks
from mixlora.data.sources import examples_of
from tests.support.records import QA, SHOWN, refusal, save_picture, task_of, write

GOOD = {"prompt": "What?", "response": "Red"}


def told(problems: list[DataError]) -> list[str]:
    return [str(problem) for problem in problems]


# --- reading that goes on ---


def test_records_of_two_forms_are_no_task(tmp_path):
    chat = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    alike = [{"prompt": "Q", "response": "A"}, chat, {"instruction": "Q", "output": "A"}]
    records = [*alike, {"text": "T"}, {"prompt": "Q", "completion": "A"}]
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert refusal(file) == (
        "x.jsonl:4: the record is text, but the first (x.jsonl:1) is prompt/response, which trainers write "
        "differently; give each form its own task and file."
    )
    problems = []
    assert len(read_task(task_of(file=file), "t", problems)) == 3 and len(problems) == 2


def test_bad_records_are_told_and_left_out(tmp_path):
    save_picture(tmp_path / "a.png")
    file = tmp_path / "r.jsonl"
    lines = [
        json.dumps(GOOD),
        '{"prompt": oops',
        json.dumps(GOOD | {"image": "gone.png"}),
        "",
        "[1]",
        json.dumps(GOOD | {"response": ""}),
        json.dumps(GOOD | {"image": "a.png", "id": "last"}),
    ]
    file.write_bytes("\n".join(lines).encode() + b'\n{"prompt": "\xff"}')
    problems: list[DataError] = []
    found = read_task(task_of(file=file), "t", problems)
    assert [(e.id, e.turns, e.source) for e in found] == [("1", QA, "r.jsonl:1"), ("last", SHOWN, "r.jsonl:7")]
    assert told(problems) == [
        "r.jsonl:2: invalid JSON at column 12 (Expecting value); write one object per line.",
        "r.jsonl:5: a list where a record is expected; write an object.",
        "r.jsonl:8: byte 0xff is not UTF-8; save the file as UTF-8.",
        f"r.jsonl:3: the image 'gone.png' is not in {tmp_path}; put it there or set `images` to its folder.",
        "r.jsonl:6: an answer is empty, so there is nothing to learn; fill it or drop the record.",
    ]
    assert all(problem.__traceback__ is None for problem in problems)  # which would hold the records
    with pytest.raises(DataError, match=r"r.jsonl:2: invalid JSON"):
        read_task(task_of(file=file), "t")


def test_entries_of_a_list_are_told_but_a_broken_list_ends_it(tmp_path):
    problems: list[DataError] = []
    file = write(tmp_path, 3, GOOD, {"prompt": "What?"}, name="r.json")
    assert [e.source for e in read_task(task_of(file=file), "t", problems)] == ["r.json[1]"]
    assert [text.split(":")[0] for text in told(problems)] == ["r.json[0]", "r.json[2]"]
    file.write_text('[{"prompt": "a"},')
    with pytest.raises(DataError, match=r"r.json:1: invalid JSON"):
        read_task(task_of(file=file), "t", problems)
    assert len(problems) == 2


@pytest.mark.parametrize("where", [{}, {"level": 1}])
def test_a_file_of_nothing_but_bad_records_has_no_example(tmp_path, where):
    file = tmp_path / "r.jsonl"
    file.write_text("a\nb\n")
    problems: list[DataError] = []
    assert read_task(task_of(file=file, where=where), "t", problems) == []
    assert read_tasks(task_of(file=file, where=where, by="task"), "t", problems) == {}
    assert len(problems) == 4
    file.write_text("")
    with pytest.raises(DataError, match="has no record"):
        read_task(task_of(file=file), "t", problems)


def test_files_that_are_not_there_are_raised_all_the_same(tmp_path):
    problems: list[DataError] = []
    for keys in ({"file": tmp_path / "no"}, {"file": write(tmp_path, GOOD), "images": tmp_path / "no"}):
        with pytest.raises(DataError, match="does not exist"):
            read_tasks(task_of(**keys), "t", problems)
    with pytest.raises(DataError, match="has the field 'x' of `where`"):
        read_task(task_of(file=write(tmp_path, GOOD), where={"x": 1}), "t", problems)
    assert problems == []


@settings(max_examples=30, deadline=None)
@given(good=st.lists(st.booleans(), min_size=1, max_size=12))
def test_every_record_is_an_example_or_a_problem(tmp_path_factory, good):
    records = [GOOD if fine else {"prompt": [3], "response": "Red"} for fine in good]
    file = write(tmp_path_factory.mktemp("r"), *records)
    problems: list[DataError] = []
    found = [e.source for e in read_task(task_of(file=file), "t", problems)]
    assert found == [f"records.jsonl:{at}" for at, fine in enumerate(good, 1) if fine]
    places = [text[: text.index(": ")] for text in told(problems)]
    assert places == [f"records.jsonl:{at}" for at, fine in enumerate(good, 1) if not fine]


# --- several tasks ---


def test_one_file_holds_many_tasks(tmp_path):
    rows = [("b", "1"), ("a", "1"), ("b", "2"), (7, "1"), ("b", "1")]
    file = write(tmp_path, *[GOOD | {"task_name": task, "id": own} for task, own in rows], name="all.json")
    found = read_tasks(task_of(file=file, by="task_name"), "unused")
    assert list(found) == ["b", "a", "7"]
    assert [e.source for e in found["b"]] == ["all.json[0]", "all.json[2]", "all.json[4]"]
    assert {e.task for e in found["b"]} == {"b"} and len({e.id for e in found["b"]}) == 3
    assert [e.id for e in found["a"]] == ["1"]  # ids are unique within a task
    for task in ("b", "a"):
        assert found[task] == read_task(task_of(file=file, where={"task_name": task}), task)
    assert read_tasks(task_of(file=file), "all") == {"all": read_task(task_of(file=file), "all")}
    assert list(read_tasks(task_of(file=file, by="task_name", where={"id": 2}), "unused")) == ["b"]


def test_records_that_name_no_task(tmp_path):
    names = [{"task_name": name} for name in ("a", None, ["a"], " ", True)]
    file = write(tmp_path, *[GOOD | name for name in names], GOOD, GOOD | {"task_name": "b", "prompt": [3]})
    problems: list[DataError] = []
    found = read_tasks(task_of(file=file, by="task_name"), "unused", problems)
    assert {task: len(examples) for task, examples in found.items()} == {"a": 1, "b": 0}
    assert told(problems) == [
        "records.jsonl:2: task_name, which `by` names as the task, is None; write the name of a task.",
        "records.jsonl:3: task_name, which `by` names as the task, is ['a']; write the name of a task.",
        "records.jsonl:4: task_name, which `by` names as the task, is ' '; write the name of a task.",
        "records.jsonl:5: task_name, which `by` names as the task, is True; write the name of a task.",
        "records.jsonl:6: the record has no field 'task_name', which `by` names as the task; it has prompt, response.",
        "records.jsonl:7: the text of prompt is [3], a list; write it as a string.",
    ]
    with pytest.raises(DataError, match=r"records.jsonl:2: task_name"):
        read_tasks(task_of(file=file, by="task_name"), "unused")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mme": "b", "where": {"d": 1}, "by": "c"}, "Task t has `mme: b` beside where, by; leave out one of"),
        ({"mme": "b", "images": "c"}, "Task t has `mme: b` beside images; leave out one of them."),
        ({"file": ""}, "Task t names no file; give `file: path/to/records.jsonl`."),
        ({"mme": ""}, "Task t names no file; give `file: path/to/records.jsonl`."),
        ({"mme": "gone"}, "gone is not a folder; check the path in `mme`."),
    ],
)
def test_entries_that_name_no_source(keys, message):
    with pytest.raises(DataError) as error:
        read_tasks(task_of(**keys), "t")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fle": "x"}, "task: unknown key 'fle'; did you mean 'file'?"),
        (
            {"zzz": "x"},
            "task: unknown key 'zzz'; the keys here are file, images, outside, where, without, holdout, part, split, "
            "fields, loss_on, ignore, on_error, mini, by, mme",
        ),
        ({"images": "x"}, "task: give either file: PATH or mini: heldout"),
        ({"file": "a", "mme": "b"}, "task: give either file: PATH or mini: heldout"),
        ({"mini": "heldout", "by": "x"}, "task: by is for a file; leave it out with mini"),
        ({"file": 3}, "task: file: Input should be a valid string (it is 3)"),
        ({"file": "a", "by": ["b"]}, "task: by: Input should be a valid string (it is ['b'])"),
        ({"file": "a", "where": "b"}, "task: where: it must be a section of keys and values (it is 'b')"),
        ({"file": "a", "outside": "perhaps"}, "task: outside: Input should be a valid boolean, unable to interpret"),
    ],
)
def test_entries_that_a_configuration_refuses(keys, message):
    with pytest.raises(ConfigError) as error:
        task_of(**keys)
    assert str(error.value).startswith(message)


def test_several_tasks_where_one_is_wanted(tmp_path):
    for several in (task_of(file=tmp_path, by="x"), task_of(mme=tmp_path)):
        with pytest.raises(
            DataError, match=r"stands for several tasks, but one is needed; give a `file`, with `where:"
        ):
            read_task(several, "t")


def test_a_task_without_by_and_mme_is_read_as_one(tmp_path):
    file = write(tmp_path, GOOD)
    section = build(TaskSection, {"file": str(file)}, "task")
    assert examples_of("t", section, None, 0) == {"t": read_task(section, "t")}
