"""Locks: files by which one process at a time works on a directory."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mixlora.common.errors import BusyError, RunError
from mixlora.common.files import exists

LOCK = ".lock"
"""What the lock is called of a job that works within its directory from the beginning."""
_UNKNOWN = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}
"""What file systems say that have no locks, as some of clusters: there nobody can be kept out."""
_HELD: set[int] = set()
"""Handles of the locks that this process has taken, and none that it was forked with."""


@contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Hold a lock file, which the system lets go of when the process ends in whatever way.

    Processes forked within do not hold it, and may live on. The file goes at the end, and so do folders that were made
    for it alone; what a killed process leaves of them is taken over by the next.

    Args:
        path: of the file.
        doing: what its holder does, as "training runs/lora", for who finds it held.

    Raises:
        BusyError: if another process holds it.
        RunError: if it cannot be written.
    """
    made = [folder for folder in path.parents if not exists(folder)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _taken(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        _remove_empty(made)
        said = getattr(error, "strerror", None) or error
        raise RunError(f"{path.parent} cannot be written: {said}; choose another --out") from None
    if handle is None:
        raise BusyError(f"another process is {doing}; wait for it, or choose another --out")
    _HELD.add(handle)
    try:
        yield
    finally:
        if handle in _HELD:
            _let_go(path, handle)
            _remove_empty(made)


def _let_go(path: Path, handle: int) -> None:
    """Remove the file, if it is still there, and end the lock; a file that cannot be removed keeps nobody out."""
    _HELD.discard(handle)
    try:
        with suppress(OSError):
            if _is_at(path, handle):
                path.unlink()
    finally:
        os.close(handle)


def _forget() -> None:
    """Close, in a process just forked, what it has of its parent's locks: the parent alone holds them."""
    for handle in _HELD:
        os.close(handle)
    _HELD.clear()


os.register_at_fork(after_in_child=_forget)


def _taken(path: Path) -> int | None:
    """A handle of the file, locked; None where another process has it, or has just ended and removed it.

    Raises:
        OSError: it cannot be written.
    """
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = _is_at(path, handle)
    except BlockingIOError:
        free = False
    except OSError as error:
        free = error.errno in _UNKNOWN
        if not free:
            os.close(handle)
            raise
    if free:
        return handle
    os.close(handle)
    return None


def _is_at(path: Path, handle: int) -> bool:
    """Whether the file is still at its path."""
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except OSError:
        return False


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first; one that is gone or holds something stays as it is."""
    for folder in folders:
        with suppress(OSError, ValueError):
            folder.rmdir()
