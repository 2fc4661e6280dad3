"""Programs in processes of their own: several that torchrun starts, or one more that takes a lock."""

import os
import runpy
import subprocess
import sys
import tempfile
import textwrap
import uuid
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.support import killing

SETTINGS = {"layers": [0, 2], "batch_size": 2, "memory_budget": 20_000}  # several tiles a block
ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def torchrun(count, *arguments):
    """How a program ends in `count` processes that torchrun starts, which find a free port by themselves."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return subprocess.run(
        [sys.executable, *launch, *map(str, arguments)],
        env=os.environ | ALONE, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def launched(count, *arguments):
    """As `torchrun`, by its own launcher and agent, but in processes that begin with everything imported."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        code = killing.ended(killing.start(_launch, count, [*map(str, arguments)], str(out), log=err))
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text(errors="replace"))


def _launch(count, arguments, out):
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), sys.stdout.fileno())
    os.environ.update(ALONE)
    alone = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": str(uuid.uuid4())}
    config = LaunchConfig(1, 1, count, max_restarts=0, monitor_interval=0.1, start_method="fork", **alone)
    try:
        elastic_launch(config, _run)(arguments)
    except ChildFailedError as error:
        sys.exit(str(error))


def _run(arguments):
    torch.set_num_threads(1)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def other(path, then="print('in')"):
    """What another process says that takes the lock."""
    code = f"""
        import os, signal
        from pathlib import Path
        from mixlora.common.errors import BusyError
        from mixlora.common.locks import locked
        try:
            with locked(Path({str(path)!r}), "training runs/x"):
                {then}
        except BusyError as error:
            print(error)
    """
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
