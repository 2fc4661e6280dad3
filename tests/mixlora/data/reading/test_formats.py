"""Kinds of data files: tables, wrapped lists, compressed files, shards; and what is said of those that are broken."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable

import pyarrow
import pytest
from pyarrow import csv, ipc, parquet

from mixlora.common.sections import TaskSection, resolved
from mixlora.common.settings import Section
from mixlora.data.reading import unpacking
from mixlora.data.reading.formats import has_ending
from mixlora.data.reading.tasks import read_task
from tests.support.records import QA, read, refusal, task_of

RECORD = {"prompt": "What?", "response": "Red"}
LINE = json.dumps(RECORD).encode()
TABLE = pyarrow.Table.from_pylist([RECORD, RECORD | {"response": "Blue"}])


def said(file, **keys) -> list[tuple[str, str]]:
    """Answer and place of every record."""
    return [(example.turns[-1].text, example.source) for example in read(file, **keys)]


def zipped(data: bytes, *names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("data")
        for name in names or ("data/x.jsonl",):
            archive.writestr(name, data)
    return stream.getvalue()


def zstandard(data: bytes) -> bytes:
    stream = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(stream, "zstd") as out:
        out.write(data)
    return stream.getvalue().to_pybytes()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard,
    "zip": zipped,
}


# --- text ---


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "prompt,response\nWhat?,Red\n\nWhat?,Blue\n"),
        ("x.csv", "prompt;response\r\nWhat?;Red\r\n\r\nWhat?;Blue"),
        ("x.CSV", "\ufeffprompt\tresponse\nWhat?\tRed\n\nWhat?\tBlue\n"),
        ("x.tsv", "prompt\tresponse\nWhat?\tRed\n\nWhat?\tBlue\n"),
    ],
)
def test_tables_of_text(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert said(tmp_path / name) == [("Red", f"{name}:2"), ("Blue", f"{name}:4")]
    assert [example.id for example in read(tmp_path / name)] == ["2", "4"]


def test_cells_are_text_as_it_stands_and_empty_ones_are_missing(tmp_path):
    file = tmp_path / "x.csv"
    rows = 'prompt,response,id\n"What, ""so""?\nNow",007,a\nWhat?,NA,b\nWhat?,1.50,c\nWhat?,null,d\nWhat?,,e\n'
    file.write_text(rows)
    problems: list = []
    found = read_task(task_of(file=file), "t", problems)
    assert [example.turns[1].text for example in found] == ["007", "NA", "1.50", "null"]
    assert (found[0].turns[0].text, found[0].source, found[1].source) == ('What, "so"?\nNow', "x.csv:2", "x.csv:4")
    assert list(map(str, problems)) == ["x.csv:7: response is missing (None); fill it or drop the record."]
    long = "x" * 300_000  # more than the csv module takes by default
    file.write_text(f"prompt,response\nWhat?,{long}\n")
    assert said(file) == [(long, "x.csv:2")]


def test_messages_in_a_cell(tmp_path):
    messages = json.dumps([{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Red"}])
    csv.write_csv(pyarrow.table({"messages": [messages]}), tmp_path / "x.csv")
    assert [example.turns for example in read(tmp_path / "x.csv")] == [QA]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,response\nWhat?,Red\nWhat?,Red,really\n", "x.csv:3: 3 cells, but 2 columns are named; put text that"),
        (
            "prompt,response\nWhat?\n",
            "x.csv:2: 1 cells, but 2 columns are named; put text that contains a separator in",
        ),
        ('prompt,response\nWhat?,"Red"x\n', "x.csv:2: the row is not valid CSV (',' expected after '\"'); double"),
        (
            'prompt,response\nWhat?,"Red\nWhat?,Blue\n',
            "x.csv:2: the row is not valid CSV (unexpected end of data); double",
        ),
        ("prompt,prompt\nWhat?,Red\n", "x.csv:1: two columns are called 'prompt'; rename one."),
        ("prompt,response\nWhat?,\xff\n", "x.csv:2: byte 0xff is not UTF-8; save the file as UTF-8."),
        ("prompt,response\n", "Task colors: FILE has no record; give a file with at least one."),
        ("", "Task colors: FILE has no record; give a file with at least one."),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, content, message):
    file = tmp_path / "x.csv"
    file.write_bytes(content.encode("latin-1"))
    assert refusal(file).startswith(message.replace("FILE", str(file)))


@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_around_the_records(tmp_path, indent):
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"version": "1.0", "rows": [RECORD, RECORD]}, indent=indent))
    assert said(file) == [("Red", "x.json/rows[0]"), ("Red", "x.json/rows[1]")]
    both = {"train": [RECORD], "test": [RECORD | {"response": "Blue"}]}
    file.write_text(json.dumps(both, indent=indent))
    assert said(file, split="test") == [("Blue", "x.json/test[0]")]
    assert refusal(file) == f"{file} has the lists train, test; choose one with `split`."
    assert refusal(file, split="dev") == f"{file} has the lists train, test; choose one with `split`, not dev."


def test_one_record_a_line_within_an_object(tmp_path):
    (tmp_path / "x.json").write_bytes(b'{"data": [\n' + LINE + b",\n" + LINE + b"\n]}")
    assert len(said(tmp_path / "x.json")) == 2


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_that_is_a_record_itself(tmp_path, indent):
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Red"}]
    for record in (RECORD, {"messages": messages, "id": "a"}, {"texts": [{"user": "What?", "assistant": "Red"}]}):
        (tmp_path / "x.json").write_text(json.dumps(record, indent=indent))
        (example,) = read(tmp_path / "x.json")
        assert (example.turns, example.source) == (QA, "x.json:1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "What?", "resp\n' + LINE, "x.json:1: invalid JSON at column 21 (Unterminated string"),
        (b'{"prompt": "What?",\n' + LINE, "x.json:1: invalid JSON at column 20 (Expecting property name"),
        (b'{\n "data": [\n  {"prompt": }]}', "x.json:3: invalid JSON at column 14 (Expecting value)"),
        (b'{"data": [], "more": 1}', "x.json:1: the record has an unknown shape, with the keys data, more;"),
    ],
)
def test_objects_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    assert refusal(tmp_path / "x.json").startswith(message)


# --- tables of pyarrow ---


def test_parquet_and_arrow_files(tmp_path):
    parquet.write_table(TABLE, tmp_path / "x.parquet", row_group_size=1)
    with ipc.new_file(tmp_path / "file.arrow", TABLE.schema) as out:
        out.write_table(TABLE)
    with ipc.new_stream(tmp_path / "stream.arrow", TABLE.schema) as out:
        out.write_table(TABLE)
    for name in ("x.parquet", "file.arrow", "stream.arrow"):
        assert said(tmp_path / name) == [("Red", f"{name}[0]"), ("Blue", f"{name}[1]")]
        assert refusal(tmp_path / name, split="x") == f"{tmp_path / name} has no splits; leave out `split: x`."
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        kind = "a parquet" if name == "x.parquet" else "an arrow"
        assert refusal(tmp_path / name).startswith(f"{name}: {kind} file cannot be read (")


def test_not_a_number_counts_as_missing(tmp_path):
    values = {"id": [float("nan"), 2.0], "prompt": ["What?"] * 2, "response": ["Red", "Blue"], "level": [None, 1.0]}
    parquet.write_table(pyarrow.table(values, schema=None), tmp_path / "x.parquet")
    assert [example.id for example in read(tmp_path / "x.parquet")] == ["0", "2.0"]
    (tmp_path / "x.jsonl").write_text('{"prompt": "What?", "response": NaN}\n' + json.dumps(RECORD | {"system": None}))
    problems: list = []
    found = read_task(task_of(file=tmp_path / "x.jsonl"), "t", problems)
    assert [example.source for example in found] == ["x.jsonl:2"]
    assert list(map(str, problems)) == ["x.jsonl:1: response is missing (nan); fill it or drop the record."]


# --- compressed files ---


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("inner", ["jsonl", "json", "csv", "parquet"])
def test_compressed_files(tmp_path, kind, inner):
    parquet.write_table(TABLE, tmp_path / "x.parquet")
    content = {
        "jsonl": LINE + b"\n" + json.dumps(RECORD | {"response": "Blue"}).encode(),
        "json": json.dumps([RECORD, RECORD | {"response": "Blue"}]).encode(),
        "csv": b"prompt,response\nWhat?,Red\nWhat?,Blue\n",
        "parquet": (tmp_path / "x.parquet").read_bytes(),
    }[inner]
    file = tmp_path / f"x.{inner}.{kind}"
    file.write_bytes(zipped(content, f"x.{inner}") if kind == "zip" else PACKERS[kind](content))
    places = {"jsonl": (":1", ":2"), "csv": (":2", ":3")}.get(inner, ("[0]", "[1]"))
    assert said(file) == [("Red", file.name + places[0]), ("Blue", file.name + places[1])]


@pytest.mark.parametrize("kind", PACKERS)
def test_compressed_files_that_are_cut_off(tmp_path, kind):
    file = tmp_path / f"x.jsonl.{kind}"
    data = PACKERS[kind](b"\n".join([LINE] * 1000))
    file.write_bytes(data[: len(data) // 2])
    assert refusal(file).startswith(f"x.jsonl.{kind}: the compressed file cannot be unpacked (")
    assert refusal(file).endswith("); pack it again.")


def test_a_zip_holds_one_file(tmp_path):
    file = tmp_path / "x.zip"
    file.write_bytes(zipped(LINE, "a.jsonl", "b.jsonl"))
    remedy = "but must contain one); pack it again."
    assert refusal(file) == f"x.zip: the compressed file cannot be unpacked (it contains 2 files, {remedy}"
    file.write_bytes(zipped(LINE, "a.jsonl", "__MACOSX/._a.jsonl"))
    assert said(file) == [("Red", "x.zip:1")]
    with zipfile.ZipFile(file, "w"):
        pass
    assert refusal(file) == f"x.zip: the compressed file cannot be unpacked (it contains 0 files, {remedy}"


@pytest.mark.parametrize("kind", PACKERS)
def test_a_small_file_does_not_fill_memory(tmp_path, kind, monkeypatch):
    """What is unpacked counts, piece by piece: 100 MB of spaces are given up after the limit of 3 MB."""
    file, taken = tmp_path / f"x.jsonl.{kind}", []
    file.write_bytes(PACKERS[kind](b" " * 10**8))
    monkeypatch.setattr(unpacking, "LARGEST_DATA", 3_000_000)
    take = unpacking.Allowance.take
    monkeypatch.setattr(unpacking.Allowance, "take", lambda *given: [taken.append(given[1]), take(*given)][1])
    said = f"x.jsonl.{kind}: unpacked, the data has more than 3000000 bytes; give a part of it."
    assert refusal(file) == said
    assert sum(taken) <= 3_000_000 + 2**20


def test_a_small_table_does_not_fill_memory(tmp_path, monkeypatch):
    rows = 200_000
    table = pyarrow.table({"prompt": ["What?" * 10] * rows, "response": ["Red" * 10] * rows})
    parquet.write_table(table, tmp_path / "x.parquet", compression="zstd")
    with ipc.new_stream(tmp_path / "x.arrow", table.schema, options=ipc.IpcWriteOptions(compression="zstd")) as out:
        out.write_table(table)
    monkeypatch.setattr(unpacking, "LARGEST_DATA", 3_000_000)
    for name in ("x.parquet", "x.arrow"):
        assert (tmp_path / name).stat().st_size < 2_000_000
        assert refusal(tmp_path / name) == f"{name}: unpacked, the data has more than 3000000 bytes; give a part of it."


# --- several files ---


def test_shards(tmp_path):
    for number, answer in enumerate(("Red", "Blue", "Green")):
        rows = [RECORD | {"response": f"{answer}{row}"} for row in range(2)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"train-{number}.parquet")
    parquet.write_table(TABLE, tmp_path / "test-0.parquet")
    (tmp_path / "train-9").mkdir()
    found = read(tmp_path / "train-*")
    assert [example.turns[1].text for example in found] == ["Red0", "Red1", "Blue0", "Blue1", "Green0", "Green1"]
    assert [example.id for example in found] == list("012345")
    assert [example.source for example in found[1:3]] == ["train-0.parquet[1]", "train-1.parquet[0]"]
    assert len(read(tmp_path / "train-[01].parquet")) == 4 and len(read(tmp_path / "tes?-0.parquet")) == 2
    pattern = tmp_path / "train-*"
    assert refusal(pattern, split="x") == f"{pattern} names files, which have no splits; leave out `split: x`."
    gone = tmp_path / "dev-*.parquet"
    assert refusal(gone) == f"Task colors: {gone} does not exist; check the path in `file`."


def test_shards_of_several_folders(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jsonl").write_bytes(LINE)
    assert said(tmp_path / "*" / "x.jsonl") == [("Red", "a/x.jsonl:1"), ("Red", "b/x.jsonl:1")]
    (tmp_path / "x[1].jsonl").write_bytes(LINE)
    assert said(tmp_path / "x[1].jsonl") == [("Red", "x[1].jsonl:1")]  # a file of this name is no pattern


def test_all_shards_together_are_bounded(tmp_path, monkeypatch):
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_bytes(b"\n".join([LINE] * 20_000))
    monkeypatch.setattr(unpacking, "LARGEST_DATA", 2_000_000)
    assert len(read(tmp_path / "0.jsonl")) == 20_000
    assert (
        refusal(tmp_path / "*.jsonl") == "2.jsonl: unpacked, the data has more than 2000000 bytes; give a part of it."
    )


def test_a_pattern_is_kept_with_its_whole_path(tmp_path, monkeypatch):
    class Config(Section):
        model: dict
        tasks: dict[str, TaskSection]

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    files = {"a": "data/train-*.parquet", "b": "gone/train-*.parquet", "c": "org/name"}
    config = Config(model={"base": "mini"}, tasks={name: TaskSection(file=file) for name, file in files.items()})
    assert {name: task["file"] for name, task in resolved(config)["tasks"].items()} == files | {
        "a": str(tmp_path / "data" / "train-*.parquet")
    }


def test_names_of_data_files():
    assert all(map(has_ending, ("a.jsonl", "a.JSON", "a.csv.gz", "a.zip", "a.tsv", "a.parquet", "a.arrow.zst")))
    assert not any(map(has_ending, ("a.png", "a.md", "a", "a.gz", "a.txt.xz")))
