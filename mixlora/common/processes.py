"""Processes that work together: they meet before the data is read, so that what one cannot use ends all.

How many there are, and which this is, is said by the environment (RANK, WORLD_SIZE), as torchrun and accelerate set it.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from mixlora.common.errors import ToolError

PATIENCE = timedelta(days=7)
"""How long one may wait for another, where each measures its own share: what the slowest needs."""


def count() -> int:
    """How many processes work together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def meet(device: str, patience: timedelta | None = None) -> bool:
    """Whether this is the first of the processes, which have now found each other.

    Args:
        device: the kind of their devices, "cpu" or "cuda".
        patience: how long one may wait for another, where that is not a matter of minutes.
    """
    waiting = {} if patience is None else {"timeout": patience}
    return bool(PartialState(cpu=device == "cpu", **waiting).is_main_process)


@contextmanager
def together() -> Iterator[None]:
    """Wait until all processes have come through the block; re-raise any process's error in all of them.

    Raises:
        ToolError: that of one process, with `shared` set.
    """
    failed: ToolError | None = None
    try:
        yield
    except ToolError as error:
        failed = error
    found = gathered(failed)
    if (first := next((error for error in found if error is not None), None)) is not None:
        known = failed or first
        known.shared = True
        raise known


def gathered(value: Any) -> list[Any]:
    """The value of every process, by rank."""
    return list(gather_object([value])) if count() > 1 else [value]


def total(values: Tensor) -> Tensor:
    """The sum over all processes of a tensor on the CPU, in place, in every one of them."""
    torch.distributed.all_reduce(values, group=_of_cpus())
    return values


@functools.cache
def _of_cpus() -> torch.distributed.ProcessGroup | None:
    """A group that sums tensors on the CPU, whatever the processes otherwise talk by."""
    if torch.distributed.get_backend() == "gloo":
        return torch.distributed.group.WORLD
    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
