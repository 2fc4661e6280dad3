"""python -m tests.benchmarks [right] [gradients] [memory] [metrics] [light] [plan] [reading] [large] [whole].

If none is named, all of them but `whole`; `large`, which takes minutes on a CPU, only where there is a GPU.
--device and --dtype are for large and whole: where, and in which precision the base's weights are.
"""

import argparse
import sys
import time
import warnings

import torch
from transformers.utils import logging

from tests.benchmarks import bench_metrics, large, light, memory, plan, reading, right, speed
from tests.benchmarks.table import Row, head, show


def metrics() -> None:
    """Seconds of all metrics with 1000 bootstraps of 600 units x 448 blocks."""
    start = time.perf_counter()
    sys.argv[1:] = []
    bench_metrics.main()
    spent = f"{time.perf_counter() - start:.1f} s"
    show(Row("metrics", "everything above ('sum: all of them' should be <= 10 s)", spent))


BENCHMARKS = {
    "right": right.run,
    "gradients": speed.run,
    "memory": memory.run,
    "metrics": metrics,
    "light": light.run,
    "plan": plan.run,
    "reading": reading.run,
    "large": large.run,
    "whole": large.whole,
}


PLACED = ("large", "whole")
"""Those that take a device and a precision."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("benchmark", nargs="*", help=f"any of {', '.join(BENCHMARKS)}")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="", help="of large and whole; a GPU if there is one"
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="of their base")
    given = parser.parse_args()
    chosen = given.benchmark or _usual()
    if unknown := set(chosen) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    head()
    dtype = given.dtype and getattr(torch, given.dtype)
    for name in chosen:
        BENCHMARKS[name](**({"device": given.device, "dtype": dtype} if name in PLACED else {}))


def _usual() -> list[str]:
    return [name for name in BENCHMARKS if name != "whole" and (name != "large" or torch.cuda.is_available())]


if __name__ == "__main__":
    main()
