"""Locks: files by which one process at a time works on a directory."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mixlora.common.errors import BusyError, unwritable
from mixlora.common.files import exists

LOCK = ".lock"
"""The name of the lock file of a job that works within its directory from the beginning."""
_UNKNOWN = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}
"""Errors of file systems without locks, as on some clusters; jobs run without one there."""


@contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Hold a lock file, which the system releases when the process ends in whatever way.

    Processes forked within do not hold it, and may live on. The file is removed at the end, and so are folders that
    were created for it alone; the next process takes over what a killed one leaves of them.

    Args:
        path: of the file.
        doing: what its holder does, as "training runs/lora", for the error of a process that finds it held.

    Raises:
        BusyError: if another process holds it.
        RunError: if it cannot be written; a WriteError if its disk is full.
    """
    made = [folder for folder in path.parents if not exists(folder)]
    lock, holder = FileLock(path, mode=0o644, blocking=False, fallback_to_soft=False), os.getpid()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = _taken(lock)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        _remove_empty(made)
        raise unwritable(f"{path.parent} cannot be written", error) from None
    if not free:
        raise BusyError(f"another process is {doing}; wait for it, or choose another --out")
    file = _number(path)
    try:
        yield
    finally:
        if os.getpid() == holder:
            with suppress(OSError):  # a file that cannot be removed keeps nobody out
                if _number(path) == file:  # the folder may have been removed, and another process may work there
                    path.unlink()
            lock.release()
            _remove_empty(made)


def _taken(lock: FileLock) -> bool:
    """Take the lock, unless another process has it.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        lock.acquire()
    except (Timeout, FileNotFoundError):  # not found: the other process has just ended and removed the folder
        return False
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    return True


def _number(path: Path) -> int | None:
    """What tells a file from one that comes to its place later; None if there is none."""
    with suppress(OSError):
        return path.stat().st_ino
    return None


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, unless they are gone or hold something."""
    for folder in folders:
        with suppress(OSError, ValueError):
            folder.rmdir()
