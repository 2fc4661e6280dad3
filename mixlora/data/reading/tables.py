"""Tables of pyarrow to rows: parquet and arrow files, within bounds that they declare or that are counted.

A table of a few bytes may declare any number of rows, or have all of them share one value. Not here: text (`formats`),
folders of tables (`directories`).
"""

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from mixlora.common.errors import DataError
from mixlora.common.files import LARGEST_DATA
from mixlora.common.limits import limited
from mixlora.data.reading.unpacking import Allowance

PARQUET, ARROW, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
"""How the files begin."""
_AT_ONCE = 1000
"""Rows of a table that are converted together."""
_ROW, _VALUE = 16, 8
"""Bytes that a row counts besides its values, and that a value has at least."""


def is_table(data: bytes) -> bool:
    """Whether the content of a file is a parquet or arrow file's."""
    return data[:4] in (PARQUET, ARROW_STREAM) or data[:6] == ARROW


def table_rows(data: bytes, name: str, allowance: Allowance) -> Iterator[Any]:
    """The rows of a parquet or arrow file.

    Raises:
        DataError: it cannot be read, or has more rows, values or bytes than are allowed.
    """
    kind = "a parquet" if data[:4] == PARQUET else "an arrow"
    try:
        yield from batch_rows(_batches(data, name, allowance), name, allowance)
    except DataError:
        raise
    except Exception as error:  # pyarrow raises errors of every kind on broken input
        raise DataError(f"{name}: {kind} file that cannot be read ({error}); write it again.") from error


def batch_rows(batches: Iterable[Any], name: str, allowance: Allowance) -> Iterator[Any]:
    """The rows of arrow's batches or tables; an image stays {"bytes", "path"}.

    Raises:
        DataError: they are more than are allowed, or one of them does not fit into memory.
    """
    waiting = iter(batches)
    while (batch := _bounded(lambda: _unshared(waiting), name)) is not None:
        allowance.expect(len(batch), name)
        allowance.take(batch.nbytes + _ROW * len(batch) + _VALUE * _values(batch, name), name)
        if any(_is_coded_within(field.type) for field in batch.schema):
            yield from _counted_rows(batch, name, allowance)
        else:
            yield from batch.to_pylist()


def _batches(data: bytes, name: str, allowance: Allowance) -> Iterator[Any]:
    from pyarrow import BufferReader, ipc, parquet

    source = BufferReader(data)
    if data[:4] == PARQUET:
        file = parquet.ParquetFile(source)
        _check_columns(file.metadata, len(data))
        _check_declared(file.metadata, name, allowance)
        yield from file.iter_batches(_AT_ONCE)
        return
    if data[:6] == ARROW:
        reader = ipc.open_file(source)
        batches: Iterable[Any] = (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        batches = ipc.open_stream(source)
    for batch in batches:
        batch.validate(full=True)  # what its offsets say is inside of it
        allowance.expect(len(batch), name)
        yield from (batch.slice(first, _AT_ONCE) for first in range(0, len(batch), _AT_ONCE))


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


def _check_declared(metadata: Any, name: str, allowance: Allowance) -> None:
    """Check what a parquet file says of itself before anything of it is unpacked."""
    allowance.expect(metadata.num_rows, name)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    size = max(
        sum(group.total_byte_size for group in groups),
        sum(column.total_uncompressed_size for column in columns),
        sum(column.num_values for column in columns) * _VALUE,
    )
    if size > allowance.left:
        allowance.take(size, name)


def _bounded(work: Any, name: str) -> Any:
    """What pyarrow unpacks, if it fits into memory."""
    return limited(
        work,
        lambda what: DataError(f"{name}: a table of which a part {what}; give a part of it, or write it again."),
        timed=False,
        memory=2 * LARGEST_DATA,
    )


def _unshared(waiting: Iterator[Any]) -> Any:
    """The next batch, with values of its own in each row; None behind the last."""
    batch = next(waiting, None)
    if batch is None or not any(_is_coded(field.type) for field in batch.schema):
        return batch
    from pyarrow import Table

    return Table.from_arrays([_plain(column) for column in batch.columns], names=batch.schema.names)


def _plain(column: Any) -> Any:
    from pyarrow import compute, large_binary, large_string, types

    while _is_coded(column.type):
        if types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        elif types.is_run_end_encoded(column.type):
            column = compute.run_end_decode(column)
        else:
            column = column.cast(large_string() if types.is_string_view(column.type) else large_binary())
    return column


def _is_coded(kind: Any) -> bool:
    """Whether rows of a column of this type share values, which it can be rid of."""
    from pyarrow import types

    return bool(
        types.is_dictionary(kind)
        or types.is_run_end_encoded(kind)
        or types.is_string_view(kind)
        or types.is_binary_view(kind)
    )


def _is_coded_within(kind: Any) -> bool:
    return _is_coded(kind) or any(_is_coded_within(kind.field(number).type) for number in range(kind.num_fields))


def _values(batch: Any, name: str) -> int:
    """How many values lists in a batch have: none of them needs to take a byte.

    Raises:
        DataError: they are views of a list, of which there may be any number in few bytes.
    """
    listed = [column for column in batch.columns if column.type.num_fields and not _is_coded(column.type)]
    chunks = [chunk for column in listed for chunk in getattr(column, "chunks", [column])]
    return sum(_values_in(chunk, name) for chunk in chunks)


def _values_in(array: Any, name: str) -> int:
    from pyarrow import types

    if types.is_list_view(array.type) or types.is_large_list_view(array.type):
        raise DataError(f"{name}: a column is of {array.type}, which is not read; write it as lists.")
    if _is_coded(array.type) or not array.type.num_fields:
        return len(array)
    inner = array.flatten()
    return len(array) + sum(_values_in(one, name) for one in (inner if isinstance(inner, list) else [inner]))


def _counted_rows(batch: Any, name: str, allowance: Allowance) -> Iterator[Any]:
    """Rows one by one, each counted as it is in memory."""
    for number in range(len(batch)):
        (row,) = _bounded(lambda at=number: batch.slice(at, 1).to_pylist(), name)
        allowance.take(_weight(row), name)
        yield row


def _weight(value: Any) -> int:
    """About the bytes of a value."""
    if isinstance(value, dict):
        return _VALUE + sum(map(_weight, value.values()))
    if isinstance(value, list):
        return _VALUE + sum(map(_weight, value))
    return _VALUE + (len(value) if isinstance(value, str | bytes) else 0)
