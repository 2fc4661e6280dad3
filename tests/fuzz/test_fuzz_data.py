"""Data files and pictures from strangers: every record is read, or refused in a sentence, and none leaves a folder."""

import bz2
import gzip
import io
import json
import lzma

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from mixlora.data.checking import fingerprint
from mixlora.data.images import image_size, open_image
from mixlora.data.reading.tasks import read_task, read_tasks
from mixlora.data.sampling import sample
from tests.support.mutations import NASTY, attempt, changed, damaged, fuzz, put, scalars, written
from tests.support.needed import needed
from tests.support.records import task_of, with_image

RECORDS = (
    {"id": 1, "task": "red", "prompt": "What?", "response": "Red", "image": "a.png"},
    {"id": "r2", "task": "blue", "image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red"}]},
    {"unique_id": 3, "task": 7, "prompt": "What?", "target": "Red", "image_path": "a.png",
     "answers": ["Red", {"answer": "b"}]},
    {"task": "red", "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "Red"}]},
)  # fmt: skip
SPECS = ({}, {"by": "task"}, {"where": {"task": "red"}}, {"fields": {"prompt": "question"}}, {"split": "x"},
         {"fields": {"id": "task"}}, {"where": {"\ud800": [[1]]}}, {"outside": True}, {"by": "image"})  # fmt: skip


def picture(kind="PNG", size=(9, 7), **options) -> bytes:
    stream = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert("RGB").save(stream, kind, **options)
    return stream.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
