"""Peak memory of whole processes: a plan says what compute takes, and compute takes no more for more units."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from interference import config
from interference.measurement import plan
from tests.support.checkpoints import data, write_adapter, write_base, write_task
from tests.support.models import llama, lora

SCRIPT = """
import json, sys
import torch
from pathlib import Path
from interference import config
from interference.measurement.compute import compute_config
from interference.measurement.plan import plan

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

torch.set_num_threads(1)
start, (work, values) = peak(), json.loads(sys.argv[1])
settings = config.build(values, "test")
said = plan(settings, timed=True).memory if work == "plan" else compute_config(settings) and peak()
print(start, said)
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells of a process's peak"),
]


def peak(work, values):
    """Bytes that a process of its own takes before and at the peak of its work."""
    command = [sys.executable, "-c", SCRIPT, json.dumps([work, values])]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(map(int, said.split()[-2:]))


def values_of(folder, shape, count, **probe):
    tasks = {name: write_task(folder / f"{name}{count}.jsonl", count, k) for k, name in enumerate(["red", "blue"])}
    if not (folder / "base").exists():
        write_base(folder / "base", llama(**shape))
        write_adapter(folder / "adapter", lora(llama(**shape)))
    probe = {"samples": count, "layers": None, **probe}
    return data(folder / "base", folder / "adapter", tasks, folder / f"run{count}", **probe)


def test_a_plan_says_what_compute_takes(tmp_path):
    shape = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 8, "num_key_value_heads": 4}
    values = values_of(tmp_path, shape, 8)
    (_, planned), (start, taken) = (peak(work, values) for work in ("plan", "compute"))
    assert taken > 1.4 * start  # so what the imports take does not decide
    assert 0.75 < planned / taken < 1.25


def test_more_units_take_no_more(tmp_path):
    shape = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 6}
    few, many = (values_of(tmp_path, shape, count, memory_budget=2**22) for count in (32, 128))
    (_, less), (_, more) = peak("compute", few), peak("compute", many)
    waiting = [plan.plan(config.build(values, "test")).spool for values in (few, many)]
    assert waiting[1] - waiting[0] > 0.2 * less  # so gradients that were kept in memory would be seen
    assert more < 1.1 * less
