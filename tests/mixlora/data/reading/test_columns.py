"""Bytes of rows, computed without writing them: those of the rows as Python has them."""

import pyarrow
import pytest

from mixlora.common.errors import DataError
from mixlora.data.reading.columns import VALUE, row_sizes, value_count

TEXTS = pyarrow.DictionaryArray.from_arrays(
    pyarrow.array([0, 1, None, 0, 1, 0, 1, 1]), pyarrow.array(["abc", "d" * 50])
)
VIEWS = pyarrow.array(["a", None, "b" * 100, "cc", "", "x" * 12, "y" * 13, None], pyarrow.string_view())
LISTS = pyarrow.ListArray.from_arrays([0, 2, 5, 5, 8], TEXTS)
COLUMNS = {
    "text": pyarrow.array(["a", None, "é" * 3, ""]),
    "bytes": pyarrow.array([b"a", b"", None], pyarrow.large_binary()),
    "dictionary": TEXTS,
    "views": VIEWS,
    "runs": pyarrow.RunEndEncodedArray.from_arrays([2, 5, 9], TEXTS.slice(1, 3)),
    "lists": LISTS,
    "struct": pyarrow.StructArray.from_arrays([LISTS, VIEWS.slice(3, 4)], ["a", "b"]),
    "fixed": pyarrow.FixedSizeListArray.from_arrays(TEXTS, 2),
    "map": pyarrow.MapArray.from_arrays([0, 1, 4], pyarrow.array(["k", "kk", "l", "m"]), TEXTS.slice(0, 4)),
    "listed": pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 0, 1]), LISTS),
}


def size(value):
    """About the bytes of a value, its own and those of the values in it."""
    if isinstance(value, dict):
        return VALUE + sum(map(size, value.values()))
    if isinstance(value, list):
        return VALUE + sum(map(size, value))
    if isinstance(value, tuple):  # an entry of a map
        return VALUE + sum(map(size, value))
    return VALUE + len(value.encode() if isinstance(value, str) else value or b"")


@pytest.mark.parametrize("name", COLUMNS)
def test_sizes_are_those_of_the_rows(name):
    column = COLUMNS[name]
    for part in (column, column.slice(1), column.slice(0, 2), column.slice(1, 1), column.slice(0, 0)):
        assert row_sizes(part, "x").tolist() == [size(row) for row in part.to_pylist()]


def test_numbers_and_nothings_have_the_size_of_their_type():
    assert row_sizes(pyarrow.array([1, None], pyarrow.int32()), "x").tolist() == [VALUE + 4] * 2
    assert row_sizes(pyarrow.nulls(3), "x").tolist() == [VALUE] * 3
    assert value_count(LISTS) == 4 + 8 and value_count(TEXTS) == 8


def test_a_union_is_refused():
    union = pyarrow.UnionArray.from_sparse(pyarrow.array([0, 0], pyarrow.int8()), [pyarrow.array(["a", "b"])])
    with pytest.raises(
        DataError, match=r"^x: a column has the type sparse_union<.*which is not supported; write it as lists\.$"
    ):
        row_sizes(union, "x")
