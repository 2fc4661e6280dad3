"""The command `mixlora`, and the files that it writes."""

import json
from importlib.metadata import version

import pytest
from PIL import Image, ImageChops

from mixlora.common.errors import DataError
from mixlora.data import mini
from mixlora.data.examples import Example, Turn
from mixlora.data.export import write
from mixlora.data.images import open_image
from mixlora.data.reading.tasks import read_task
from tests.support.records import task_of


def test_version_and_help(mixlora):
    assert mixlora("--version") == (0, version("task-interference") + "\n", "")
    for command in ([], ["tasks"], ["export"]):
        code, out, err = mixlora(*command, "--help")
        assert (code, err) == (0, "") and f"mixlora {' '.join(command)}".strip() in out and "Example:" in out


def test_tasks_are_listed(mixlora):
    code, out, _ = mixlora("tasks")
    assert code == 0 and out.count("\n") == 2 * (len(mini.TASKS) + len(mini.UNSEEN))
    for title, group in (("training", mini.TASKS), ("unseen", mini.UNSEEN)):
        for task in group.values():
            assert f"{title}  {task.name}  ({task.capability}; chance {task.chance:.2f})\n    {task.definition}" in out


def test_what_is_exported_is_read_back(mixlora, tmp_path):
    names = list(mini.TASKS)[:2]
    out = tmp_path / "suite"
    code, said, err = mixlora("export", out, "--count", 3, "--seed", 2, *(f"--task={name}" for name in names))
    assert (code, said, err) == (0, f"6 examples of 2 tasks in {out / 'suite.json'}\n", "")
    for name in names:
        own = mini.examples(name, "heldout", 3, 2)
        read = read_task(task_of(file=out / "suite.json", where={"task_name": name}), name)
        assert [example.turns for example in read] == [example.turns for example in own]
        assert [example.id for example in read] == [f"{name}/{example.id}" for example in own]
        for ours, theirs in zip(own, read, strict=True):
            assert ImageChops.difference(open_image(ours), open_image(theirs)).getbbox() is None


def test_a_shared_picture_is_written_once(tmp_path):
    picture = Image.new("RGB", (4, 4), (9, 8, 7))
    turns = (Turn("system", "S"), Turn("user", "Q"), Turn("assistant", "Ä"))
    write([Example("a/1", task, turns, picture, "s") for task in ("x", "y")], tmp_path / "out")
    records = json.loads((tmp_path / "out" / "suite.json").read_text(encoding="utf-8"))
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["a-1.png"]
    assert records[1] == {
        "id": "y/a/1",
        "task_name": "y",
        "image": "images/a-1.png",
        "conversations": [
            {"from": "system", "value": "S"},
            {"from": "human", "value": "Q"},
            {"from": "gpt", "value": "Ä"},
        ],
    }


def test_examples_without_picture_have_none(tmp_path):
    write([Example("1", "x", (Turn("user", "Q"), Turn("assistant", "A")), None, "s")], tmp_path / "out")
    assert "image" not in json.loads((tmp_path / "out" / "suite.json").read_text())[0]


def test_directories_that_cannot_be_used(mixlora, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for out, message in (
        (tmp_path, f"error: {tmp_path} holds something already; name a new directory.\n"),
        (tmp_path / "mine.txt" / "x", f"error: {tmp_path / 'mine.txt' / 'x'} cannot be written: Not a directory.\n"),
    ):
        assert mixlora("export", out, "--count", 1) == (2, "", message)
    with pytest.raises(DataError, match="holds something already"):
        write([], tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_all_processes_raise_is_told_by_the_first(mixlora, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    config = {"model": {"base": "mini", "device": "cpu"}, "tasks": {"read_word": {"mini": "train"}}}
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    call = ("train", tmp_path / "c.yaml", "-q", "--method", "lora", "--out")
    said = f"error: {tmp_path} holds something that is no training; choose another --out\n"
    for rank, told in ((None, said), ("0", said), ("1", "")):
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
        assert mixlora(*call, tmp_path) == (2, "", told)
    code, _, told = mixlora("train", tmp_path / "none.yaml")  # which each finds out by itself
    assert (code, told) == (2, f"error: there is no configuration file {tmp_path / 'none.yaml'}\n")


def test_wrong_options(mixlora, tmp_path):
    code, out, err = mixlora("export", tmp_path / "x", "--split", "test")
    assert (code, out, err) == (2, "", "error: --split 'test' is neither train nor heldout\n")
    code, out, err = mixlora("export", tmp_path / "x", "--task", "no_such")
    assert (code, out) == (2, "") and err.startswith("error: ") and "no_such" in err and err.count("\n") == 1
    assert mixlora("export", tmp_path / "x", "--count", "0")[0] == 2
    assert list(tmp_path.iterdir()) == []
