"""Files of few bytes that stand for any number of rows or values: refused by what they declare, or counted."""

import gzip
import json
import tracemalloc

import numpy as np
import pyarrow
import pytest
from pyarrow import ipc, parquet

from mixlora.data.reading import tables, unpacking
from tests.support.paths import ROOT
from tests.support.records import read, refusal

MANY = 20_000_000
TIMES = (
    "unpacked, it is more than 100 times as large; "
    "write it without compression, dictionaries and runs, if you trust it."
)


def shared(text, rows):
    """A column whose rows are all one text."""
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(rows, "int32")), pyarrow.array([text]))


def write(file, table, **options):
    """A table as a file of arrow's; its path."""
    with ipc.new_file(file, table.schema, options=ipc.IpcWriteOptions(**options)) as out:
        out.write_table(table)
    return file


def answers(file):
    return [example.turns[-1].text for example in read(file)]


def peak(work):
    """What work returns, and the bytes that Python had at most."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_parquet_file_of_many_rows_is_refused_unread(tmp_path):
    table = pyarrow.table({"prompt": shared("What?", MANY), "response": shared("Red", MANY)})
    parquet.write_table(table, file := tmp_path / "x.parquet", compression="zstd", row_group_size=MANY)
    assert file.stat().st_size < 200_000
    said, most = peak(lambda: refusal(file))
    assert said == "x.parquet: the data has more than 8388608 records; give a part of it." and most < 10**7


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_an_arrow_file_of_many_rows_is_refused_unread(tmp_path, kind):
    table = pyarrow.table({"prompt": pyarrow.nulls(2**30), "response": pyarrow.nulls(2**30)})
    with getattr(ipc, f"new_{kind}")(file := tmp_path / "x.arrow", table.schema) as out:
        out.write_table(table)
    said, most = peak(lambda: refusal(file))
    assert said == "x.arrow: the data has more than 8388608 records; give a part of it." and most < 10**7


def test_a_list_of_many_nothings_is_refused_unread(tmp_path):
    nothing = pyarrow.FixedSizeListArray.from_arrays(pyarrow.nulls(2**30), 2**30)
    table = pyarrow.table({"prompt": ["What?"], "response": ["Red"], "x": nothing})
    unpacked = "unpacked, the data has more than 4294967296 bytes; give a part of it."
    parquet.write_table(pyarrow.table({"prompt": ["a"], "x": [[0] * 10]}), tmp_path / "fine.parquet")
    assert refusal(write(tmp_path / "x.arrow", table)) == f"x.arrow: {unpacked}"


def test_values_that_a_parquet_file_declares_count(tmp_path, monkeypatch):
    table = pyarrow.table({"prompt": ["What?"] * 20, "response": ["Red"] * 20, "level": [[0] * 10**5] * 20})
    parquet.write_table(table, file := tmp_path / "x.parquet")
    assert len(read(file)) == 20 and file.stat().st_size < 10**5
    monkeypatch.setattr(unpacking, "LARGEST_DATA", 10**7)
    said, most = peak(lambda: refusal(file))
    assert said == "x.parquet: unpacked, the data has more than 10000000 bytes; give a part of it." and most < 10**6


def test_rows_that_share_their_values_are_read_and_counted_as_if_they_did_not(tmp_path, monkeypatch):
    columns = {
        "dictionary": shared("Red" * 100, 5000),
        "runs": pyarrow.RunEndEncodedArray.from_arrays(pyarrow.array([5000]), pyarrow.array(["Red" * 100])),
        "views": pyarrow.array(["Red" * 100] * 5000, pyarrow.string_view()),
    }
    for name, column in columns.items():
        table = pyarrow.table({"prompt": ["What?"] * 5000, "response": column})
        assert answers(write(tmp_path / f"{name}.arrow", table, compression="zstd")) == ["Red" * 100] * 5000
    within = pyarrow.StructArray.from_arrays([shared("Red" * 100, 5000)], ["text"])
    table = pyarrow.table({"prompt": ["What?"] * 5000, "response": ["Red"] * 5000, "more": within})
    assert answers(write(tmp_path / "within.arrow", table)) == ["Red"] * 5000
    monkeypatch.setattr(unpacking, "LARGEST_DATA", 1_200_000)
    for name in (*columns, "within"):
        said = f"{name}.arrow: unpacked, the data has more than 1200000 bytes; give a part of it."
        assert refusal(tmp_path / f"{name}.arrow") == said


def test_a_value_that_does_not_fit_into_memory_is_refused(tmp_path):
    table = pyarrow.table({"prompt": shared("W" * 10**8, 5000), "response": shared("Red", 5000)})
    file = write(tmp_path / "x.arrow", table, compression="zstd")
    assert file.stat().st_size < 50_000
    assert refusal(file) == f"x.arrow: {TIMES}"


def long_texts(kind, text, rows):
    """A table whose rows share one long text, and how a parquet file has it."""
    one, options = shared(text, rows), {"compression": "zstd"}
    prompts = pyarrow.array(["What?"] * rows)
    if kind == "dictionary":
        return pyarrow.table({"prompt": prompts, "response": one}), options
    if kind == "within":
        turns = pyarrow.StructArray.from_arrays([shared("user", rows), one], ["role", "content"])
        lists = pyarrow.ListArray.from_arrays(np.arange(rows + 1, dtype="int32"), turns)
        return pyarrow.table({"messages": lists}), options
    plain = pyarrow.array([text] * rows)
    if kind == "fixed":
        plain = plain.cast(pyarrow.binary()).cast(pyarrow.binary(len(text)))
    if kind == "prefixes":
        options |= {"use_dictionary": False, "column_encoding": {"response": "DELTA_BYTE_ARRAY"}}
    return pyarrow.table({"prompt": prompts, "response": plain}), options


@pytest.mark.parametrize("kind", ["dictionary", "within", "fixed", "prefixes"])
@pytest.mark.parametrize("few_reads", [False, True])
def test_long_texts_that_the_rows_of_a_parquet_file_share_are_refused_unwritten(tmp_path, monkeypatch, kind, few_reads):
    table, options = long_texts(kind, "R" * 10**6, 400)
    parquet.write_table(table, file := tmp_path / "x.parquet", **options)
    small = long_texts(kind, "R" * 10**4, 400)[0]
    parquet.write_table(small, fine := tmp_path / "fine.parquet", **options)
    assert file.stat().st_size < 5_000
    del table, small
    monkeypatch.setattr(tables, "_READ", 2**24)
    monkeypatch.setattr(unpacking, "_USUAL_OF_TABLES", 2**24)
    monkeypatch.setattr(tables, "_READS", 0 if few_reads else 20_000)
    pool, before = pyarrow.proxy_memory_pool(pyarrow.system_memory_pool()), pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pool)
    try:
        if kind in ("dictionary", "prefixes"):
            assert {len(text) for text in answers(fine)} == {10**4}
        assert refusal(file) == f"x.parquet: {TIMES}"
    finally:
        pyarrow.set_memory_pool(before)
    assert pool.max_memory() < 80e6


@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}])
def test_a_parquet_file_whose_rows_share_a_system_prompt_is_read(tmp_path, options):
    """300 MB of text in a file of a few hundred kilobytes."""
    rows = 40_000
    asked = [f"Which of ten classes is in picture {k}?" for k in range(rows)]
    columns = {"system": ["You see a photograph. " * 340] * rows, "prompt": asked, "response": ["Red"] * rows}
    parquet.write_table(pyarrow.table(columns), file := tmp_path / "x.parquet", **options)
    assert file.stat().st_size < 10**6
    found = tables.table_rows(file.read_bytes(), file.name, unpacking.Allowance())
    assert sum(len(row["system"]) for row in found) == rows * 22 * 340 > 2**28


def test_views_of_a_list_are_refused(tmp_path):
    views = pyarrow.ListViewArray.from_arrays([0] * 9, [9] * 9, pyarrow.array([0] * 9, pyarrow.int8()))
    table = pyarrow.table({"prompt": ["What?"] * 9, "response": ["Red"] * 9, "x": views})
    asked = "x.arrow: a column has the type list_view<item: int8>, which is not supported; write it as lists."
    assert refusal(write(tmp_path / "x.arrow", table)) == asked


def test_offsets_that_lead_out_of_an_arrow_file_are_refused(tmp_path):
    file = write(tmp_path / "x.arrow", pyarrow.table({"prompt": ["What?"], "response": ["R" * 12345]}))
    own, other = (number.to_bytes(4, "little") for number in (12345, 10**9))
    before, _, behind = file.read_bytes().rpartition(own)
    assert len(read(file)) == 1
    file.write_bytes(before + other + behind)
    assert refusal(file).startswith("x.arrow: an arrow file cannot be read (")


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_records_of_text_are_counted(tmp_path, monkeypatch, kind):
    record = {"prompt": "What?", "response": "Red"}
    content = {
        "jsonl": "\n".join([json.dumps(record)] * 11),
        "json": json.dumps([record] * 11),
        "csv": "prompt,response\n" + "What?,Red\n" * 11,
    }[kind]
    (file := tmp_path / f"x.{kind}").write_text(content)
    assert len(read(file)) == 11
    monkeypatch.setattr(unpacking, "MOST_RECORDS", 10)
    assert refusal(file) == f"x.{kind}: the data has more than 10 records; give a part of it."


def test_what_is_packed_beyond_all_use_is_refused(tmp_path, monkeypatch):
    record = json.dumps({"prompt": "What?", "response": "Red"}) + "\n"
    (file := tmp_path / "x.jsonl.gz").write_bytes(gzip.compress((record * 30_000).encode()))
    assert len(read(file)) == 30_000
    monkeypatch.setattr(unpacking, "_USUAL", 2**19)
    asked = "x.jsonl.gz: unpacked, it is more than 100 times as large; unpack it, if you trust it."
    assert refusal(file) == asked


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("contradicts-levels", "histogram size mismatch"),
        ("contradicts-type", "does not support INT64"),
    ],
)
def test_a_parquet_file_that_contradicts_itself_is_refused(file, words):
    """Asked for its columns, pyarrow would end the process."""
    said = refusal(ROOT / "tests" / "cases" / f"{file}.parquet")
    assert "a parquet file cannot be read (" in said and words in said and said.endswith("; write it again.")
