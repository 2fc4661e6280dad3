"""python -m tests.benchmarks [right] [gradients] [memory] [metrics] [light]: all of them if none is named."""

import argparse
import sys
import time
import warnings

from transformers.utils import logging

from tests.benchmarks import bench_metrics, light, memory, right, speed
from tests.benchmarks.table import Row, head, show


def metrics() -> None:
    """Seconds of all metrics with 1000 bootstraps of 600 units x 448 blocks."""
    start = time.perf_counter()
    sys.argv[1:] = []
    bench_metrics.main()
    spent = f"{time.perf_counter() - start:.1f} s"
    show(Row("metrics", "everything above ('sum: all of them' should be <= 10 s)", spent))


BENCHMARKS = {"right": right.run, "gradients": speed.run, "memory": memory.run, "metrics": metrics, "light": light.run}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("benchmark", nargs="*", help=f"any of {', '.join(BENCHMARKS)}")
    chosen = parser.parse_args().benchmark or list(BENCHMARKS)
    if unknown := set(chosen) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    head()
    for name in chosen:
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
