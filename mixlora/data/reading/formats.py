"""One data file to records: JSON, JSON lines, CSV, parquet and arrow, by their first bytes, CSV by its ending.

Text is read here and not by `datasets`, which would tell no line, make 7 of 007 and a gap of NA, and give every record
the keys of all. Not here: compressed files (`unpacking`), parquet and arrow (`tables`), folders (`directories`).
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mixlora.common.errors import DataError
from mixlora.data.reading.problems import collecting
from mixlora.data.reading.shapes import MEANINGFUL
from mixlora.data.reading.tables import is_table, table_rows
from mixlora.data.reading.unpacking import PACKED, Allowance, read_data
from mixlora.data.reading.values import Record

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Endings of data files, besides those of compressed ones; other files are read as JSON."""

_OF_RECORDS = MEANINGFUL - {"train"}
"""Keys that only a record has. An object without any of them may hold a list of records."""

Problems = list[DataError] | None
"""Collects what is wrong with single records; None to raise the first."""


def has_ending(name: str) -> bool:
    """Whether a file's name says that it holds data: "x.jsonl", "x.csv.gz", "x.zip"."""
    name = name.lower()
    packed = next((ending for ending in PACKED if name.endswith(ending)), "")
    return packed == ".zip" or name.removesuffix(packed).endswith(ENDINGS)


def read_file(
    file: Path, name: str, split: str | None, allowance: Allowance, problems: Problems = None
) -> Iterator[Record]:
    """The records of one file, in its order.

    Args:
        file: a regular file.
        name: what messages call it.
        split: of a JSON object that holds several lists of records, the key of one.
        allowance: how many bytes and records may be read.
        problems: collects a line that is not JSON and an entry that is not a record, which are then skipped.

    Raises:
        DataError: the file cannot be read, or (without `problems`) something in it is not a record.
    """
    data, ending = read_data(file, allowance)
    if is_table(data):
        _refuse_split(split, file)
        yield from numbered(table_rows(data, name, allowance), name, allowance, problems)
        return
    data = data.removeprefix(codecs.BOM_UTF8)
    if ending in (".csv", ".tsv"):
        _refuse_split(split, file)
        yield from _csv_records(_text(data, name, 1), "\t" if ending == ".tsv" else "", name, allowance, problems)
    elif re.match(rb"\s*\[", data):
        _refuse_split(split, file)
        yield from numbered(_parse(_text(data, name, 1), name, 1), name, allowance, problems)
    elif (whole := _single_object(data, name)) is not None:
        yield from _object_records(whole, name, split, file, allowance, problems)
    else:
        _refuse_split(split, file)
        yield from _line_records(data, name, allowance, problems)


def numbered(rows: Iterable[Any], name: str, allowance: Allowance, problems: Problems) -> Iterator[Record]:
    """Rows as records, each placed by its number."""
    for index, values in enumerate(rows):
        allowance.count(name)
        with collecting(problems):
            yield Record(values, f"{name}[{index}]", index)


def _refuse_split(split: str | None, file: Path) -> None:
    if split is not None:
        raise DataError(f"{file} has no splits; leave out `split: {split}`.")


def _line_records(data: bytes, name: str, allowance: Allowance, problems: Problems) -> Iterator[Record]:
    # split at "\n", not by splitlines: a JSON string may contain other line separators unescaped
    for number, line in enumerate(io.BytesIO(data), 1):
        allowance.count(name)
        with collecting(problems):
            if (text := _text(line.removesuffix(b"\n"), name, number)).strip():
                yield Record(_parse(text, name, number), f"{name}:{number}", number)


def _single_object(data: bytes, name: str) -> Any:
    """The object that is the whole file, over one line or many; None if the file is one of lines."""
    lines = re.match(rb"\s*(\{[^\n]*)\s*(.?)", data)
    if lines is None:
        return None
    first, second = lines.groups()
    try:
        found = _loads(first)
        return None if second else found
    except json.JSONDecodeError as error:
        cut = error.pos >= len(error.doc.rstrip()) and second
        if not cut or (second == b"{" and not first.rstrip().endswith(b"[")):
            return None  # the line is wrong within, or another record follows
    except (ValueError, RecursionError):  # which the reading of lines tells
        return None
    return _parse(_text(data, name, 1), name, 1)


def _object_records(
    whole: Any, name: str, split: str | None, file: Path, allowance: Allowance, problems: Problems
) -> Iterator[Record]:
    """The records in an object, as {"data": [...]} or {"train": [...], "test": [...]}; or the object as a record."""
    lists = {key: value for key, value in whole.items() if _is_list_of_objects(value)}
    if not lists or whole.keys() & _OF_RECORDS:
        _refuse_split(split, file)
        with collecting(problems):
            yield Record(whole, f"{name}:1", 1)
        return
    key = next(iter(lists)) if split is None and len(lists) == 1 else split
    if key not in lists:
        other = "" if split is None else f", not {split}"
        raise DataError(f"{file} has the lists {', '.join(lists)}; choose one with `split`{other}.")
    yield from numbered(lists[key], f"{name}/{key}", allowance, problems)


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _text(data: bytes, name: str, first_line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        byte = f"0x{data[error.start]:02x}"
        raise DataError(f"{name}:{line}: byte {byte} is not UTF-8; save the file as UTF-8.") from error


def _parse(text: str, name: str, first_line: int) -> Any:
    try:
        return _loads(text)
    except json.JSONDecodeError as error:
        place = f"{name}:{first_line + error.lineno - 1}"
        raise DataError(
            f"{place}: invalid JSON at column {error.colno} ({error.msg}); write one object per line."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}:{first_line}: the JSON cannot be read ({error}); simplify it.") from error


def _loads(text: str | bytes) -> Any:
    """The value of JSON in which no object has a key twice: one of its values would be dropped without a word."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.60} appears twice")
    return found


def _csv_records(text: str, delimiter: str, name: str, allowance: Allowance, problems: Problems) -> list[Record]:
    """The rows of a table whose first line names its columns. Every cell is text as it stands, an empty one missing."""
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or _separator(first), strict=True)
    limit, found = csv.field_size_limit(len(text) + 1), []
    try:
        rows = _csv_rows(reader, name)
        _, names = next(rows, (1, []))
        if twice := [one for at, one in enumerate(names) if one in names[:at]]:
            raise DataError(f"{name}:1: two columns are called {twice[0]!r:.60}; rename one.")
        for line, row in rows:
            allowance.count(name)
            with collecting(problems):
                if len(row) != len(names):
                    asked = f"{len(row)} cells, but {len(names)} columns are named"
                    raise DataError(f"{name}:{line}: {asked}; put text that contains a separator in quotes.")
                values = {key: cell or None for key, cell in zip(names, row, strict=True)}
                found.append(Record(values, f"{name}:{line}", line))
    finally:
        csv.field_size_limit(limit)
    return found


def _csv_rows(reader: Any, name: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that hold something, each with the line on which it begins."""
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{name}:{line}: the row is not valid CSV ({error}); double the quotes in a cell."
            ) from error
        if row is None:
            return
        if row:
            yield line, row


def _separator(first: str) -> str:
    """What separates the columns: a comma, unless the first line has only semicolons or tabs."""
    return next((one for one in ",;\t" if one in first), ",")
