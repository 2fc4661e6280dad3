"""Tables of pyarrow to rows: parquet and arrow files, within bounds that they declare or that are computed.

A table of a few bytes may declare any number of rows, or have all of them share one value: what rows have is computed
before it is written out. Not here: how it is computed (`columns`), text (`formats`), folders of tables (`directories`).
"""

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from mixlora.common.errors import DataError
from mixlora.common.files import LARGEST_DATA
from mixlora.common.limits import limited
from mixlora.data.reading.columns import VALUE, may_share, row_sizes, value_count
from mixlora.data.reading.unpacking import Bound, TableAllowance

PARQUET, ARROW, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
"""How the files begin."""
_AT_ONCE, _PIECE = 1000, 2**26
"""Rows of a table, and about the bytes of them, that are converted together."""
_ROW = 16
"""Bytes that a row counts besides its values."""
_READ, _READ_ROWS, _READS = 2**28, 2**16, 20_000
"""Bytes and rows of a parquet file that are read together at most, and how often a group of its rows may be read."""


def is_table(data: bytes) -> bool:
    """Whether the content of a file is a parquet or arrow file's."""
    return data[:4] in (PARQUET, ARROW_STREAM) or data[:6] == ARROW


def table_rows(data: bytes, name: str, allowance: Bound) -> Iterator[Any]:
    """The rows of a parquet or arrow file.

    Raises:
        DataError: it cannot be read, or has more rows, values or bytes than are allowed.
    """
    kind = "a parquet" if data[:4] == PARQUET else "an arrow"
    allowance = TableAllowance(allowance, len(data))
    try:
        yield from batch_rows(_batches(data, name, allowance), name, allowance)
    except DataError:
        raise
    except Exception as error:  # pyarrow raises errors of every kind on broken input
        raise DataError(f"{name}: {kind} file cannot be read ({error}); write it again.") from error


def batch_rows(batches: Iterable[Any], name: str, allowance: Bound) -> Iterator[Any]:
    """The rows of arrow's batches or tables; an image stays {"bytes", "path"}.

    Raises:
        DataError: they are more than are allowed, or one of them does not fit into memory.
    """
    waiting = iter(batches)
    while (batch := _bounded(lambda: next(waiting, None), name)) is not None:
        for part in batch.to_batches() if hasattr(batch, "to_batches") else [batch]:
            yield from _counted_rows(part, name, allowance)


def _counted_rows(batch: Any, name: str, allowance: Bound) -> Iterator[Any]:
    """The rows of a batch, counted before they are written out: they may share their values."""
    allowance.expect(len(batch), name)
    least = VALUE * sum(value_count(column) for column in batch.columns) + _ROW * len(batch)
    allowance.check(least, name)
    if len(batch) <= _AT_ONCE and not any(may_share(field.type) for field in batch.schema):
        allowance.take(least + batch.nbytes, name)
        yield from _bounded(batch.to_pylist, name)
        return
    until = np.cumsum(_bounded(lambda: sum(row_sizes(column, name) for column in batch.columns) + _ROW, name))
    first = 0
    while first < len(batch):
        before = int(until[first - 1]) if first else 0
        within = int(np.searchsorted(until, before + _PIECE, "right"))
        last = min(max(first + 1, within), first + _AT_ONCE)
        allowance.take(int(until[last - 1]) - before, name)
        yield from _bounded(partial(_written, batch.slice(first, last - first)), name)
        first = last


def _written(batch: Any) -> list[Any]:
    """The rows of a batch. Texts that they share are written out first, which takes a fifth of the time."""
    from pyarrow import RecordBatch, large_binary, large_string, types

    def alone(column: Any) -> Any:
        if not types.is_dictionary(column.type):
            return column
        kind = column.type.value_type
        return column.cast(
            large_string() if types.is_string(kind) else large_binary() if types.is_binary(kind) else kind
        )

    return RecordBatch.from_arrays([alone(column) for column in batch.columns], names=batch.schema.names).to_pylist()


def _batches(data: bytes, name: str, allowance: Bound) -> Iterator[Any]:
    from pyarrow import BufferReader, ipc

    source = BufferReader(data)
    if data[:4] == PARQUET:
        yield from _parquet_batches(source, len(data), name, allowance)
        return
    if data[:6] == ARROW:
        reader = ipc.open_file(source)
        batches: Iterable[Any] = (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        batches = ipc.open_stream(source)
    for batch in batches:
        batch.validate(full=True)  # what its offsets say is inside of it
        yield batch


def _parquet_batches(source: Any, size: int, name: str, allowance: Bound) -> Iterator[Any]:
    """The rows of a parquet file, as many at once as cannot fill memory whatever they share."""
    from pyarrow import parquet

    metadata = parquet.read_metadata(source)
    _check_columns(metadata, size)
    _check_declared(metadata, name, allowance)
    for number in range(metadata.num_row_groups):
        at_once, shared = _reading(metadata.row_group(number))
        file = parquet.ParquetFile(source, metadata=metadata, read_dictionary=shared)
        yield from file.iter_batches(at_once, row_groups=[number])


class _ReachedError(Exception):
    """A file would be read now."""


class _Unread(io.RawIOBase):
    """A file of a size, no byte of which is read."""

    def __init__(self, size: int) -> None:
        self._size, self._at = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        raise _ReachedError


def _check_columns(metadata: Any, size: int) -> None:
    """Check what a parquet file says of its columns by pyarrow's reader, which raises where asking ends the process.

    Raises:
        OSError: it contradicts itself.
    """
    from pyarrow import PythonFile, parquet

    file = parquet.ParquetFile(PythonFile(_Unread(size), "r"), metadata=metadata, pre_buffer=True)
    with suppress(_ReachedError, StopIteration):
        next(file.iter_batches(1))  # looks through all columns before it reads the first


def _reading(group: Any) -> tuple[int, list[str]]:
    """How many rows of a group to read at once, and which of its columns to read with values that rows share.

    No text of a column is longer than the column, so few rows at once are bounded. Where that takes too long, texts
    stay as they are in the file, and are counted before they are written out; arrow does that for dictionaries alone.
    """
    columns = [group.column(number) for number in range(group.num_columns)]
    texts = [column for column in columns if column.physical_type == "BYTE_ARRAY"]
    longest = max((column.total_uncompressed_size for column in texts), default=0)
    at_once = max(1, min(_AT_ONCE, _READ // max(longest, 1)))
    if at_once == _AT_ONCE or group.num_rows <= _READS * at_once:
        return at_once, []
    if any(encoding.startswith("DELTA") for column in texts for encoding in column.encodings):
        return at_once, []
    size = max(group.total_byte_size // group.num_rows, 1)
    return max(1, min(_READ_ROWS, _READ // size)), [column.path_in_schema for column in texts]


def _check_declared(metadata: Any, name: str, allowance: Bound) -> None:
    """Check what a parquet file says of itself before anything of it is unpacked."""
    allowance.expect(metadata.num_rows, name)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    widths = [max(metadata.schema.column(number).length, VALUE) for number in range(metadata.num_columns)] * len(groups)
    size = max(
        sum(group.total_byte_size for group in groups),
        sum(column.total_uncompressed_size for column in columns),
        sum(column.num_values * width for column, width in zip(columns, widths, strict=True)),
    )
    allowance.check(size, name)


def _bounded(work: Any, name: str) -> Any:
    """What pyarrow unpacks, if it fits into memory."""
    return limited(
        work,
        lambda what: DataError(f"{name}: part of the table {what}; give less of it, or write it again."),
        timed=False,
        memory=2 * LARGEST_DATA,
    )
