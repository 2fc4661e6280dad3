"""A place that is read-only, from the beginning or later: one sentence, and nothing of what was there is lost."""

import json

import pytest
import torch

from tests.support.disks import full, read_only
from tests.support.evaluations import follow_file
from tests.support.evaluations import values as evaluation
from tests.support.killing import files
from tests.support.trainings import values as training

torch.set_num_threads(1)


@pytest.fixture
def commands(tmp_path):
    """{name: arguments but for the directory, what is named before it}."""
    follow_file(tmp_path / "follow.jsonl")
    tasks = {"follow": {"file": str(tmp_path / "follow.jsonl")}}
    for name, values in (
        ("train", training("unused", training={"steps": 2})),
        ("evaluate", evaluation("unused", tasks)),
    ):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(values | {"out": None}))
    return {
        "train": ["train", tmp_path / "train.yaml", "-q", "--out"],
        "evaluate": ["evaluate", tmp_path / "evaluate.yaml", "-q", "--out"],
        "export": ["export", "--count", 1],
    }


@pytest.mark.parametrize("command", ["train", "evaluate", "export"])
def test_it_is_told_in_a_sentence(mixlora, commands, tmp_path, command):
    closed = tmp_path / "closed"
    closed.mkdir()
    with read_only(closed):
        with pytest.raises(OSError, match="Read-only"):
            (closed / "mine").write_text("")  # so it is
        code, out, err = mixlora(*commands[command], closed / "out")
    assert code == 2 and out == "", err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert str(closed) in err and "Read-only file system" in err
    assert list(closed.iterdir()) == []


@pytest.mark.parametrize("size", [0, 100, 3000])
@pytest.mark.parametrize("command", ["train", "evaluate", "export"])
def test_a_full_disk_is_no_mistake_in_the_input(mixlora, commands, tmp_path, command, size):
    with full(size):
        code, out, err = mixlora(*commands[command], tmp_path / "out")
    assert code in ((1,) if size < 3000 else (0, 1)), err
    if code:
        last = err.splitlines()[-1]
        assert out == "" and last.startswith("error: ") and "make room there, and " in last, err
    if code or command != "export":
        assert mixlora(*commands[command], tmp_path / "out")[0] == 0


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_what_was_finished_there_stays(mixlora, commands, tmp_path, command):
    out = tmp_path / "out"
    assert mixlora(*commands[command], out)[0] == 0
    before = files(out)
    with read_only(out):
        code, _, err = mixlora(*commands[command], out)
    assert code == 0 or (code == 2 and "Read-only file system" in err), err
    assert files(out) == before
