"""Dataset directories from strangers: what their files name is read only where it is theirs, and never waited for."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from tests.support.needed import needed
from tests.support.records import QA, read, refusal

datasets = needed("datasets")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A directory of a dataset, as datasets writes it."""
    folder = tmp_path_factory.mktemp("saved") / "one"
    datasets.Dataset.from_dict({"prompt": ["What?"], "response": ["Red"]}).save_to_disk(str(folder))
    return folder


def with_splits(folder: Path, saved: Path, splits, *parts) -> Path:
    """A directory that names these splits, with the dataset at each of some places in it."""
    folder.mkdir(exist_ok=True)
    for part in parts:
        shutil.copytree(saved, folder / part, dirs_exist_ok=True)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    return folder


def naming(part: Path, *names: object) -> None:
    """Have a split name other files."""
    state = json.loads((part / "state.json").read_text())
    (part / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name} for name in names]}))


def test_splits_right_in_the_folder_are_read(tmp_path, saved):
    folder = with_splits(tmp_path / "d", saved, ["train-clean", "a.b"], "train-clean", "a.b")
    assert [example.turns for example in read(folder, split="a.b")] == [QA]


@pytest.mark.parametrize("name", ["../private", "PRIVATE", "a/b", "..", ".", "", "a/", "x::memory", 3, None, ["x"]])
def test_a_split_that_is_no_folder_right_in_it_is_refused(tmp_path, saved, name):
    shutil.copytree(saved, tmp_path / "private")
    name = str(tmp_path / "private") if name == "PRIVATE" else name
    folder = with_splits(tmp_path / "d", saved, ["train", name], "train", "a/b")
    told = refusal(folder, split="train")
    if isinstance(name, str):
        assert (
            told == f"{folder / 'dataset_dict.json'} names {name!r}, which is not a folder in {folder}; save it again."
        )
    else:
        assert told.startswith(f"{folder / 'dataset_dict.json'} does not name the splits of a dataset (")


@pytest.mark.parametrize("within", ["", "train", "a/b"])
def test_no_file_of_another_folder_is_read_and_no_pipe_waited_for(tmp_path, saved, within):
    shutil.copytree(saved, tmp_path / "private")
    arrow = next((tmp_path / "private").glob("*.arrow"))
    folder = with_splits(tmp_path / "d", saved, [within] if within else [], within)
    os.mkfifo(folder / within / "pipe")
    for name in (os.path.relpath(arrow, folder / within), str(arrow), "pipe", "/dev/zero", "gone", "a\0b", "x" * 300):
        naming(folder / within, name)
        assert "which is not a f" in refusal(folder)


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
def test_a_link_or_a_pipe_in_the_place_of_what_describes_a_split(tmp_path, saved, name):
    folder = with_splits(tmp_path / "d", saved, ["train"], "train")
    path = folder / "train" / name
    path.unlink()
    path.symlink_to(saved / name)
    said = f"{folder / 'train'} reads {str(path)!r}, which is not a file in {folder}; save it again."
    assert refusal(folder) == said
    path.unlink()
    os.mkfifo(path)
    said = (
        f"{folder / 'train' / 'state.json'} does not name the files of a dataset ([Errno 22] it is a pipe or a device"
    )
    assert refusal(folder).startswith(said)
    path.unlink()
    path.write_text("[" * 10**5)
    assert "does not name the files of a dataset (it is nested deeper than 64 levels); save it again." in refusal(
        folder
    )


def test_a_split_behind_a_link(tmp_path, saved):
    folder = with_splits(tmp_path / "d", saved, ["train"])
    (folder / "train").symlink_to(saved)
    assert "which is not a file in" in refusal(folder)


@pytest.mark.parametrize("state", [[], {}, {"_data_files": [3]}, {"_data_files": [{}]}, {"_data_files": None}])
def test_a_directory_that_names_no_files(tmp_path, saved, state):
    folder = shutil.copytree(saved, tmp_path / "d")
    (folder / "state.json").write_text(json.dumps(state))
    told = refusal(folder)
    assert told.startswith(f"{folder / 'state.json'} does not name the files of a dataset (") and told.endswith(
        "save it again."
    )


def test_rows_that_cannot_be_read(tmp_path, saved):
    folder = shutil.copytree(saved, tmp_path / "d")
    arrow = next(folder.glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes().replace(b"What?", b"\xffhat?"))
    told = refusal(folder)
    assert told.startswith(f"{folder}: the dataset cannot be read (Column 0: In chunk 0: Invalid: Invalid UTF8 ")
    assert told.endswith("; save it again.")


def test_offsets_that_lead_out_of_the_file_are_refused_before_they_are_followed(tmp_path):
    rows = {"prompt": ["What is it?"] * 3, "response": ["Red", "Blue", "Green"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "set"))
    (file,) = (tmp_path / "set").glob("*.arrow")
    whole, offsets = file.read_bytes(), struct.pack("<4i", 0, 3, 7, 12)
    assert whole.count(offsets) == 1
    file.write_bytes(whole.replace(offsets, struct.pack("<4i", 0, 3, 7, 2**30)))
    said = refusal(tmp_path / "set")
    assert "the dataset cannot be read (" in said and said.endswith("save it again.")
