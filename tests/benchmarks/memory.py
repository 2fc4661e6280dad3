"""Peak resident memory of `interference.compute`, against a plain training step of the same batch.

Every case runs in a process of its own, since a process never forgets its peak.
"""

import json
import subprocess
import sys

import torch

import interference
from tests.benchmarks import work
from tests.benchmarks.resident import forget_peak, peak
from tests.benchmarks.table import Row, show

BUDGET = 64 * 2**20
UNITS = (32, 128)


def run() -> None:
    """Measure and print."""
    work.checkpoint()  # written here, so that no case's peak is that of its writing
    step, loaded = _of("step")
    show(
        Row(
            "memory", "plain training step with AdamW", _mib(step), "", "", f"beside {_mib(loaded)} of the loaded model"
        )
    )
    for units in UNITS:
        found, loaded = _of(str(units))
        whole = (found + loaded - BUDGET) / (step + loaded)
        ratio = (found - BUDGET) / step
        note = f"with the model {whole:.2f}; {_mib(found)}, of which memory budget {_mib(BUDGET)}"
        show(Row("memory", f"compute, {units} units, less the budget", f"{ratio:.2f} x", "", "<= 1.25", note))


def _of(case: str) -> tuple[int, int]:
    """Bytes of a case's peak above the loaded model, and of the loaded model."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.memory", case]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(output.splitlines()[-1])
    return found["peak"] - found["loaded"], found["loaded"]


def _measure(case: str) -> dict[str, int]:
    model = work.model()
    for parameter in model.parameters():
        parameter.sum()  # a checkpoint's pages become resident when they are first read
    forget_peak()
    loaded = peak()
    if case == "step":
        optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
        for seed in range(2):
            work.plain(model, work.batch(seed))
            optimizer.step()
            optimizer.zero_grad()
    else:
        half = int(case) // work.SIZE // 2
        tasks = {name: map(work.batch, range(half * k, half * (k + 1))) for k, name in enumerate(("one", "other"))}
        interference.compute(model, tasks, memory_budget=BUDGET)
    return {"loaded": loaded, "peak": peak()}


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
