"""Files and directories that are whole or absent: what a failure leaves, what is synced, what is removed."""

import json
import os
from pathlib import Path

import pytest

from mixlora.common import writing
from mixlora.common.writing import growing, remove_left, replace_files, unique, whole_directory, whole_file, write_json


@pytest.fixture
def synced(monkeypatch):
    """The paths that are synced, in order."""
    found, real = [], os.fsync

    def note(handle):
        found.append(Path(f"/proc/self/fd/{handle}").readlink())
        real(handle)

    monkeypatch.setattr(writing.os, "fsync", note)
    return found


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- one file ---


def test_a_file_takes_the_place_of_the_old_one_at_the_end_of_the_block(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with whole_file(file) as new:
        assert new == growing(file) == tmp_path / ".a.txt.new"
        new.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_file(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), whole_file(tmp_path / "a.txt") as new:
        new.write_text("half")
        raise error
    assert (tmp_path / "a.txt").read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_block_that_raises_before_it_wrote_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="early"), whole_file(tmp_path / "a.txt"):
        raise ValueError("early")
    assert names(tmp_path) == []


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_synced_under_its_temporary_name_if_asked_for(tmp_path, synced, durable):
    with whole_file(tmp_path / "a.txt", durable=durable) as new:
        new.write_text("new")
    assert synced == [new] * durable
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_file_that_cannot_be_synced_leaves_the_old_one(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), whole_file(tmp_path / "a.txt") as new:
        new.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"one": "é"})
    assert (tmp_path / "a.json").read_bytes() == '{\n "one": "é"\n}\n'.encode()
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"two": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"one": "é"} and names(tmp_path) == ["a.json"]


# --- a directory ---


@pytest.mark.parametrize("there", [False, True])
def test_a_directory_is_made_with_its_parents_or_replaces_an_empty_one(tmp_path, there):
    out = tmp_path / "deep" / "out"
    if there:
        out.mkdir(parents=True)
    with whole_directory(out) as folder:
        assert folder.parent == out.parent and out.exists() == there
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text("a")
    assert names(tmp_path) == ["deep", "deep/out", "deep/out/inner", "deep/out/inner/a.txt"]


def test_a_full_directory_is_refused_and_stays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OSError, match="not empty"), whole_directory(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("a")
    assert names(tmp_path) == ["out", "out/mine.txt"]
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_a_directory_whose_block_raises_leaves_nothing(tmp_path, error):
    with pytest.raises(error), whole_directory(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_a_directory_may_have_a_temporary_name_of_the_callers(tmp_path):
    with whole_directory(tmp_path / "out", growing(tmp_path / "out")) as folder:
        assert folder == tmp_path / ".out.new"
    assert names(tmp_path) == ["out"]


def test_a_temporary_name_that_is_taken_is_refused(tmp_path):
    (tmp_path / ".out.new").mkdir()
    with pytest.raises(FileExistsError), whole_directory(tmp_path / "out", growing(tmp_path / "out")):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_can_be_read_by_whoever_may_read_the_directory(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with whole_directory(tmp_path / "out") as folder:
            (folder / "own.safetensors").touch(mode=0o600)
            (folder / "run.sh").touch(mode=0o755)
    finally:
        os.umask(before)
    assert {(path.stat().st_mode & 0o777) for path in (tmp_path / "out").iterdir()} == {mode}


def test_every_file_and_folder_is_synced_before_it_gets_its_name(tmp_path, synced):
    with whole_directory(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text("a")
    assert sorted(synced) == [folder, folder / "inner", folder / "inner" / "a.txt"]


# --- several files ---


def test_several_files_are_replaced_together(tmp_path, synced):
    one, other = tmp_path / "a.txt", tmp_path / "new" / "b.txt"
    one.write_text("old")
    replace_files({one: b"1", other: b"2"})
    assert (one.read_bytes(), other.read_bytes()) == (b"1", b"2")
    assert names(tmp_path) == ["a.txt", "new", "new/b.txt"]
    assert [path.parent for path in synced] == [tmp_path, tmp_path / "new"]


def test_where_one_file_cannot_be_written_none_is(tmp_path):
    one, other = tmp_path / "a.txt", tmp_path / "file" / "b.txt"
    one.write_text("old")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        replace_files({one: b"1", other: b"2"})
    assert one.read_text() == "old" and names(tmp_path) == ["a.txt", "file"]


# --- what a kill leaves ---


def test_only_what_was_left_of_the_directory_itself_is_removed(tmp_path):
    out = tmp_path / "out[1]"
    kept = [
        out,
        unique(tmp_path / "out"),  # of another directory
        unique(tmp_path / "out[1].b"),
        growing(out),
        tmp_path / ".out1.00000000.tmp",  # what the name would match as a pattern
        tmp_path / "mine.tmp",
    ]
    for folder in (*kept, unique(out), unique(out)):
        folder.mkdir()
        (folder / "a.txt").write_text("a")
    remove_left(out)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    assert all((folder / "a.txt").read_text() == "a" for folder in kept)


def test_temporary_names_are_hidden_beside_the_final_one_and_differ():
    made = {unique(Path("a/out")) for _ in range(100)}
    assert len(made) == 100
    assert all(str(path.parent) == "a" and path.name.startswith(".out.") and path.suffix == ".tmp" for path in made)
