"""What `interference plan` says of disk, memory and time, as a share of what `compute` then takes.

Plan and compute run in processes of their own, since a process never forgets its peak.
"""

import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks import work
from tests.benchmarks.table import Row, show

EXAMPLES = (16, 64)  # of each of two tasks
REPEATS = 3
WORDS = [f"word{k}" for k in range(50)]


def run() -> None:
    """Measure and print."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        work.model().save_pretrained(folder / "adapter")
        for count in EXAMPLES:
            config = _config(folder, count)
            found = [_shares(folder, config, repeat) for repeat in range(REPEATS)]
            for what in ("disk", "memory", "time"):
                shares = [each[what] for each in found]
                spread = f"{min(shares):.2f} - {max(shares):.2f}"
                case = f"planned {what} of {2 * count} units, as a share"
                show(Row("plan", case, f"{statistics.median(shares):.2f} x", spread, "0.75 - 1.25"))


def _config(folder: Path, count: int) -> Path:
    drawn = random.Random(0)
    tasks = {}
    for task in ("one", "other"):
        records = [
            {"prompt": " ".join(drawn.choices(WORDS, k=drawn.randrange(8, 120))), "response": drawn.choice(WORDS)}
            for _ in range(count)
        ]
        tasks[task] = {"file": str(folder / f"{task}-{count}.jsonl")}
        Path(tasks[task]["file"]).write_text("\n".join(map(json.dumps, records)))
    values = {
        "model": {"base": str(work.checkpoint()), "adapter": str(folder / "adapter")},
        "tasks": tasks,
        "probe": {"samples": count},
    }
    file = folder / f"{count}.yaml"
    file.write_text(json.dumps(values))
    return file


def _shares(folder: Path, config: Path, repeat: int) -> dict[str, float]:
    planned = json.loads(_out("-m", "interference.cli", "plan", str(config), "--json"))
    out = folder / f"run-{config.stem}-{repeat}"
    done = json.loads(_out("-m", "tests.benchmarks.plan", str(config), str(out)).splitlines()[-1])
    return {
        "disk": (planned["spool"] + planned["stored"]) / done["disk"],
        "memory": planned["memory"] / done["memory"],
        "time": sum(planned["seconds"].values()) / done["seconds"],
    }


def _out(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], check=True, capture_output=True, text=True
    ).stdout


def _compute(config: Path, out: Path) -> dict[str, float]:
    import time

    from interference import config as configs
    from interference.measurement.compute import compute_config
    from interference.measurement.plan import peak_memory

    held = 0

    def watch(stage: str, done: int, total: int) -> None:
        nonlocal held
        if done == total:
            held = max(held, sum(path.stat().st_size for path in out.with_name(f"{out.name}.partial").iterdir()))

    start = time.perf_counter()
    compute_config(configs.load(config, options={"out": str(out)}), watch)
    return {"seconds": time.perf_counter() - start, "memory": peak_memory(), "disk": held}


if __name__ == "__main__":
    print(json.dumps(_compute(Path(sys.argv[1]), Path(sys.argv[2]))))
