"""A compute that is killed again and again, at any moment, ends with the run of one that was left alone, to the bit."""

import itertools
import json
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from interference import config
from interference.errors import RunError
from interference.measurement.compute import compute_config
from interference.measurement.resume import clear, settle, unfinished
from tests.support.checkpoints import data, write_adapter, write_base, write_task
from tests.support.killing import dying, ended, files, kill_until_done, start
from tests.support.mixtures import mixture

KINDS = {
    "lora": {},
    "mixture": {},
    "sketches, elsewhere": {"sketch": 16, "spool_dir": "spools"},
}


def work(values):
    """Compute; where the run is whole already, what else a kill has left goes."""
    torch.set_num_threads(1)
    whole = Path(values["out"]).exists()
    with pytest.raises(RunError, match="already holds a run") if whole else nullcontext():
        compute_config(config.build(values, "test"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_with_the_same_run(tmp_path, kind):
    adapted = mixture() if kind == "mixture" else None
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter", adapted)
    tasks = {name: write_task(tmp_path / f"{name}.jsonl", 6, seed) for seed, name in enumerate(["red", "blue"])}
    made, whole, probe = tmp_path / "made", tmp_path / "whole", {"layers": None, "batch_size": 1, **KINDS[kind]}
    if "spool_dir" in probe:
        probe["spool_dir"] = str(made / probe["spool_dir"])
    kept = []

    def done():
        ended = (made / "run").exists()
        if not ended:
            kept.append({path.name: path.stat().st_mtime_ns for path in made.rglob("part-*.safetensors")})
        return ended

    values = [data(base, adapter, tasks, out, **probe) for out in (whole, made / "run")]
    kill_until_done(work, *values, made, 27, done)  # of 27 changes the second death falls between parts
    found, expected = files(made / "run"), files(whole)
    assert told(found) == told(expected) and found == expected
    left = {path.name for path in made.iterdir()}
    assert left - {"spools"} == {"run"} and not list(made.glob("spools/*"))
    assert len(kept[-1]) > 2 and len({len(parts) for parts in kept}) > 1  # killed before and after some were measured
    for earlier, later in pairwise(kept):
        assert earlier.items() <= later.items()  # what was measured is not measured again


def made(out):
    """What a compute does with files, and nothing else."""
    with unfinished(out, {"job": "a"}) as spool:
        spool.write(0, {"b": torch.ones(1, 1)}, {})
        settle(saved, out)


def saved(waiting):
    waiting.mkdir()
    (waiting / "run.json").touch()


@pytest.mark.slow
def test_a_kill_before_any_change_of_files_leaves_nothing_for_ever(tmp_path):
    for change in itertools.count(1):
        out = tmp_path / str(change) / "run"
        code = ended(start(dying, made, out, str(out.parent), change, 0))
        clear(out, "run.json")
        if not out.exists():
            made(out)
        assert [path.name for path in out.parent.iterdir()] == ["run"], change
        if code == 0:
            break
    assert change > 15


def told(run):
    """What run.json says but for when it was, and how long it took."""
    meta = json.loads(run.pop("run.json"))
    for when in ("seconds", "computed", "seal"):
        del meta[when]
    return meta
