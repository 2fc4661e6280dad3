"""Factors whose computation is killed again and again, at any moment, are those of one that was left alone."""

import json

import pytest
import torch
from checkpoints import data, write_adapter, write_base, write_task
from mixtures import mixture

from interference import config, factors
from interference.observation import kept_or_computed
from tests.mixlora.killing import files, kill_until_done


def work(job):
    torch.set_num_threads(1)
    values, out = job
    kept_or_computed(config.build(values, "test"), out)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "mixture"])
def test_they_are_the_same(tmp_path, kind):
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", mixture() if kind == "mixture" else None)
    tasks = {name: write_task(tmp_path / f"{name}.jsonl", 6, seed) for seed, name in enumerate(["red", "blue"])}
    values = data(base, adapter, tasks, layers=None, batch_size=1)
    out, whole = tmp_path / "made" / "out", tmp_path / "whole"
    kill_until_done(work, (values, whole), (values, out), out.parent, 6, out.exists)
    found, expected = files(out), files(whole)
    times = [json.loads(each.pop("factors.json")) for each in (found, expected)]
    for meta in times:
        del meta["computed"], meta["seal"]  # when it was
    assert found == expected and times[0] == times[1]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert factors.load(out).examples["task"].tolist() == ["red"] * 6 + ["blue"] * 6
