"""Directories for results, checked before hours of work: is one free, and can it be written?

Not here: writing (`writing`), and who works in a directory (`locks`).
"""

import re
from contextlib import suppress
from pathlib import Path

from mixlora.common.errors import RunError, reason, unwritable
from mixlora.common.files import exists
from mixlora.common.writing import unique


def is_occupied(out: Path) -> bool:
    """Whether anything but an empty directory is at a path.

    Raises:
        OSError: the path cannot be looked up.
    """
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


def check_free(out: Path, marker: str, noun: str, otherwise: str) -> None:
    """Check that `out` is free.

    Args:
        out: where the results will be.
        marker: the file that such results always have.
        noun: what messages call such results.
        otherwise: what messages say if anything else is there.

    Raises:
        RunError: if something is there already, or a directory cannot be renamed to it.
    """
    try:
        str(out.absolute()).encode()
    except UnicodeEncodeError:
        raise RunError(f"the path {out} is not UTF-8, which safetensors needs; choose another --out") from None
    if exists(out / marker):
        raise RunError(f"{out} already holds {noun}; choose another --out or delete it first")
    try:
        occupied = is_occupied(out)
        apart = out.is_symlink() or _is_mounted(out)  # a directory beside it cannot be renamed to it
    except (OSError, ValueError) as error:
        raise RunError(f"{out} cannot be used: {reason(error)}; choose another --out") from None
    if occupied:
        raise RunError(f"{out} exists and {otherwise}; choose another --out")
    if apart:
        raise RunError(f"{out} is a link or the root of a disk; name a directory within it with --out")


def _is_mounted(path: Path) -> bool:
    """Whether something is mounted at a path, a folder of the same disk among them, which `is_mount` does not see."""
    if path.is_mount():
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # only Linux has it
        return False
    points = {re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4]) for line in lines}
    return str(path.resolve()) in points


def check_writable(out: Path) -> None:
    """Check that a directory can be made at `out`.

    Raises:
        RunError: if it cannot be made; a WriteError if the disk is full.
    """
    made = [folder for folder in (out, *out.parents) if not exists(folder)]
    try:
        temporary = unique(out)
        temporary.mkdir(parents=True)
        with suppress(FileNotFoundError):  # a process that works on `out` removes what killed ones have left
            temporary.rmdir()
    except (OSError, ValueError) as error:
        raise unwritable(f"nothing can be written to {out.parent}", error) from None
    finally:
        for folder in made:
            with suppress(OSError, ValueError):
                folder.rmdir()
