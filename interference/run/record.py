"""Stored artifacts: a run's or factors' directory, written whole or not at all; its files, read and checked one by one.

They are read as those of a stranger.
"""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from safetensors import SafetensorError
from safetensors.numpy import load_file

from interference.errors import RunError, WriteError
from mixlora.common.files import exists, read_json

_SEAL = "seal"
_KINDS: Mapping[str, type] = {
    "config": dict,
    "data": dict,
    "fingerprints": dict,
    "versions": dict,
    "checksums": dict,
    "scope": dict,
    "not_probed": list,
    "seed": int,
    "step": int,
    "sketch": int,
    "sketch_error": float,
    "unit": str,
    "granularity": str,
    "token_mean": bool,
}
"""What the keys hold that are read again, where they are there; null is as good as none, but for the seed."""
_SEEDS = 2**32
"""Seeds that every generator takes lie below; as in a configuration."""
_NUMBERS: Mapping[type, str] = {np.integer: "whole numbers", np.floating: "real numbers"}


def check_free(out: Path, marker: str, noun: str, otherwise: str) -> None:
    """Nothing, if `out` can be written.

    Args:
        out: where an artifact will be.
        marker: the file by which one is known.
        noun: what messages call it.
        otherwise: what messages say of anything else there.

    Raises:
        RunError: if something is there already, or nothing can be moved there.
    """
    try:
        str(out.absolute()).encode()
    except UnicodeEncodeError:
        raise RunError(f"{out} lies where a name is no UTF-8, as safetensors needs it; choose another --out") from None
    if exists(out / marker):
        raise RunError(f"{out} already holds {noun}; choose another --out or delete it first")
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
        apart = out.is_symlink() or out.is_mount()  # what is written beside it cannot be moved there
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise RunError(f"{out} cannot be used: {said}; choose another --out") from None
    if taken:
        raise RunError(f"{out} exists and {otherwise}; choose another --out")
    if apart:
        raise RunError(f"{out} is a link or the root of a disk; name a directory within it by --out")


def check_writable(out: Path) -> None:
    """Nothing, if a directory can be made where `out` will be; told before it takes hours to fill it.

    Raises:
        RunError: if it cannot be made.
    """
    made = [folder for folder in (out, *out.parents) if not exists(folder)]
    try:
        temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        temporary.mkdir(parents=True)
        temporary.rmdir()
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise RunError(f"nothing can be written to {out.parent}: {said}; choose another --out") from None
    finally:
        for folder in made:
            with suppress(OSError, ValueError):
                folder.rmdir()


