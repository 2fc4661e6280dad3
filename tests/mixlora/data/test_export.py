"""Examples written to files: the layout, shared pictures, and a directory that is whole or absent."""

import json

import pytest
from PIL import Image

from mixlora.common.errors import DataError, WriteError
from mixlora.data.examples import Example, Turn
from mixlora.data.export import write

QA = (Turn("user", "Q"), Turn("assistant", "A"))


def test_a_shared_picture_is_written_once(tmp_path):
    picture = Image.new("RGB", (4, 4), (9, 8, 7))
    turns = (Turn("system", "S"), Turn("user", "Q"), Turn("assistant", "Ä"))
    write([Example("a/1", task, turns, (picture,), "s") for task in ("x", "y")], tmp_path / "out")
    records = json.loads((tmp_path / "out" / "suite.json").read_text(encoding="utf-8"))
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["a-1.png"]
    assert records[1] == {
        "id": "y/a/1",
        "task_name": "y",
        "image": "images/a-1.png",
        "conversations": [
            {"from": "system", "value": "S"},
            {"from": "human", "value": "Q"},
            {"from": "gpt", "value": "Ä"},
        ],
    }


def test_examples_without_picture_have_none(tmp_path):
    write([Example("1", "x", QA, (), "s")], tmp_path / "out")
    assert "image" not in json.loads((tmp_path / "out" / "suite.json").read_text())[0]


def test_what_is_there_stays(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(DataError, match=r"is not empty; name a new directory\.$"):
            write([], out)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    write([Example("1", "x", QA, (), "s")], tmp_path / "link")
    assert (tmp_path / "out" / "suite.json").is_file() and (tmp_path / "link").is_symlink()


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(self, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(
        WriteError, match=r"out cannot be written: No space left on device; make room there, and start again$"
    ):
        write([Example("1", "x", QA, (Image.new("RGB", (4, 4)),), "s")], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_several_pictures_are_refused(tmp_path):
    pictures = (Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4)))
    with pytest.raises(
        DataError, match=r"^s: the record has several pictures, but LLaVA's JSON takes one per record; leave it out\.$"
    ):
        write([Example("1", "x", QA, pictures, "s")], tmp_path / "out")
    assert not (tmp_path / "out").exists()
