"""Programs in processes of their own: several that torchrun starts, or one more that takes a lock."""

import os
import subprocess
import sys
import textwrap

SETTINGS = {"layers": [0, 2], "batch_size": 2, "memory_budget": 20_000}  # several tiles a block


def launched(count, *arguments):
    """How a program ends in `count` processes that torchrun starts, which find a free port by themselves."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run(
        [sys.executable, *launch, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


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
