"""Thirty unusable records of ninety, and a key of no known meaning, through every command that reads data."""

import json
import shutil

import pytest
import torch

from interference.config import AnalysisConfig
from interference.measurement.compute import compute_config
from mixlora.common.errors import DataError
from mixlora.common.files import TRAINING
from mixlora.common.settings import build
from mixlora.data.described import sentences
from tests.support import evaluations, trainings
from tests.support.paths import ROOT

torch.set_num_threads(1)
EMPTY = "an answer is empty, so there is nothing to learn"
SKIPPED = f"task 'bad': 30 records were skipped (30 x {EMPTY})"
UNREAD = "task 'bad': these keys of its records are not read: level"


@pytest.fixture
def file(tmp_path):
    """The file, its last record with another key; and the folder of an adapter."""
    lines = (ROOT / "tests" / "cases" / "data" / "thirty-bad.jsonl").read_text().splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | {"level": 3})
    path = tmp_path / "thirty-bad.jsonl"
    path.write_text("\n".join(lines))
    return path


def computed(folder, task):
    evaluations.saved(folder / "adapter")
    tasks = {name: {k: v for k, v in task.items() if k != "score"} for name in ("bad", "other")}
    probe = {"samples": 90, "layers": [0], "modules": ["q_proj"], "batch_size": 30}
    model = {"base": "mini", "adapter": str(folder / "adapter"), "device": "cpu"}
    config = build(AnalysisConfig, {"model": model, "tasks": tasks, "probe": probe, "out": str(folder / "out")}, "test")
    run = compute_config(config)
    return run.meta["data"], run.probes["task"].value_counts()["bad"]


def trained(folder, task):
    own = {k: v for k, v in task.items() if k != "score"}
    (path,) = trainings.train(
        trainings.made(folder / "out", tasks={"bad": own}, training={"steps": 1, "save_steps": 1})
    )
    found = json.loads((path / TRAINING).read_text())
    return found["noted"], found["examples"]["bad"]


def evaluated(folder, task):
    found = evaluations.ran(folder / "out", {"bad": task}, generation={"batch_size": 60, "max_new_tokens": 1})
    return found.meta["data"], found.tasks["bad"]["n"]


@pytest.mark.parametrize("command", [computed, trained, evaluated])
def test_they_are_refused_the_first_twenty_at_once_or_skipped_and_counted(tmp_path, file, command):
    task = {"file": str(file)} | ({"score": "exact"} if command is evaluated else {})
    with pytest.raises(DataError) as error:
        command(tmp_path, task)
    told = str(error.value).split("\n")
    assert told[0] == "30 records cannot be used; correct or remove these:"
    others = ", ".join(f"thirty-bad.jsonl:{line}" for line in range(4, 59, 3))
    assert told[1:] == [
        f"  thirty-bad.jsonl:1: {EMPTY}; fill it or drop the record. Also at {others}.",
        "  and 10 more",
    ]
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    data, used = command(tmp_path, task | {"on_error": "skip"})
    own = data["tasks"]["bad"]
    assert (own["skipped"], own["unread_keys"], own["examples"], used) == ({EMPTY: 30}, ["level"], 60, 60)
    assert [line for line in sentences(data) if line.startswith("task 'bad'")] == [SKIPPED, UNREAD]


@pytest.mark.parametrize("command", [trained, evaluated])
def test_a_task_of_which_nothing_is_left_is_refused(tmp_path, command):
    (tmp_path / "x.jsonl").write_text('{"prompt": "What?", "response": ""}')
    with pytest.raises(DataError) as error:
        command(tmp_path, {"file": str(tmp_path / "x.jsonl"), "on_error": "skip"})
    assert str(error.value) == "task 'bad' has no usable record; correct its data, or leave it out"
