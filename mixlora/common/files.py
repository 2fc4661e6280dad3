"""Files: strangers' are read within bounds, and tasks' names become names of files. Writing is `writing`'s."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

LARGEST_JSON = 2**26
"""Bytes of a JSON file that describes something, as a run's or an adapter's does."""
LARGEST_DATA = 2**32
"""Bytes of a file of records, predictions or judgements."""
DEEPEST = 64
"""Levels of lists and mappings in each other, in such a file and in a configuration."""
LONGEST_NAME = 200
"""Characters of a name that `file_name` makes: with an ending it still is below what file systems take."""


def expanded(path: Path | str) -> Path:
    """The path with a ~ that begins it replaced by the home directory, if there is one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # of a user whom nobody knows
        return Path(path)


def exists(path: Path) -> bool:
    """Whether anything is at a path, whatever name a stranger's file gives it."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have: too long, half a character
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder is at a path; see `exists`."""
    return exists(path) and path.is_dir()


def is_file(path: Path) -> bool:
    """Whether a regular file is at a path; see `exists`."""
    return exists(path) and path.is_file()


def read_bytes(path: Path, largest: int) -> bytes:
    """The content of a regular file. A pipe or a device, which may never end, is not waited for.

    Raises:
        OSError: it cannot be read, is no regular file, or has more than `largest` bytes.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except ValueError:  # a NUL, or half a character, in the name
        raise OSError(errno.EINVAL, "no file can have this name") from None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a regular file", str(path))
        if found.st_size > largest:
            raise OSError(errno.EFBIG, f"its {found.st_size} bytes are more than the limit of {largest}", str(path))
        return file.read(found.st_size)  # not `largest`, for which Python would make room at once


def read_text(path: Path, largest: int) -> str:
    """The text of a regular file in UTF-8.

    Raises:
        OSError: as `read_bytes`.
        ValueError: it is not UTF-8.
    """
    return read_bytes(path, largest).decode("utf-8")


def read_json(path: Path, largest: int = LARGEST_JSON) -> Any:
    """The value that a regular JSON file describes.

    Raises:
        OSError: as `read_bytes`.
        ValueError: it is no JSON in UTF-8, is deeper than `DEEPEST`, or holds half a character.
    """
    return parse_json(read_text(path, largest))


def parse_json(text: str) -> Any:
    """The value that JSON describes.

    Raises:
        ValueError: it is no JSON, is deeper than `DEEPEST`, or holds half a character.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from None
    _check(found)
    return found


def _check(value: Any) -> None:
    """Raise a ValueError for what is too deep to be walked through, or cannot be written again."""
    waiting = [(value, 1)]
    while waiting:
        found, depth = waiting.pop()
        if isinstance(found, str):
            found.encode("utf-8")
        elif isinstance(found, Mapping | list):
            if depth > DEEPEST:
                raise ValueError(f"it is nested deeper than {DEEPEST} levels")
            inner = [*found, *found.values()] if isinstance(found, Mapping) else found
            waiting += [(item, depth + 1) for item in inner]


def file_name(task: str) -> str:
    """A task's name as one component of a path, different for different names: "a/b" becomes "a%2Fb".

    A name that would be longer than `LONGEST_NAME` ends in a hash of itself, behind "%~", which no other name holds.
    """
    name = quote(task, safe=" +=,()")
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(task.encode("utf-8")).hexdigest()[:32]
        return f"{name[: LONGEST_NAME - len(digest) - 2]}%~{digest}"
    return name.replace(".", "%2E") if not task.strip(".") else name


def amount(count: float) -> str:
    """A number of bytes for a reader."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
