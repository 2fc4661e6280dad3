"""Data files to records: JSON, JSON lines, parquet, and directories that `datasets` wrote."""

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mixlora.common.errors import DataError
from mixlora.common.files import LARGEST_DATA, exists, is_folder, read_bytes, read_json
from mixlora.data.reading.problems import collecting
from mixlora.data.reading.records import Record

_AT_ONCE = 1000
"""Rows of a dataset that are converted together."""
_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
"""In a dataset directory: the list of data files, the description of the columns, the list of splits."""


def read_records(file: Path, split: str | None, problems: list[DataError] | None) -> list[Record]:
    """The records of a file or of a dataset directory, in its order.

    With a list `problems`, a line that is no JSON or an entry that is no record adds an error to it and is skipped.

    Raises:
        DataError: the file cannot be read, or (without `problems`) something in it is no record.
    """
    if is_folder(file):
        return _dataset_records(file, split, problems)
    if split is not None:
        raise DataError(f"{file} has no splits; leave out `split: {split}`.")
    try:
        data = read_bytes(file, LARGEST_DATA)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}; give a file that can.") from error
    if data[:4] == b"PAR1":
        return _parquet_records(data, file, problems)
    data = data.removeprefix(codecs.BOM_UTF8)
    if data.lstrip().startswith(b"["):
        return _numbered(_parse(_text(data, file, 1), file, 1), file.name, problems)
    return _line_records(data, file, problems)


def _line_records(data: bytes, file: Path, problems: list[DataError] | None) -> list[Record]:
    found = []
    # split("\n"), not splitlines: a JSON string may contain other line separators unescaped
    for number, line in enumerate(data.split(b"\n"), 1):
        with collecting(problems):
            if (text := _text(line, file, number)).strip():
                found.append(Record(_parse(text, file, number), f"{file.name}:{number}", number))
    return found


def _numbered(rows: Iterable[Any], name: str, problems: list[DataError] | None) -> list[Record]:
    found = []
    for index, values in enumerate(rows):
        with collecting(problems):
            found.append(Record(values, f"{name}[{index}]", index))
    return found


def _text(data: bytes, file: Path, first_line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise DataError(
            f"{file.name}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8."
        ) from error


def _parse(text: str, file: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{file.name}:{first_line + error.lineno - 1}"
        raise DataError(f"{place}: no JSON at column {error.colno} ({error.msg}); write an object a line.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.name}:{first_line}: JSON that cannot be read ({error}); simplify it.") from error


def _parquet_records(data: bytes, file: Path, problems: list[DataError] | None) -> list[Record]:
    from pyarrow import BufferReader, parquet

    try:
        rows = parquet.ParquetFile(BufferReader(data)).read().to_pylist()
    except Exception as error:  # pyarrow raises errors of every kind on broken input
        raise DataError(f"{file.name}: a parquet file that cannot be read ({error}); write it again.") from error
    return _numbered(rows, file.name, problems)


def _dataset_records(folder: Path, split: str | None, problems: list[DataError] | None) -> list[Record]:
    """The stored records of a dataset directory: nothing is decoded, an image is {"bytes", "path"}."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{folder} is a directory; to read it, pip install 'task-interference[datasets]'.") from error
    _refuse_leading_out(folder)
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets raises errors of every kind on broken input
        remedy = "give such a directory, or a .jsonl, .json or parquet file"
        raise DataError(f"{folder} is no directory that datasets' save_to_disk wrote; {remedy}.") from error
    name = folder.name
    if isinstance(loaded, datasets.DatasetDict):
        chosen = split or next(iter(loaded))
        if chosen not in loaded or (split is None and len(loaded) > 1):
            raise DataError(f"{folder} has the splits {', '.join(loaded)}; choose one with `split`, not {split}.")
        name, loaded = f"{name}/{chosen}", loaded[chosen]
    elif split is not None:
        raise DataError(f"{folder} has no splits; leave out `split: {split}`.")
    return _numbered(_stored_rows(loaded, folder), name, problems)


def _stored_rows(loaded: Any, folder: Path) -> Iterator[Any]:
    """The rows of a dataset without the decoding that its features ask for."""
    stored = loaded.with_format("arrow")
    for first in range(0, len(stored), _AT_ONCE):
        try:
            yield from stored[first : first + _AT_ONCE].to_pylist()
        except Exception as error:  # pyarrow raises errors of every kind on broken input
            raise DataError(f"{folder}: a dataset that cannot be read ({error}); save it again.") from error


def _refuse_leading_out(folder: Path) -> None:
    """Check that a dataset directory, whose own files name what is read, reads only regular files within itself."""
    real = folder.resolve()
    for part in (folder, *_splits(folder)):
        for path in _files_of(part):
            if not _is_file_in(path, real):
                raise DataError(f"{part} reads {str(path)!r:.200}, which is no file in {folder}; save it again.")


def _splits(folder: Path) -> list[Path]:
    """The folders of a dataset directory's splits, all directly in it."""
    if not exists(file := folder / _SPLITS):
        return []
    try:
        names = list(read_json(file)["splits"])
        strange = [name for name in names if name in ("", "..") or Path(name).name != name or ":" in name]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{file} names no splits of a dataset ({error}); save it again.") from error
    if strange:
        raise DataError(f"{file} names {strange[0]!r:.200}, which is no folder in {folder}; save it again.")
    return [folder / name for name in names]


def _files_of(part: Path) -> list[Path]:
    """The files that are read of a split, or of a dataset directory without splits; none if it is neither."""
    state, info = part / _STATE, part / _INFO
    if not exists(state):
        return []
    try:
        read_json(info)
        return [state, info, *(part / entry["filename"] for entry in read_json(state)["_data_files"])]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{state} names no files of a dataset ({error}); save it again.") from error


def _is_file_in(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder) and path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, a loop of links
        return False
