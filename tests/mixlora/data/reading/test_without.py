"""Examples that a task leaves out by their ids: which remain, and what is refused."""

import pytest

from mixlora.common.errors import ConfigError, DataError
from mixlora.common.sections import TaskGroupSection, resolved
from mixlora.common.settings import build
from mixlora.data.reading.tasks import read_task, read_tasks
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
