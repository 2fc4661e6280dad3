"""Trainings that are killed again and again, at any moment, end with the files of those that were left alone."""

import json

import pytest
import torch

from mixlora.training import config, run
from tests.support.killing import files, kill_until_done
from tests.support.trainings import values

RECIPE = {"steps": 12, "save_steps": 2, "logging_steps": 3, "snapshots": [0, 5]}


def work(nested):
    torch.set_num_threads(1)
    run.train(config.load(None, (), nested))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "specialist"])
def test_it_ends_with_the_same_files(tmp_path, method):
    more = {"training": RECIPE | ({"batch_size": 4, "steps": 8} if method == "specialist" else {})}
    out, whole = tmp_path / "out", tmp_path / "whole"
    one, other = (values(place, method, **more) for place in (whole, out))
    kill_until_done(work, one, other, out, 40, lambda: finished(out))
    assert files(out) == files(whole)
    assert not list(out.rglob("checkpoints"))


def finished(out):
    record = out / "training.json"
    return record.exists() and json.loads(record.read_text())["finished"]