PICTURES = (
    *(picture(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")),
    *(picture(kind, exif=EXIF) for kind in ("PNG", "JPEG", "WEBP", "TIFF")),
    picture("TIFF", compression="tiff_lzw"),
    picture("PNG", icc_profile=b"x" * 200),
    picture("GIF", save_all=True, append_images=[Image.new("RGB", (9, 7))] * 2),
    picture("WEBP", save_all=True, append_images=[Image.new("RGB", (9, 7))] * 2),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("data")
    (made / "a.png").write_bytes(PICTURES[0])
    return made


def use(file, spec):
    """Read a file, and do with its examples what every command does."""
    for task, examples in read_tasks(task_of(file=file, **spec), "task").items():
        if examples:
            sample(examples, 2, 0, task)
            fingerprint(examples)
            shown = [[e.id, e.task, e.source, [t.text for t in e.turns], e.references] for e in examples]
            json.dumps(shown, ensure_ascii=False).encode("utf-8")
            assert len({e.id for e in examples}) == len(examples)


@pytest.mark.parametrize("record", RECORDS)
def test_what_is_damaged_below_is_read_as_it_is(folder, record):
    put(folder / "whole", {"x.jsonl": written(record), "a.png": PICTURES[0]})
    assert attempt(lambda: use(folder / "whole" / "x.jsonl", {})) is None


@fuzz(400)
@given(
    st.lists(st.sampled_from(RECORDS).flatmap(changed), min_size=1, max_size=3), st.sampled_from(SPECS), st.booleans()
)
def test_changed_records(folder, records, spec, as_list):
    name = "x.json" if as_list else "x.jsonl"
    lines = [written(record) for record in records]
    (folder / name).write_bytes(b"[" + b",".join(lines) + b"]" if as_list else b"\n".join(lines))
    attempt(lambda: use(folder / name, spec))
    problems: list = []
    attempt(lambda: read_tasks(task_of(file=folder / name, **spec), "task", problems))
    assert all(str(problem) for problem in problems)


WHOLE = (b"\n".join(map(written, RECORDS)), written(RECORDS), b"\xef\xbb\xbf" + written(RECORDS[0]))
json_bytes = (
    st.sampled_from(WHOLE).flatmap(damaged)
    | st.binary(max_size=40)
    | st.text('[]{}":,0\\ud8n\n ', max_size=40).map(str.encode)
)


@fuzz(300)
@given(json_bytes, st.sampled_from(SPECS))
def test_damaged_json(folder, data, spec):
    (folder / "x.jsonl").write_bytes(data)
    attempt(lambda: use(folder / "x.jsonl", spec))


TABLES = (
    [{"prompt": "What?", "response": "Red", "task": "red", "image": {"bytes": PICTURES[0], "path": None}}] * 2,
    [RECORDS[3] | {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Red"}]}],
    [{"prompt": "What?", "response": ["Red", "red"], "task": k, "when": None} for k in range(5)],
)


def table(rows) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


@fuzz(300)
@given(st.sampled_from(TABLES).map(table).flatmap(damaged), st.sampled_from(SPECS))
def test_damaged_parquet(folder, data, spec):
    (folder / "x.parquet").write_bytes(data)
    attempt(lambda: use(folder / "x.parquet", spec))


PACKED = tuple(pack(b"\n".join(map(written, RECORDS))) for pack in (gzip.compress, bz2.compress, lzma.compress))


@fuzz(200)
@given(st.sampled_from(PACKED).flatmap(damaged), st.sampled_from(SPECS))
def test_damaged_compressed_files(folder, data, spec):
    (folder / "x.jsonl.gz").write_bytes(data)
    attempt(lambda: use(folder / "x.jsonl.gz", spec))


CSV = b'prompt,response,task,image\nWhat?,Red,red,a.png\n"What, ""so""?\nNow",Blue,blue,\n'


@fuzz(200)
@given(damaged(CSV) | st.text('a,"\n\r;\0', max_size=30).map(str.encode), st.sampled_from(SPECS))
def test_damaged_csv(folder, data, spec):
    (folder / "x.csv").write_bytes(data)
    attempt(lambda: use(folder / "x.csv", spec))


WRAPPED = written({"data": [RECORDS[0]] * 2, "more": 1})


@fuzz(200)
@given(damaged(WRAPPED), st.sampled_from(SPECS))
def test_damaged_objects_around_records(folder, data, spec):
    (folder / "x.json").write_bytes(data)
    attempt(lambda: use(folder / "x.json", spec))


@fuzz(600)
@given(st.sampled_from(PICTURES).flatmap(damaged))
def test_damaged_pictures(folder, data):
    (folder / "b.png").write_bytes(data)
    for do in (image_size, open_image):
        attempt(lambda do=do: do(with_image(folder / "b.png")))


@fuzz(200)
@given(st.text(max_size=20) | st.sampled_from(NASTY), scalars)
def test_names_of_pictures(folder, name, other):
    (folder / "x.jsonl").write_bytes(written({"prompt": "What?", "response": "Red", "image": name, "id": other}))

    def inside():
        for example in read_task(task_of(file=folder / "x.jsonl"), "task"):
            assert all(image.resolve().is_relative_to(folder.resolve()) for image in example.images)

    attempt(inside)


@fuzz(100)
@given(damaged(b"Is it red?\tYes\nIs it blue?\tNo\n"), st.sampled_from(PICTURES).flatmap(damaged))
def test_damaged_subtasks_of_mme(folder, text, image):
    put(
        folder / "mme" if (folder / "mme").mkdir(exist_ok=True) else folder / "mme" / "count",
        {"1.txt": text, "1.jpg": image},
    )
    attempt(lambda: [open_image(e) for e in read_tasks(task_of(mme=folder / "mme"), "task").get("count", ())])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    datasets = needed("datasets")
    made = tmp_path_factory.mktemp("dataset") / "whole"
    rows = {"prompt": ["What?"] * 3, "response": ["Red"] * 3, "image": [{"bytes": PICTURES[0], "path": None}] * 3}
    found = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
    found.save_to_disk(str(made))
    return {path.name: path.read_bytes() for path in made.iterdir()}


@fuzz(120)
@given(st.data())
def test_damaged_datasets(tmp_path_factory, dataset, data):
    place = put(tmp_path_factory.getbasetemp() / "dataset", dataset)
    assert attempt(lambda: use(place, {})) is None
    name = data.draw(st.sampled_from(sorted(dataset)))
    new = damaged(dataset[name])
    if name.endswith(".json"):
        new = new | changed(json.loads(dataset[name])).map(written)
    put(place, dataset | {name: data.draw(new)})
    attempt(lambda: use(place, {}))
