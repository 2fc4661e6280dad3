"""Files: reading untrusted ones within bounds, and making file names of tasks' names.

Not here: writing (`writing`).
"""

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
"""The largest JSON file that describes a run, an adapter or the like, in bytes."""
LARGEST_DATA = 2**32
"""The largest file of records, predictions or judgements, in bytes."""
DEEPEST = 64
"""The deepest nesting of lists and mappings in such a file and in a configuration."""
TRAINING = "training.json"
"""The file of a training's record, by which its directory is recognised."""
SNAPSHOTS = "snapshots"
"""The folder of weights along the way, in that directory."""
LONGEST_NAME = 200
"""The most characters of a name that `file_name` makes: with an ending it stays within what file systems allow."""


def expanded(path: Path | str) -> Path:
    """The path with a leading ~ replaced by the home directory, if there is one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # the system does not know the user
        return Path(path)


def without_dots(path: Path) -> Path:
    """The same place without "..": making the parents of "a/../b" would leave an empty folder "a"."""
    if ".." not in path.parts:
        return path
    if path.name == "..":
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent)) / path.name


def exists(path: Path) -> bool:
    """Whether anything is at a path; False for a name that no file can have, as an untrusted file may give."""
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
    """The content of a regular file. Pipes and devices, which may never end, are refused without waiting.

    Raises:
        OSError: it cannot be read, is not a regular file, or has more than `largest` bytes.
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
        return file.read(found.st_size)  # not `largest`: Python would allocate all of it


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
        ValueError: it is not JSON in UTF-8, is deeper than `DEEPEST`, or holds half a character.
    """
    return parse_json(read_text(path, largest))


def parse_json(text: str) -> Any:
    """The value that JSON describes.

    Raises:
        ValueError: it is not JSON, is deeper than `DEEPEST`, or holds half a character.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from None
    _check(found)
    return found


def _check(value: Any) -> None:
    """Raise a ValueError if a value is nested too deeply, or holds text that cannot be written as UTF-8."""
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
    """A task's name as a file name, different for different names: "a/b" becomes "a%2Fb".

    A name that would be longer than `LONGEST_NAME` is cut and ends in "%~" and its hash; no other name holds "%~".
    """
    name = quote(task, safe=" +=,()")
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(task.encode("utf-8")).hexdigest()[:32]
        return f"{name[: LONGEST_NAME - len(digest) - 2]}%~{digest}"
    return name.replace(".", "%2E") if not task.strip(".") else name


def amount(count: float) -> str:
    """A number of bytes in the unit that suits it, as "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
