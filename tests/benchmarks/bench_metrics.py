"""Seconds for every metric with 1000 bootstraps of 600 units (6 tasks) x 448 blocks; prints, asserts nothing.

python tests/benchmarks/bench_metrics.py [--blocks 448] [--units 600] [--replicates 1000] [--groups fives]
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from interference.statistics.metrics import METRICS
from interference.statistics.uncertainty import split_half_null, table

GROUPS = {
    "none": lambda units, each: None,
    "fives": lambda units, each: [unit // 5 for unit in range(units)],
    "shared": lambda units, each: [unit % each for unit in range(units)],
}


def synthetic_grams(blocks: int, units: int, tasks: int, rank: int = 64, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """A float32 stack [blocks, units, units] of Grams of tasks with signal, and the task of every unit."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((tasks, rank), dtype=np.float32)
    grams = np.empty((blocks, units, units), dtype=np.float32)
    for gram in grams:
        gradients = 0.3 * np.repeat(means, units // tasks, axis=0) + rng.standard_normal(
            (units, rank), dtype=np.float32
        )
        np.matmul(gradients, gradients.T, out=gram)
    return grams, [str(task) for task in range(tasks) for _ in range(units // tasks)]


def clocks() -> np.ndarray:
    """Seconds on the wall and of the processor: the second tells what a busy machine's first would be on a free one."""
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("blocks", 448), ("units", 600), ("tasks", 6), ("replicates", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--groups", choices=GROUPS, default="none", help="of five units of a task, or of one of each task"
    )
    options = parser.parse_args()
    grams, tasks = synthetic_grams(options.blocks, options.units, options.tasks)
    groups = GROUPS[options.groups](options.units, options.units // options.tasks)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for aggregate in ("sum", "mean"):
        total = np.zeros(2)
        cases = [(metric, "ratio-of-means") for metric in METRICS] + [("interference", "mean-of-ratios")]
        for metric, reduce in cases:
            start = clocks()
            table(
                grams, tasks, metric, reduce=reduce, aggregate=aggregate, replicates=options.replicates, groups=groups
            )
            spent = clocks() - start
            total += spent
            print(
                f"{aggregate:5} {metric:21} {reduce:15} {spent[0]:7.2f} s, {spent[1]:7.2f} s of processor", flush=True
            )
        print(f"{aggregate:5} {'all of them':37} {total[0]:7.2f} s, {total[1]:7.2f} s of processor", flush=True)
    start = clocks()
    split_half_null(grams, tasks, groups=groups)
    print(f"split-half null {(clocks() - start)[0]:.2f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory above the Grams {(peak - before) / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
