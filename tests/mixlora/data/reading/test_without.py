"""Examples that a task leaves out by their ids, or holds out: which remain, and what is refused."""

import pytest

from mixlora.common.errors import ConfigError, DataError
from mixlora.common.sections import TaskGroupSection, resolved
from mixlora.common.settings import build
from mixlora.data.examples import Example
from mixlora.data.reading.tasks import read_task, read_tasks
from mixlora.data.reading.without import part_of
from mixlora.training.config import TrainConfig
from tests.support.records import write

ROWS = [{"id": f"r{k}", "prompt": f"{k}?", "response": "yes", "topic": "ab"[k % 2]} for k in range(6)]


def section(folder, ids, rows=ROWS, **keys):
    (folder / "out.txt").write_text(ids, encoding="utf-8")
    values = {"file": str(write(folder, *rows)), "without": str(folder / "out.txt")}
    return build(TaskGroupSection, {**values, "ignore": ["topic"], **keys}, "task")


def ids_of(examples):
    return [example.id for example in examples]


def test_they_are_left_out(tmp_path):
    assert ids_of(read_task(section(tmp_path, "r1\n\n  r4\r\nr1\n"), "t")) == ["r0", "r2", "r3", "r5"]
    assert len(read_task(section(tmp_path, "\n"), "t")) == 6


def test_of_several_tasks_of_one_file(tmp_path):
    found = read_tasks(section(tmp_path, "r0\nr3\n", by="topic", ignore=[]), "t")
    assert {task: ids_of(own) for task, own in found.items()} == {"a": ["r2", "r4"], "b": ["r1", "r5"]}


def test_records_of_one_id_have_names_of_their_own(tmp_path):
    """The ids are those that a preview shows and a run records."""
    rows = [{"id": "x", "prompt": "a", "response": "1"}, {"id": "x", "prompt": "b", "response": "2"}]
    first, second = read_task(section(tmp_path, "\n", rows), "t")
    assert ids_of(read_task(section(tmp_path, first.id, rows), "t")) == [second.id]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("r1\nR2\n", "names 'R2', which is no id of its records; remove it, or write ids as `interference preview` "),
        ("8\n9\n", "names '8' and 1 more, which is no id of its records"),
        ("r0\nr1\nr2\nr3\nr4\nr5", "names every record, so none is left; name fewer."),
    ],
)
def test_what_is_refused(tmp_path, ids, message):
    with pytest.raises(DataError) as error:
        read_task(section(tmp_path, ids), "t")
    assert str(error.value).startswith(f"Task t: {tmp_path / 'out.txt'} {message}")


def test_a_file_that_cannot_be_read(tmp_path):
    task = section(tmp_path, "")
    (tmp_path / "out.txt").write_bytes(b"\xff\xfe")
    for why in ("it is not text in UTF-8", "No such file or directory"):
        with pytest.raises(DataError) as error:
            read_task(task, "t")
        assert str(error.value) == (
            f"Task t: {tmp_path / 'out.txt'}, which `without` names, cannot be read: {why}; give a file of ids."
        )
        (tmp_path / "out.txt").unlink(missing_ok=True)


def test_a_record_that_cannot_be_used_may_be_named(tmp_path):
    rows = [*ROWS, {"id": "bad", "prompt": "?", "response": ""}]
    problems = []
    found = read_task(section(tmp_path, "bad\nr0\n", rows), "t", problems)
    assert len(found) == 5 and len(problems) == 1


def test_it_is_for_a_file():
    with pytest.raises(ConfigError, match="without is for a file; leave it out with mini"):
        build(TaskGroupSection, {"mini": "train", "without": "x"}, "task")


def test_a_resolved_configuration_has_its_whole_path(tmp_path, monkeypatch):
    task = section(tmp_path, "r1\n")
    monkeypatch.chdir(tmp_path)
    values = {"model": {"base": "mini"}, "tasks": {"t": {"file": task.file, "without": "out.txt"}}, "out": "out"}
    found = resolved(build(TrainConfig, {"method": "lora", **values}, "the test"))
    assert found["tasks"]["t"]["without"] == str(tmp_path / "out.txt")


def held(folder, share, part, rows=ROWS, **keys):
    values = {"file": str(write(folder, *rows)), "holdout": share, "part": part, "ignore": ["topic"], **keys}
    return build(TaskGroupSection, values, "task")


def test_parts_are_apart_and_together_all():
    """Which examples are held out depends on their ids alone."""
    names = [f"example {k}" for k in range(1000)]
    found = {"t": [Example(name, "t", (), (), name) for name in names]}
    kept, out = (ids_of(part_of(found, 0.1, heldout)["t"]) for heldout in (False, True))
    assert sorted(kept + out) == sorted(names) and 70 < len(out) < 130
    more = {"t": [Example(name, "t", (), (), name) for name in reversed([*names, "another"])]}
    assert set(ids_of(part_of(more, 0.1, True)["t"])) - {"another"} == set(out)
    assert set(ids_of(part_of(found, 0.3, True)["t"])) > set(out)  # a larger share holds out these, too


def test_a_part_of_a_file_and_of_its_tasks(tmp_path):
    rows = [{"id": f"r{k}", "prompt": f"{k}?", "response": "yes", "topic": "ab"[k % 2]} for k in range(24)]
    kept, out = (ids_of(read_task(held(tmp_path, 0.5, part, rows), "t")) for part in ("train", "heldout"))
    assert sorted(kept + out) == sorted(row["id"] for row in rows)
    several = read_tasks(held(tmp_path, 0.5, "heldout", rows, by="topic", ignore=[]), "t")
    assert sorted(name for own in several.values() for name in ids_of(own)) == sorted(out)


def test_a_share_that_leaves_none(tmp_path):
    with pytest.raises(DataError) as error:
        read_task(held(tmp_path, 0.0001, "heldout"), "t")
    assert str(error.value) == (
        "Task t: with holdout: 0.0001 none of its 6 examples is held out; choose another share."
    )
    with pytest.raises(DataError, match=r"with holdout: 0.9999 none of its 6 examples is left to train on; choose "):
        read_task(held(tmp_path, 0.9999, "train"), "t")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"file": "f", "part": "heldout"}, "part: heldout needs holdout, the share of examples that training leaves"),
        ({"file": "f", "holdout": 1}, "tasks.t.holdout: Input should be less than 1 (it is 1)"),
        ({"mini": "train", "holdout": 0.1}, "holdout is for a file; leave it out with mini"),
        ({"file": "f", "holdout": 0.1, "part": "heldout"}, "part: heldout is what training leaves out; leave part out"),
    ],
)
def test_a_part_that_cannot_be(keys, words):
    with pytest.raises(ConfigError) as error:
        build(TrainConfig, {"method": "lora", "model": {"base": "b"}, "tasks": {"t": keys}}, "c.yaml")
    assert words in str(error.value)
