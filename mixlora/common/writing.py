"""Files and directories that are whole or absent: written under a temporary name, synced, renamed.

A reader finds the old content or the new, never a part; what a killed process leaves never has the final name.
Errors of writing, usually OSError, pass through: each caller says what was lost and what to do.
"""

import glob
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from mixlora.common.errors import is_full


def growing(path: Path) -> Path:
    """The temporary name for what only one process at a time writes, the same after a kill: ".NAME.new"."""
    return path.with_name(f".{path.name}.new")


def unique(path: Path) -> Path:
    """A temporary name that no other process uses, running or killed: ".NAME.0f3a91c2.tmp"."""
    return path.with_name(f".{path.name}.{token_hex(4)}.tmp")


@contextmanager
def whole_file(path: Path, durable: bool = True) -> Iterator[Path]:
    """The temporary path of a file; at the end of the block the file replaces `path`.

    Args:
        path: of the file; no other process may write it at the same time.
        durable: sync the file before renaming it, so that it survives a power cut.
    """
    temporary = growing(path)
    try:
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_directory(out: Path, temporary: Path | None = None) -> Iterator[Path]:
    """A temporary directory to write into; at the end of the block it replaces `out`.

    Args:
        out: a free path or an empty directory; missing parents are created.
        temporary: the temporary path, which must be free; None for a unique one.
    """
    temporary = unique(out) if temporary is None else temporary
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _sync_all(temporary)
        if out.exists():
            out.rmdir()  # an empty directory, or this fails
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file.

    Raises:
        OSError: it cannot be written; the old file stays.
    """
    with whole_file(path) as new:
        new.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def replace_files(files: Mapping[Path, bytes]) -> None:
    """Write several files, replacing those of the same names: all of them or, if one cannot be written, none.

    Raises:
        OSError: one cannot be written.
    """
    new = {path: unique(path) for path in files}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            new[path].write_bytes(content)
            _sync(new[path])
        for path, written in new.items():
            written.replace(path)
    finally:
        for left in new.values():
            with suppress(OSError):
                left.unlink()


def remove_left(out: Path) -> None:
    """Remove the temporary directories of `out` that killed processes left. No other process may be writing `out`.

    Temporary directories of a longer name, as of "out.2", stay.
    """
    for left in out.parent.glob(f".{glob.escape(out.name)}.{'[0-9a-f]' * 8}.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def write_remedy(number: int | None, continues: str) -> str:
    """What the user can do about a file that could not be written.

    Args:
        number: the error's errno, if it is known.
        continues: what happens then, as "the same command continues".
    """
    if is_full(number):
        return f"make room there, and {continues}"
    return f"make it writable, and {continues}, or choose another --out"


def _sync(path: Path) -> None:
    """Sync a file, or the names in a directory, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_all(folder: Path) -> None:
    """Sync all files in a folder, and give them its read permissions: safetensors writes files for their owner only."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            path.chmod(folder.stat().st_mode & 0o666)
        _sync(path)