def write_whole(out: Path, noun: str, write: Callable[[Path], None]) -> None:
    """Write a directory under a temporary name, sync it and rename it.

    Args:
        out: where it will be; free, see `check_free`.
        noun: what messages call it.
        write: writes its files into the folder that it is given.

    Raises:
        WriteError: if it cannot be written; then nothing is left of it.
    """
    temporary = out.absolute().with_name(f".{out.name}.{os.getpid()}.tmp")  # pandas would expand a ~ of its own
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        _sync(temporary)
        if out.exists():
            out.rmdir()  # an empty directory, as check_free saw
        temporary.rename(out)
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or error
        raise WriteError(
            f"{noun} cannot be written to {out}: {said}; choose another --out, or make room there"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_files(files: Mapping[Path, bytes]) -> None:
    """Write files over others of their names: all or, where one cannot be written, none; no reader finds a part.

    Raises:
        OSError: if one cannot be written.
    """
    new = {path: path.with_name(f".{path.name}.{os.getpid()}.new") for path in files}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with new[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, written in new.items():
            written.replace(path)
    finally:
        for left in new.values():
            with suppress(OSError):
                left.unlink()


def remove_left(out: Path) -> None:
    """Remove what killed processes left of `out`; whoever calls it is the only one who writes there."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Make its files durable, and readable for all who may read the folder: safetensors writes for its owner alone."""
    for path in [*folder.iterdir(), folder]:
        if path != folder:
            path.chmod(folder.stat().st_mode & 0o666)
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def read_meta(path: Path, schema: int, noun: str) -> dict[str, Any]:
    """What `path`, a JSON file, tells of an artifact, which messages call `noun`, without its "schema".

    Raises:
        RunError: it is damaged, or of another schema.
    """
    try:
        meta = read_json(path)
    except (OSError, ValueError):
        meta = None
    if not isinstance(meta, dict) or "schema" not in meta:
        raise RunError(f"{path} is damaged; compute the {noun} again")
    found = meta.pop("schema")
    seal = meta.pop(_SEAL, None)
    if found != schema or isinstance(found, bool):
        raise RunError(
            f"{path.parent} has schema {found!r:.60}, but this version reads schema {schema}; update task-interference"
        )
    if seal is not None and seal != _seal({"schema": found, **meta}):
        raise RunError(f"{path} is damaged: its checksum is another than was written; compute the {noun} again")
    for key, kind in _KINDS.items():
        if not _is_of(kind, value := meta.get(key, kind())) and (value is not None or key == "seed"):
            raise RunError(f"{path} is damaged: its {key!r} is {value!r:.60}; compute the {noun} again")
    if not 0 <= meta.get("seed", 0) < _SEEDS:
        raise RunError(f"{path} is damaged: its seed is {meta['seed']!r:.60}; compute the {noun} again")
    if not all(isinstance(part, str) for part in meta.get("not_probed") or ()):
        raise RunError(f"{path} is damaged: a part in its 'not_probed' is no text; compute the {noun} again")
    return meta


def _is_of(kind: type, value: Any) -> bool:
    """Whether a value is of a kind; a truth value is no number, nor is what no 64 bits hold."""
    if kind is int and isinstance(value, int) and abs(value) >= 2**63:
        return False
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def write_meta(path: Path, meta: Mapping[str, Any]) -> None:
    """Write what `read_meta` reads, with a checksum of itself."""
    whole = json.loads(json.dumps(meta))
    sealed = {**whole, _SEAL: _seal(whole)}
    path.write_text(json.dumps(sealed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _seal(meta: Mapping[str, Any]) -> str:
    text = json.dumps(meta, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode()).hexdigest()[:32]


def check_sums(folder: Path, sums: Mapping[str, Any], names: Collection[str]) -> None:
    """Nothing, if the files are those that were written.

    Args:
        folder: of the artifact.
        sums: {name of a file: its checksum}, as they were written.
        names: of the files that such an artifact may have; nothing else is looked for.

    Raises:
        RunError: that names the file which is gone, cannot be read, or is another than was written.
    """
    for name, wanted in sums.items():
        if name not in names:
            raise RunError(f"{folder} is damaged: a file {name!r:.60} is no part of it; compute it again")
        if not (folder / name).is_file():
            raise RunError(f"{folder / name} is missing; compute it again")
        try:
            found = checksum(folder / name)
        except OSError as error:
            raise RunError(f"{folder / name} cannot be read: {error.strerror or error}") from None
        if found != wanted:
            raise RunError(f"{folder / name} is damaged: its checksum is another than was written; compute it again")


def checksum(path: Path) -> str:
    """A hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def read_frame(path: Path, texts: Collection[str] = (), numbers: Collection[str] = ()) -> pd.DataFrame:
    """The table of a parquet file.

    Args:
        path: the file.
        texts: columns of text, which may be empty in a row but is nothing else.
        numbers: columns of numbers.

    Raises:
        RunError: it cannot be read, or lacks a column.
    """
    try:
        frame = pd.read_parquet(path.absolute())  # pandas would expand a ~ of its own
        frame.columns = frame.columns.map(str)
        columns = [name for name in (*texts, *numbers) if list(frame.columns).count(name) == 1]
        kept = [name for name in columns if (is_text if name in texts else is_number)(frame[name])]
    except Exception as error:  # pyarrow and pandas raise errors of every kind on broken input
        raise RunError(f"{path} is damaged and must be computed again: {_first_line(error)}") from None
    for column in (*texts, *numbers):
        if column not in columns:
            raise RunError(f"{path} is damaged: it lacks column {column}")
        if column not in kept:
            raise RunError(f"{path} is damaged: its column {column} holds other values than were written")
    return frame


def is_text(column: pd.Series) -> bool:
    """Whether every value that is there is text."""
    return all(isinstance(value, str) for value in column.dropna())


def is_number(column: pd.Series) -> bool:
    """Whether the column is of numbers."""
    return bool((is_numeric_dtype(column) and not is_bool_dtype(column)) or column.isna().all())


def read_tensors(path: Path, kind: type[np.number] = np.integer) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file.

    Args:
        path: the file.
        kind: of all its numbers: np.integer or np.floating.

    Raises:
        RunError: it cannot be read, or holds others.
    """
    try:
        found = dict(load_file(path))
    except Exception as error:  # safetensors and numpy raise errors of every kind on broken input
        raise RunError(f"{path} is damaged and must be computed again: {_first_line(error)}") from None
    for name, values in found.items():
        if not np.issubdtype(values.dtype, kind):
            raise RunError(f"{path} is damaged: {name} is of {values.dtype}, not of {_NUMBERS[kind]}")
    return found


def _first_line(error: Exception) -> str:
    return f"{str(error).partition(chr(10))[0] or type(error).__name__:.300}"
