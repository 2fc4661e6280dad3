"""Folders of data files as hubs have them, and data sets that a hub has."""

from pathlib import Path

import datasets
import pyarrow
import pytest
from huggingface_hub import HfApi
from pyarrow import parquet

from tests.support.records import QA, read, refusal

RECORD = {"prompt": "What?", "response": "Red"}


def put(path, *answers: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist([RECORD | {"response": answer} for answer in answers]), path)
    return path


def answers(file, **keys) -> list[str]:
    return [example.turns[-1].text for example in read(file, **keys)]


# --- folders ---


def test_the_layout_of_hubs(tmp_path):
    folder = tmp_path / "set"
    put(folder / "data" / "train-00001-of-00002.parquet", "c")
    put(folder / "data" / "train-00000-of-00002.parquet", "a", "b")
    put(folder / "data" / "heldout-00000-of-00001.parquet", "d")
    (folder / "README.md").write_text("---\nconfigs: [{config_name: x, data_files: /etc/*}]\n---\n")
    found = read(folder, split="train")
    assert [example.turns[-1].text for example in found] == ["a", "b", "c"]
    assert [(example.id, example.source) for example in found[1:]] == [
        ("1", "set/data/train-00000-of-00002.parquet[1]"),
        ("2", "set/data/train-00001-of-00002.parquet[0]"),
    ]
    assert answers(folder, split="heldout") == ["d"]
    (told, asked) = refusal(folder).split("; ")
    assert told.startswith(f"{folder} has the splits ") and {"train", "heldout"} <= set(
        told.partition("splits ")[2].split(", ")
    )
    assert asked == "choose one with `split`."


@pytest.mark.parametrize("name", ["set", "set/", "./set", "../work/set", "set/inner/.."])
def test_a_folder_by_a_relative_path(tmp_path, monkeypatch, name):
    put(tmp_path / "work" / "set" / "data.parquet", "a")
    (tmp_path / "work" / "set" / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert [(one.turns[-1].text, one.source) for one in read(Path(name))] == [("a", "set/data.parquet[0]")]
    put(tmp_path / "work" / "set" / "inner" / "more.parquet", "b")
    assert refusal(Path(name)).endswith(" has data in several folders, ., inner; name one of them.")


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["x.parquet"], None, ["0"]),
        (["x.parquet"], "train", ["0"]),
        (["train.parquet", "dev.parquet"], "validation", ["1"]),
        (["test/b.parquet", "test/a.parquet", "train/a.parquet"], "test", ["1", "0"]),
    ],
)
def test_names_say_the_split(tmp_path, names, split, expected):
    for number, name in enumerate(names):
        put(tmp_path / name, str(number))
    (tmp_path / "cover.png").write_bytes(b"no data")
    assert answers(tmp_path, split=split) == expected if split else answers(tmp_path) == expected


def test_records_in_lines_of_a_folder_with_pictures_in_it(tmp_path):
    (tmp_path / "records.jsonl").write_text('{"prompt": "What?", "response": "Red"}')
    (example,) = read(tmp_path)
    assert (example.turns, example.source) == (QA, f"{tmp_path.name}/records.jsonl:1")


def test_two_configurations_are_not_mixed(tmp_path):
    put(tmp_path / "main" / "train-00000-of-00001.parquet", "a")
    put(tmp_path / "other" / "train-00000-of-00001.parquet", "b")
    assert refusal(tmp_path) == f"{tmp_path} has data in several folders, main, other; name one of them."
    assert answers(tmp_path / "main") == ["a"]


def test_no_file_of_another_folder_is_read(tmp_path):
    private, folder = put(tmp_path / "private.parquet", "secret"), tmp_path / "set"
    folder.mkdir()
    (folder / "train.parquet").symlink_to(private)
    path = str(folder / "train.parquet")
    assert refusal(folder) == f"{folder} lists {path!r}, which is not a file in it; replace the link by a copy."


# --- hubs ---


@pytest.fixture
def hub(monkeypatch):
    """A hub with one data set, in place of the real one."""
    rows = {name: datasets.Dataset.from_list([RECORD | {"response": name}]) for name in ("train", "test")}

    def load(name, config=None):
        if config is None and name == "org/two":
            raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['main', 'other']")
        return datasets.DatasetDict(rows if name == "org/two" else {"train": rows["train"]})

    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name, timeout: None)
    monkeypatch.setattr(datasets, "load_dataset", load)


@pytest.mark.usefixtures("hub")
def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert answers("org/name") == answers("org/name", split="train") == ["train"]
    (example,) = read("org/two:main", split="test")
    assert (example.turns[-1].text, example.source) == ("test", "org/two/test[0]")
    assert refusal("org/two:main") == ("org/two:main has the splits train, test; choose one with `split`.")
    assert refusal("org/two").startswith(
        "there is no path org/two, and the hub gave no data set of that id (Config name is missing. Please "
        "pick one among the available configs: ['main', 'other']); check the path, the id"
    )
    assert refusal("org/name.jsonl") == "Task colors: org/name.jsonl does not exist; check the path in `file`."
    (tmp_path / "org").mkdir()  # so that org/name is a path
    assert refusal("org/name") == "Task colors: org/name does not exist; check the path in `file`."


def test_without_a_network_one_sentence_says_so(tmp_path, monkeypatch):
    def failing(self, name, timeout):
        raise OSError("[Errno -2] Name or service not known")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HfApi, "dataset_info", failing)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    assert refusal("org/name") == (
        "there is no path org/name, and the hub gave no data set of that id ([Errno -2] Name or service not "
        "known); check the path, the id and the network, or set HF_HUB_OFFLINE=1 to use earlier downloads."
    )
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    assert refusal("org/name").startswith("there is no path org/name, and the hub gave no data set of that id (")
