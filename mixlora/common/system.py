"""What the system gives a process: its standard streams, open files and address space; told in one sentence each.

Nothing heavy is imported here.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any

from mixlora.common.errors import ConfigError, ResourceError, WriteError, reason

LEAST_SPACE = 2**30
"""Bytes of address space below which numerical libraries fail to load, or wait for memory for ever."""
ENOUGH_FILES = 256
"""Open files that are asked of the system where it grants them."""
_NUMBERS = {"WORLD_SIZE": (1, 1), "RANK": (0, 0), "LOCAL_WORLD_SIZE": (1, 1), "LOCAL_RANK": (-1, 0)}
"""{environment variable: (the least it can be, what it is if it is not set)}."""
_FILES = ("Too many open files",)
_MEMORY = (
    "Cannot allocate memory",
    "cannot allocate memory",
    "failed to map segment",
    "can't start new thread",
    "memory allocation of",
    "not enough memory",
)


class _Output(FileIO):
    """Standard output; what cannot be written raises a WriteError, but for a reader that has read enough."""

    def __init__(self, number: int, is_open: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.is_open = is_open

    def write(self, data: Any) -> Any:
        try:
            if not self.is_open:
                raise OSError(errno.EBADF, "it is closed")
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise WriteError(
                f"standard output cannot be written: {reason(error)}; send it to a file or a terminal with room"
            ) from None


def open_streams() -> None:
    """Give every standard stream that is closed a place, so that no other file gets its number.

    What goes to a closed standard error is lost. What cannot be written to standard output raises a WriteError.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    known: Any = sys.stdout
    raw = _raw(known)
    if known is None:
        sys.stdout = TextIOWrapper(BufferedWriter(_Output(1, False)), encoding="utf-8")
    elif type(raw) is FileIO:
        known.flush()
        output: Any = _Output(raw.fileno(), True)
        sys.stdout = TextIOWrapper(
            output if known.buffer is raw else BufferedWriter(output),  # unbuffered if PYTHONUNBUFFERED says so
            encoding=known.encoding,
            errors=known.errors,
            line_buffering=known.line_buffering,
            write_through=known.write_through,
        )


@contextmanager
def written() -> Iterator[None]:
    """Write at the end of the block what was printed in it.

    Raises:
        WriteError: if standard output is closed or full.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has read enough
        silence(sys.stdout)
        sys.exit(1)
    except WriteError:
        silence(sys.stdout)
        raise


def processes() -> dict[str, int]:
    """How many processes work together, and which one this is, as torchrun and accelerate tell in the environment.

    Raises:
        ConfigError: if a number there cannot be one.
    """
    return {name: _number(name, least, usual) for name, (least, usual) in _NUMBERS.items()}


def _number(name: str, least: int, usual: int) -> int:
    given = os.environ.get(name)
    try:
        found = usual if given is None else int(given)
    except ValueError:
        found = least - 1
    if found < least:
        raise ConfigError(
            f"the environment variable {name} is {given!r:.60}, but must be a whole number of at least {least}; let "
            "torchrun or accelerate set it, or unset it"
        )
    return found


def raise_limits() -> None:
    """Ask for more open files where the system grants them, and check that the libraries find room.

    Raises:
        ResourceError: if the address space is too small.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(ENOUGH_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY and space < LEAST_SPACE:
        raise ResourceError(
            f"the address space of this process is limited to {space / 2**20:.0f} MiB, but its libraries need "
            f"{LEAST_SPACE / 2**20:.0f}; raise the limit (ulimit -v)"
        )


def scarce(error: BaseException) -> ResourceError | None:
    """The error in our own words if open files or memory ran out; otherwise None."""
    text, number = str(error), getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE) or any(words in text for words in _FILES):
        return ResourceError("this process cannot open more files (Too many open files); raise the limit (ulimit -n)")
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(words in text for words in _MEMORY):
        said = f" ({text.partition(chr(10))[0]})" if text else ""
        return ResourceError(f"this process cannot get more memory{said}; free some, or raise its limit")
    return None


def _raw(stream: Any) -> Any:
    """The unbuffered stream below a text stream, if any."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def silence(stream: Any) -> None:
    """Drop what a standard stream could not take, which would fail again at the end of the process."""
    raw = _raw(stream)
    if isinstance(raw, FileIO):
        with suppress(OSError, ValueError):
            number = os.open(os.devnull, os.O_WRONLY)
            os.dup2(number, raw.fileno())
            os.close(number)
    if isinstance(raw, _Output):
        raw.is_open = True
