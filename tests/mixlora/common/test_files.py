"""Names of tasks as names of files, and the memory that reading a file takes."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlora.common.files import file_name, read_bytes


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
