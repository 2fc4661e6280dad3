"""Processes that work together: they meet before the data is read, and an error of one ends all.

The environment (RANK, WORLD_SIZE, LOCAL_WORLD_SIZE) says how many there are and which one this is; torchrun and
accelerate set it.
"""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from mixlora.common import system
from mixlora.common.errors import ConfigError, EndedError, ToolError

PATIENCE = timedelta(days=7)
"""How long a process may wait for another where each measures its own share: as long as the slowest needs."""

_GONE = re.compile(r"\b(gloo|nccl)\b", re.IGNORECASE)
"""What torch's errors name where another process does not answer, if they are no DistError."""


def count() -> int:
    """The number of processes that work together."""
    return system.processes()["WORLD_SIZE"]


def rank() -> int:
    """The rank of this process, from 0."""
    return system.processes()["RANK"]


def here() -> int:
    """The number of processes on this machine."""
    return system.processes()["LOCAL_WORLD_SIZE"]


def meet(device: str, patience: timedelta | None = None) -> bool:
    """Wait until all processes are connected; True in the first of them.

    Args:
        device: the type of their devices, "cpu" or "cuda".
        patience: how long a process may wait for another; None for accelerate's default of some minutes.

    Raises:
        ConfigError: more processes of this machine than it has GPUs are to meet, which nccl refuses.
    """
    if device == "cuda" and not torch.distributed.is_initialized() and here() > (gpus := torch.cuda.device_count()):
        refused = ConfigError(
            f"{here()} processes were started on this machine, where torch finds {gpus} GPU{'s' if gpus != 1 else ''}; "
            "start one process a GPU, or give device: cpu"
        )
        refused.shared = True  # every process finds it
        raise refused
    waiting = {} if patience is None else {"timeout": patience}
    with noticing():
        return bool(PartialState(cpu=device == "cpu", **waiting).is_main_process)


@contextmanager
def noticing() -> Iterator[None]:
    """Tell torch's error for a process that no longer answers in our own words.

    Raises:
        EndedError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or _GONE.search(str(error))
        if count() == 1 or isinstance(error, ToolError) or not lost:
            raise
        said = str(error).strip().partition("\n")[0]
        raise EndedError(
            f"another of the {count()} processes ended or cannot be reached ({said:.300}); the same command continues"
        ) from None


@contextmanager
def together() -> Iterator[None]:
    """Wait until all processes have left the block; re-raise any process's error in all of them.

    Raises:
        ToolError: the error of one process, with `shared` set.
        EndedError: another process has ended without one.
    """
    failed: ToolError | None = None
    try:
        yield
    except EndedError:  # there is nobody to wait for
        raise
    except ToolError as error:
        failed = error
    found = gathered(failed)
    if (first := next((error for error in found if error is not None), None)) is not None:
        known = failed or first
        known.shared = True
        raise known


def gathered(value: Any) -> list[Any]:
    """The value of every process, by rank."""
    with noticing():
        return list(gather_object([value])) if count() > 1 else [value]


def total(values: Tensor) -> Tensor:
    """Sum a CPU tensor over all processes, in place and in each of them."""
    with noticing():
        torch.distributed.all_reduce(values, group=_of_cpus())
    return values


@functools.cache
def _of_cpus() -> torch.distributed.ProcessGroup | None:
    """The process group that sums CPU tensors, whatever the default backend is."""
    if torch.distributed.get_backend() == "gloo":
        return torch.distributed.group.WORLD
    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
