"""Factors whose computation is killed again and again, at any moment, are those of one that was left alone."""

import json
from itertools import pairwise

import pytest
import torch

from interference import config
from interference.factors import factors
from interference.factors.observer import kept_or_computed
from tests.support.checkpoints import data, write_adapter, write_base, write_task
from tests.support.killing import files, kill_until_done
from tests.support.mixtures import mixture

KINDS = {"lora": lambda: None, "mixture": mixture, "random": lambda: mixture(routing="random")}


def work(job):
    torch.set_num_threads(1)
    values, out = job
    kept_or_computed(config.build(values, "test"), out)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_the_same(tmp_path, kind):
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter", KINDS[kind]())
    tasks = {name: write_task(tmp_path / f"{name}.jsonl", 6, seed) for seed, name in enumerate(["red", "blue"])}
    values = data(base, adapter, tasks, layers=None, batch_size=1)
    out, whole = tmp_path / "made" / "out", tmp_path / "whole"
    kept = []

    def done():
        if not out.exists():
            kept.append({path.name: path.stat().st_mtime_ns for path in out.parent.rglob("part-*.safetensors")})
        return out.exists()

    kill_until_done(work, (values, whole), (values, out), out.parent, 27, done)  # the second dies between parts
    found, expected = files(out), files(whole)
    times = [json.loads(each.pop("factors.json")) for each in (found, expected)]
    for meta in times:
        del meta["computed"], meta["seal"]  # when it was
    assert found == expected and times[0] == times[1]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert len(kept[-1]) > 2 and len({len(parts) for parts in kept}) > 1  # killed before and after some were observed
    for earlier, later in pairwise(kept):
        assert earlier.items() <= later.items()  # what was observed is not observed again
    assert factors.load(out).examples["task"].tolist() == ["red"] * 6 + ["blue"] * 6
