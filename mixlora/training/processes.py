"""Processes that train together: they meet before the data is read, so that what one cannot use ends all.

How many there are, and which this is, is said by the environment (RANK, WORLD_SIZE), as torchrun and accelerate set it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import PartialState
from accelerate.utils import gather_object

from mixlora.errors import MixLoraError


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def meet(device: str) -> bool:
    """Whether this is the first of the processes, which have now found each other.

    Args:
        device: the kind of their devices, "cpu" or "cuda".
    """
    return bool(PartialState(cpu=device == "cpu").is_main_process)


@contextmanager
def together() -> Iterator[None]:
    """After it, all processes have come through what is in it.

    Raises:
        MixLoraError: in all of them, where one has raised it.
    """
    failed: MixLoraError | None = None
    try:
        yield
    except MixLoraError as error:
        failed = error
    found = gather_object([failed]) if PartialState().num_processes > 1 else [failed]
    if (first := next((error for error in found if error is not None), None)) is not None:
        raise first
