"""Limits on work that strangers describe, as a chat template or a pattern: how long it may take, and how much memory.

Not here: how much of a file is read (`files`).
"""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

from mixlora.common.errors import ToolError
from mixlora.common.files import amount

SECONDS = 2.0
"""Of the processor, which a busy machine does not use up."""
MEMORY = 2**31
"""Bytes above what the process has. Threads that decode pictures at the same time take of them, too."""
_AGAIN = 2.0
"""Seconds after which work that held the first signal back gets another one."""
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0

Result = TypeVar("Result")


class _Overrun(BaseException):
    """The time is over. No `except Exception` of the work can hold it back."""


class _Clock:
    """Whether a signal ends the work of the main thread."""

    runs = False


def limited(
    work: Callable[[], Result], refusal: Callable[[str], ToolError], *, timed: bool = True, memory: int | None = None
) -> Result:
    """The result of work that may never end. Jinja and regular expressions can be ended, most else of C cannot.

    Work in another thread than the main one, and on systems that cannot limit it, has no limit.

    Args:
        work: called without arguments.
        refusal: the error for work that "takes more than 2 s" or "needs more than 2 GiB of memory".
        timed: whether it has `SECONDS`, or any time.
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
    except _Overrun:
        raise refusal(f"takes more than {SECONDS:g} s") from None
    except MemoryError:
        raise refusal(f"needs more than {amount(memory)} of memory") from None


def restart() -> None:
    """Give what runs in `limited` all its time again: a part of the work is done."""
    if _Clock.runs:
        signal.setitimer(signal.ITIMER_PROF, SECONDS, _AGAIN)


def _end(_signal: int, _frame: FrameType | None) -> None:
    if _Clock.runs:
        raise _Overrun


def _start() -> tuple[Any, tuple[float, float]] | None:
    """Start the time, and return what handled the signal and what timer ran before; None where there is no timer."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return None
    handler = signal.getsignal(signal.SIGPROF)
    if handler is not _end:
        signal.signal(signal.SIGPROF, _end)
    return handler, signal.setitimer(signal.ITIMER_PROF, SECONDS, _AGAIN)


def _stop(before: tuple[Any, tuple[float, float]] | None) -> None:
    """Put back what `_start` found, but not the default, by which a signal on its way would end the process."""
    if before is None:
        return
    handler, timer = before
    signal.setitimer(signal.ITIMER_PROF, *timer)
    if handler not in (None, _end, signal.SIG_DFL):
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
