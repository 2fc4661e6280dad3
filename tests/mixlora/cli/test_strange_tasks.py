"""Trainings and evaluations of tasks whose names would steer a terminal or a path: nothing is written outside --out."""

import json

import pytest
import torch

from tests.support.evaluations import follow_file
from tests.support.evaluations import values as evaluation
from tests.support.trainings import RECIPE
from tests.support.trainings import values as training

torch.set_num_threads(1)
NAMES = ["../../evil\x1b[2J\x9b1m", "\u202eevil\r\n/etc/<b>" + "x" * 300]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory two below all that is looked at, and configurations that name no place to write to."""
    top = tmp_path_factory.mktemp("strange")
    (top / "a" / "b").mkdir(parents=True)
    file = follow_file(top / "follow.jsonl")
    tasks = {name: {"file": str(file)} for name in NAMES}
    for name, values in (
        ("train", training("", "specialist", tasks=tasks, training=RECIPE | {"steps": 1, "batch_size": 2})),
        ("evaluate", evaluation("", tasks)),
    ):
        (top / f"{name}.json").write_text(json.dumps(values | {"out": None}))
    return top / "a" / "b"


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_names_that_steer(mixlora, place, command):
    top, out = place.parent.parent, place / command
    before = set(top.rglob("*"))
    code, said, err = mixlora(command, top / f"{command}.json", "--out", out)
    assert code == 0, err
    assert not set("\x1b\x9b\r\u202e") & set(said + err)
    made = set(top.rglob("*")) - before
    assert len([path for path in made if path.is_file()]) > 3 and all(path.is_relative_to(out) for path in made)
