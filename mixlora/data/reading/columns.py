"""Columns of arrow: the bytes that each row would have if rows shared nothing, computed without writing them.

Rows may share values: a dictionary, runs and views make any number of long texts of a few bytes. Not here: files and
rows (`tables`), how much is allowed (`unpacking`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixlora.common.errors import DataError

Sizes = NDArray[np.int64]

VALUE = 8
"""Bytes that a value counts besides its content: none of a list needs to take a byte."""


def row_sizes(column: Any, name: str) -> Sizes:
    """The bytes of each row of an array of arrow, and `VALUE` for each value in it.

    Args:
        column: the array.
        name: what messages call the table.

    Raises:
        DataError: its type is not read.
    """
    from pyarrow import types

    kind = column.type
    readers: list[tuple[Callable[[Any], bool], Callable[[Any, str], Sizes]]] = [
        (lambda one: hasattr(one, "storage_type"), lambda one, name: row_sizes(one.storage, name)),
        (types.is_dictionary, _dictionary_sizes),
        (types.is_run_end_encoded, _run_sizes),
        (types.is_struct, _struct_sizes),
        (types.is_list, _list_sizes),
        (types.is_large_list, _list_sizes),
        (types.is_map, _list_sizes),
        (types.is_fixed_size_list, _fixed_list_sizes),
        (lambda one: not one.num_fields, _leaf_sizes),
    ]
    read = next((read for is_of, read in readers if is_of(kind)), None)
    if read is None:
        raise DataError(f"{name}: a column has the type {kind}, which is not supported; write it as lists.")
    return read(column, name)


def may_share(kind: Any) -> bool:
    """Whether rows of a column of this type may share values, or values in them may."""
    from pyarrow import types

    within = [kind.field(number).type for number in range(kind.num_fields)]
    if any(map(may_share, within)) or types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return True
    is_view = types.is_string_view(kind) or types.is_binary_view(kind)
    return is_view or types.is_list_view(kind) or types.is_large_list_view(kind) or hasattr(kind, "storage_type")


def value_count(column: Any) -> int:
    """How many values the lists of an array have, which is known before anything is computed."""
    kind = column.type
    if not kind.num_fields or not hasattr(column, "flatten") or hasattr(column, "indices"):
        return len(column)
    inner = column.flatten()
    return len(column) + sum(value_count(one) for one in (inner if isinstance(inner, list) else [inner]))


def _values(count: int, size: int = 0) -> Sizes:
    """Equal sizes of `count` rows, without memory for each."""
    return np.broadcast_to(np.int64(VALUE + size), (count,))


def _dictionary_sizes(column: Any, name: str) -> Sizes:
    known = np.append(row_sizes(column.dictionary, name), VALUE)
    return known[column.indices.cast("int64").fill_null(len(known) - 1).to_numpy(zero_copy_only=False)]


def _run_sizes(column: Any, name: str) -> Sizes:
    first, count = column.find_physical_offset(), column.find_physical_length()
    ends = column.run_ends.slice(first, count).to_numpy() - column.offset
    runs = np.diff(np.minimum(ends, len(column)), prepend=0)
    return np.repeat(row_sizes(column.values.slice(first, count), name), runs)


def _list_sizes(column: Any, name: str) -> Sizes:
    offsets = column.offsets.to_numpy()
    first = int(offsets[0])
    within = row_sizes(column.values.slice(first, int(offsets[-1]) - first), name)
    until = np.concatenate(([0], np.cumsum(within)))
    return VALUE + np.diff(until[offsets - first])


def _struct_sizes(column: Any, name: str) -> Sizes:
    return sum((row_sizes(one, name) for one in column.flatten()), _values(len(column)))


def _fixed_list_sizes(column: Any, name: str) -> Sizes:
    count = column.type.list_size
    within = row_sizes(column.values.slice(column.offset * count, len(column) * count), name)
    return VALUE + within.reshape(len(column), count).sum(1)


def _leaf_sizes(column: Any, _name: str) -> Sizes:
    from pyarrow import compute, types

    kind = column.type
    if types.is_string_view(kind) or types.is_binary_view(kind):
        lengths = np.frombuffer(column.buffers()[1], np.int32)[::4][column.offset :][: len(column)]
        return VALUE + np.where(column.is_valid().to_numpy(zero_copy_only=False), lengths, 0).astype(np.int64)
    if any(test(kind) for test in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)):
        return VALUE + compute.binary_length(column).cast("int64").fill_null(0).to_numpy(zero_copy_only=False)
    return _values(len(column), 0 if types.is_null(kind) else kind.bit_width // 8)
