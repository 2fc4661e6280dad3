"""The command `mixlora`, and the files that it writes."""

import json
from importlib.metadata import version

import pytest
import yaml
from PIL import ImageChops

from mixlora import cli
from mixlora.common import settings
from mixlora.data import mini
from mixlora.data.images import open_image
from mixlora.data.reading.tasks import read_task
from mixlora.training.config import TrainConfig
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


@pytest.mark.parametrize("name", ["plain", "a, b", "{x}: [y] #z", 'it\'s "one" & *two', "yes", "wörter"])
def test_the_next_step_of_an_export_is_yaml_whatever_its_directory_is_called(mixlora, tmp_path, name):
    out = tmp_path / name
    told = mixlora("export", out, "--task", "read_word", "--count", "1")[2]
    line = told.partition("in the tasks of a configuration, ")[2]
    assert line.count("\n") == 1
    wanted = {"file": str(out / "suite.json"), "images": str(out), "where": {"task_name": "read_word"}}
    assert yaml.safe_load(line) == {"read_word": wanted}


def test_what_is_exported_is_read_back(mixlora, tmp_path):
    names = list(mini.TASKS)[:2]
    out = tmp_path / "suite"
    code, said, err = mixlora("export", out, "--count", 3, "--seed", 2, *(f"--task={name}" for name in names))
    assert (code, said) == (0, f"6 examples of 2 tasks in {out / 'suite.json'}\n")
    task = f"{{file: {out / 'suite.json'}, images: {out}, where: {{task_name: {names[0]}}}}}"
    assert err == f"next: in the tasks of a configuration, {names[0]}: {task}\n"
    assert mixlora("export", tmp_path / "quiet", "--count", 1, "--quiet")[2] == ""
    for name in names:
        own = mini.examples(name, "heldout", 3, 2)
        read = read_task(task_of(file=out / "suite.json", where={"task_name": name}), name)
        assert [example.turns for example in read] == [example.turns for example in own]
        assert [example.id for example in read] == [f"{name}/{example.id}" for example in own]
        for ours, theirs in zip(own, read, strict=True):
            assert ImageChops.difference(open_image(ours), open_image(theirs)).getbbox() is None


def test_directories_that_cannot_be_used(mixlora, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    inside = tmp_path / "mine.txt" / "x"
    for out, message in (
        (tmp_path, f"error: {tmp_path} is not empty; name a new directory.\n"),
        (inside, f"error: {inside} cannot be written: Not a directory; choose another directory\n"),
    ):
        assert mixlora("export", out, "--count", 1) == (2, "", message)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_all_processes_raise_is_told_by_the_first(mixlora, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    config = {"model": {"base": "mini", "device": "cpu"}, "tasks": {"read_word": {"mini": "train"}}}
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    call = ("train", tmp_path / "c.yaml", "-q", "--method", "lora", "--out")
    said = f"error: {tmp_path} exists, but is not a training; choose another --out\n"
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


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        (
            "lora",
            ["interference compute --base mini --adapter 'my out'", "mixlora evaluate --base mini --adapter 'my out'"],
        ),
        ("specialist", ["mixlora evaluate --base mini --adapter 'my out/{task}'"]),
        ("full", ["mixlora evaluate --base 'my out'"]),
    ],
)
def test_what_was_trained_is_measured_and_scored_next(method, steps):
    values = {"method": method, "model": {"base": "mini"}, "tasks": {"read_word": {"mini": "train"}}, "out": "my out"}
    told = cli._after_training(settings.build(TrainConfig, values, "the test"))
    assert told == [f"{step} --task NAME=FILE --out DIRECTORY" for step in steps]
