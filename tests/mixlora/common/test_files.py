"""Files from strangers, bounded before they are read and never waited for; names of tasks as names of files."""

import os
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlora.common.files import file_name, read_bytes, read_json


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_a_name_is_one_component_of_a_path_and_told_apart(one, other):
    made = file_name(one)
    assert "/" not in made and "\\" not in made and made.strip(".") and made.isprintable() and made.isascii()
    assert (made == file_name(other)) == (one == other)


@pytest.mark.parametrize(
    ("task", "name"),
    [("read_word", "read_word"), ("a/b", "a%2Fb"), ("..", "%2E%2E"), ("PACS+dog 1", "PACS+dog 1"), ("é", "%C3%A9")],
)
def test_ordinary_names_stay_as_they_are(task, name):
    assert file_name(task) == name


def test_a_small_file_takes_little_memory_whatever_the_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    tracemalloc.start()
    try:
        assert read_bytes(tmp_path / "a", 2**32) == b"12345"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="its 5 bytes are more than the limit of 4"):
        read_bytes(tmp_path / "a", 4)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/stdin"):
        with pytest.raises(OSError, match="it is a pipe or a device, not a regular file"):
            read_bytes(path, 10)
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path, 10)
    with pytest.raises(OSError, match="no file can have this name"):
        read_bytes(tmp_path / "a\0b", 10)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested deeper than 64 levels"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ('{"\\ud800": 1}', "surrogates not allowed"),
        ("9" * 5000, "4300 digits"),
        ("", "Expecting value"),
    ],
)
def test_json_that_cannot_be_walked_through_or_written_again(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[" * 64 + "]" * 64)
    assert len(read_json(tmp_path / "a.json")) == 1


def test_a_long_name_is_one_component_that_file_systems_take(tmp_path):
    names = ["x" * 500, "x" * 501, "é" * 500, "/" * 500, "x" * 200, "x" * 201, "\0" * 300, "\u202e" * 100]
    made = [file_name(name) for name in names]
    assert len(set(made)) == len(made) and made[4] == "x" * 200
    assert {len(name) for name in made} == {200}
    for name in made:
        (tmp_path / f"{name}.jsonl").write_text("")
    assert file_name(made[0]) != made[0]  # a task that is named like the short form of another
