"""Limits on work that strangers describe, as a chat template or a pattern: how long it may take, and how much memory.

Not here: how much of a file is read (`files`).
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

from mixlora.common.errors import ToolError
from mixlora.common.files import amount

SECONDS = 2.0
"""Of the processor, in the thread that works: neither a busy machine nor other threads use it up."""
WALL = 10.0
"""By the clock, which a busy machine may use up first."""
_LEAST = 0.25
"""Seconds of the processor below which the clock ends nothing: the process was stopped, not the work long."""
_TICK = 0.05
"""Seconds of the processor, in all threads, after which the time is looked at."""
MEMORY = 2**31
"""Bytes above what the process has. Threads that decode pictures at the same time take of them, too."""
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0

Result = TypeVar("Result")


class _Overrun(BaseException):
    """So many seconds are over. No `except Exception` of the work can hold it back."""


class _Clock:
    """Whether a signal ends the work of the main thread, and when it was given its time."""

    runs = False
    processor = 0.0
    wall = 0.0


def limited(
    work: Callable[[], Result], refusal: Callable[[str], ToolError], *, timed: bool = True, memory: int | None = None
) -> Result:
    """The result of work that may never end. Jinja and regular expressions can be ended, most else of C cannot.

    Work in another thread than the main one, and on systems that cannot limit it, has no limit.

    Args:
        work: called without arguments.
        refusal: the error for work that "takes more than 2 s" or "needs more than 2 GiB of memory".
        timed: whether it has `SECONDS` and `WALL`, or any time.
        memory: what it has in place of `MEMORY`.

    Raises:
        ToolError: `refusal`'s.
    """
    memory = memory or MEMORY
    before, most = _start() if timed else None, _bound_memory(memory)
    _Clock.runs = before is not None
    try:
        try:
            return work()
        finally:
            _Clock.runs = False  # before anything is called, so that a signal cannot end what follows
            _unbound_memory(most)
            _stop(before)
    except _Overrun as over:
        raise refusal(f"takes more than {over.args[0]:g} s") from None
    except MemoryError:
        raise refusal(f"needs more than {amount(memory)} of memory") from None


def restart() -> None:
    """Give what runs in `limited` all its time again: a part of the work is done."""
    _Clock.processor, _Clock.wall = time.thread_time(), time.monotonic()


def _look(_signal: int, _frame: FrameType | None) -> None:
    """End the work if its time is over."""
    processor, wall = time.thread_time() - _Clock.processor, time.monotonic() - _Clock.wall
    over = SECONDS if processor >= SECONDS else WALL if wall >= WALL and processor >= min(_LEAST, SECONDS) else None
    if _Clock.runs and over is not None:
        restart()  # what holds it back for good is ended again
        raise _Overrun(over)


def _start() -> tuple[Any, tuple[float, float]] | None:
    """Start the time, and return what handled the signal and what timer ran before; None where there is no timer."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return None
    handler = signal.getsignal(signal.SIGPROF)
    if handler is not _look:
        signal.signal(signal.SIGPROF, _look)
    restart()
    return handler, signal.setitimer(signal.ITIMER_PROF, _TICK, _TICK)


def _stop(before: tuple[Any, tuple[float, float]] | None) -> None:
    """Put back what `_start` found, but not the default, by which a signal on its way would end the process."""
    if before is None:
        return
    handler, timer = before
    signal.setitimer(signal.ITIMER_PROF, *timer)
    if handler not in (None, _look, signal.SIG_DFL):
        signal.signal(signal.SIGPROF, handler)


def _bound_memory(memory: int) -> tuple[int, int] | None:
    """Let allocations fail that want more than there is; the limits before, None where they stay."""
    if (size := _size()) is None:
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = size + memory
    if any(limit != resource.RLIM_INFINITY and limit <= most for limit in (soft, hard)):
        return None
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    return soft, hard


def _unbound_memory(before: tuple[int, int] | None) -> None:
    if before is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, before)


def _size() -> int | None:
    """The bytes of memory that the process has addresses for; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        handle = os.open("/proc/self/statm", os.O_RDONLY)
        try:
            return int(os.read(handle, 32).split()[0]) * _PAGE
        finally:
            os.close(handle)
    return None
