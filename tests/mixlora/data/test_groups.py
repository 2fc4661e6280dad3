"""Groups of examples: what they share, and who is connected through it."""

from pathlib import Path
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mixlora.common.errors import DataError
from mixlora.data.examples import Example, Turn
from mixlora.data.groups import all_shared, connected, label_of, shared_by
from mixlora.data.reading.records import Reading, read_example
from mixlora.data.reading.values import Record


def example(*images: Path | Image.Image, group: str | None = None) -> Example:
    return Example("1", "t", (Turn("user", "q"), Turn("assistant", "a")), images, "f:1", group=group)


def test_items_that_share_a_key_are_connected_also_through_others() -> None:
    assert connected([["a"], ["b"], ["b", "c"], ["c"], [], []]) == [0, 1, 1, 1, 2, 3]
    assert connected([["a"], ["b"], ["c"], ["c", "b"], ["a", "c"]]) == [0, 0, 0, 0, 0]
    assert connected([]) == []


def test_pictures_are_told_apart_by_content_and_not_by_name(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    for name, picture in (("x", red), ("y", red), ("z", blue)):
        picture.save(tmp_path / f"{name}.png")
    x, y, z = (example(tmp_path / f"{name}.png") for name in "xyz")
    both = example(tmp_path / "y.png", tmp_path / "z.png")
    assert shared_by(x, "image") == shared_by(y, "image") != shared_by(z, "image")
    assert connected(shared_by(one, "image") for one in (x, y, z)) == [0, 0, 1]
    assert connected(shared_by(one, "image") for one in (x, z, both)) == [0, 0, 0]
    assert connected(shared_by(one, "none") for one in (x, y)) == [0, 1]
    assert shared_by(example(red), "image") == shared_by(example(red.copy()), "image")


def test_a_picture_that_cannot_be_read_is_a_sentence_and_a_file_is_read_once(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    seen = example(tmp_path / "x.png")
    found = all_shared([(seen, "image"), (seen, "image")])
    first = next(found)
    (tmp_path / "x.png").unlink()
    assert next(found) == first == [("image", first[0][1])]
    with pytest.raises(DataError, match=r"^f:1: a picture cannot be read: No such file or directory; put it back\.$"):
        shared_by(seen, "image")


def test_examples_without_a_picture_are_independent() -> None:
    assert connected(shared_by(example(), "image") for _ in range(3)) == [0, 1, 2]


def test_a_key_of_the_record_is_read_whatever_fields_rename_or_ignore() -> None:
    values = {"prompt": "q", "response": "a", "document": 17}
    reading = Reading("t", Path(), {}, ignore={"document"}, known={"document"}, group="document")
    unread: set[str] = set()
    found = read_example(Record(values, "f.jsonl:1", 0), reading, unread)
    assert (found.group, unread) == ("17", set())
    assert shared_by(found, "document") == [("key document", "17")]
    assert read_example(Record(values, "f.jsonl:1", 0), Reading("t", Path(), {}, ignore={"document"})).group is None


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (3, "3"), (3.0, "3"), ("3", "3"), ("3.0", "3"), (np.int64(3), "3"), (np.float32(3), "3"), (np.array(3), "3"),
        (torch.tensor(3), "3"), ("3.00", "3.00"), ("-3.0", "-3"), ("03", "03"),
        (-2.0, "-2"), (0.5, "0.5"), ("3.05", "3.05"), ("v3.0", "v3.0"),
        (UUID(int=1), str(UUID(int=1))), ((1, "a"), ("1", "a")), (" a ", " a "),
        (None, None), (float("nan"), None), (np.float64("nan"), None), (pd.NA, None), (pd.NaT, None), ("", None),
        ("  ", None),
    ],
)  # fmt: skip
def test_a_label_is_what_a_value_says(value: object, label: object) -> None:
    assert label_of(value) == label


@pytest.mark.parametrize("value", [[1], {"a": 1}, object(), torch.ones(2), b"a"])
def test_what_cannot_be_told_apart_by_content_is_no_label(value: object) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        label_of(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "f.jsonl:1: no value of 'document', which `group` names; it has prompt, response, document; name a key "),
        (
            None,
            "f.jsonl:1: no value of 'document', which `group` names; it has prompt, response, document; name a key ",
        ),
        (True, "f.jsonl:1: the text of document, which `group` names, is True, a bool; write it as a string"),
    ],
)
def test_a_record_without_its_group_says_so(value: object, message: str) -> None:
    record = Record({"prompt": "q", "response": "a", "document": value}, "f.jsonl:1", 0)
    with pytest.raises(DataError, match=message):
        read_example(record, Reading("t", Path(), {}, group="document"))
