"""A compute that is killed again and again, at any moment, ends with the run of one that was left alone, to the bit."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch
from checkpoints import data, write_adapter, write_base, write_task
from mixtures import mixture

from interference import config, load
from interference.computation import compute_config

KILLS = 10
KINDS = {
    "lora": {},
    "mixture": {},
    "sketches, elsewhere": {"sketch": 16, "spool_dir": "spools"},
}


def work(values):
    if values is None:
        return
    torch.set_num_threads(1)
    compute_config(config.build(values, "test"))


def start(values):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["interference.computation", "checkpoints"])  # imported once for all
    process = context.Process(target=work, args=(values,))
    process.start()
    return process


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_with_the_same_run(tmp_path, kind):
    adapted = mixture() if kind == "mixture" else None
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter", adapted)
    tasks = {name: write_task(tmp_path / f"{name}.jsonl", 6, seed) for seed, name in enumerate(["red", "blue"])}
    probe = {"layers": None, "batch_size": 1, **KINDS[kind]}
    if "spool_dir" in probe:
        probe["spool_dir"] = str(tmp_path / probe["spool_dir"])
    start(None).join()  # what all begin from is imported
    before = time.monotonic()
    whole = start(data(base, adapter, tasks, tmp_path / "whole", **probe))
    whole.join(120)
    took = time.monotonic() - before
    assert whole.exitcode == 0

    values, generator, kills = data(base, adapter, tasks, tmp_path / "run", **probe), random.Random(kind), 0
    while kills < KILLS and not (tmp_path / "run").exists():
        process = start(values)
        process.join(generator.uniform(0.05, 0.9) * took)
        process.kill()
        process.join()
        kills += 1
    if not (tmp_path / "run").exists():
        process = start(values)
        process.join(120)
        assert process.exitcode == 0
    assert kills > 1  # so something was interrupted
    same_to_the_bit(tmp_path / "run", tmp_path / "whole")
    left = {path.name for path in tmp_path.iterdir()} - {"spools"}
    assert left == {"base", "adapter", "red.jsonl", "blue.jsonl", "run", "whole"} and not list(
        tmp_path.glob("spools/*")
    )
    assert load(tmp_path / "run").meta["config"]["out"] == str(tmp_path / "run")


def same_to_the_bit(found: Path, expected: Path) -> None:
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in found.iterdir()) == names
    for name in set(names) - {"run.json"}:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
