"""Stored artifacts: a run's or factors' directory, written whole or not at all; its files, read and checked one by one.

They are read as those of a stranger.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from safetensors import SafetensorError
from safetensors.numpy import load_file

from interference.errors import RunError, WriteError
from mixlora.common.files import read_json
from mixlora.common.sealed import LENGTH, SEAL, seal, sealed
from mixlora.common.writing import whole_directory

_SEALS = 64
"""Values of a record without a seal that are tried as one: it has a handful of keys, and a stranger's may have more."""
_KINDS: Mapping[str, type] = {
    "config": dict,
    "data": dict,
    "fingerprints": dict,
    "versions": dict,
    "checksums": dict,
    "scope": dict,
    "adam": dict,
    "not_probed": list,
    "seed": int,
    "step": int,
    "sketch": int,
    "sketch_error": float,
    "unit": str,
    "loss": str,
    "granularity": str,
    "token_mean": bool,
}
"""What the keys hold that are read again, where they are there; null counts as missing, except for the seed."""
_SEEDS = 2**32
"""Seeds that every generator takes lie below; as in a configuration."""
_NUMBERS: Mapping[type, str] = {np.integer: "whole numbers", np.floating: "real numbers"}


@contextmanager
def saving(out: Path, noun: str) -> Iterator[Path]:
    """The folder to write an artifact's files into; at the end of the block it is whole at `out`.

    Args:
        out: where it will be; free, see `directories.check_free`.
        noun: what messages call it.

    Raises:
        WriteError: it cannot be written; then nothing is left of it.
    """
    try:
        with whole_directory(out.absolute()) as folder:  # pandas would expand a ~ of its own
            yield folder
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or error
        raise WriteError(
            f"{noun} cannot be written to {out}: {said}; choose another --out, or make room there"
        ) from None


def read_meta(path: Path, schema: int, noun: str, older: Collection[int] = ()) -> dict[str, Any]:
    """What `path`, a JSON file, tells of an artifact, which messages call `noun`, without its "schema".

    It must be of `schema`, or of one of the `older` ones, some of which have no checksum of themselves.

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
    told = meta.pop(SEAL, None)
    if isinstance(found, bool) or found not in (schema, *older):
        raise RunError(
            f"{path.parent} has schema {found!r:.60}, but this version reads schema {schema}; update task-interference"
        )
    if told is None and found == schema:
        raise RunError(f"{path} is damaged: it lacks its own checksum (seal); compute the {noun} again")
    whole = {"schema": found, **meta}
    if _misnamed(whole) if told is None else told != seal(whole):
        raise RunError(f"{path} is damaged: its checksum differs from the recorded one; compute the {noun} again")
    for key, kind in _KINDS.items():
        if not _is_of(kind, value := meta.get(key, kind())) and (value is not None or key == "seed"):
            raise RunError(f"{path} is damaged: its {key!r} is {value!r:.60}; compute the {noun} again")
    if not 0 <= meta.get("seed", 0) < _SEEDS:
        raise RunError(f"{path} is damaged: its seed is {meta['seed']!r:.60}; compute the {noun} again")
    if not all(isinstance(part, str) for part in meta.get("not_probed") or ()):
        raise RunError(f"{path} is damaged: a part of its 'not_probed' is not text; compute the {noun} again")
    return meta


def _is_of(kind: type, value: Any) -> bool:
    """Whether a value is of a kind; a truth value is not a number, nor is what no 64 bits hold."""
    if kind is int and isinstance(value, int) and abs(value) >= 2**63:
        return False
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def write_meta(path: Path, meta: Mapping[str, Any]) -> None:
    """Write what `read_meta` reads, with a checksum of itself."""
    path.write_text(json.dumps(sealed(meta), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _misnamed(whole: Mapping[str, Any]) -> bool:
    """Whether one of the keys is the seal of the others, whose own name was damaged."""
    texts = [key for key, value in whole.items() if isinstance(value, str) and len(value) == LENGTH]
    return any(whole[name] == seal({k: v for k, v in whole.items() if k != name}) for name in texts[-_SEALS:])


def check_sums(folder: Path, sums: Mapping[str, Any], names: Collection[str]) -> None:
    """Check that the files are those that were written.

    Args:
        folder: of the artifact.
        sums: {name of a file: its checksum}, as they were written.
        names: of the files that such an artifact may have; nothing else is looked for.

    Raises:
        RunError: a file is gone, cannot be read, is another than was written, or was not written with the others; the
            message names it.
    """
    for name, wanted in sums.items():
        if name not in names:
            raise RunError(f"{folder} is damaged: it lists the unknown file {name!r:.60}; compute it again")
        if not (folder / name).is_file():
            raise RunError(f"{folder / name} is missing; compute it again")
        try:
            found = checksum(folder / name)
        except OSError as error:
            raise RunError(f"{folder / name} cannot be read: {error.strerror or error}") from None
        if found != wanted:
            raise RunError(f"{folder / name} is damaged: its checksum differs from the recorded one; compute it again")
    if sums:
        for name in names:
            if name not in sums and (folder / name).exists():
                raise RunError(
                    f"{folder / name} does not belong to {folder}, which has no checksum for it; remove the file"
                )


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
            raise RunError(f"{path} is damaged: its column {column} has values of the wrong type")
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
            raise RunError(f"{path} is damaged: {name} has the type {values.dtype}, not {_NUMBERS[kind]}")
    return found


def _first_line(error: Exception) -> str:
    return f"{str(error).partition(chr(10))[0] or type(error).__name__:.300}"
