"""Output directories: only what the command wrote is replaced or removed; what is the user's stays to the byte."""

import json
from pathlib import Path

import pytest

from mixlora.common import outputs
from mixlora.common.errors import RunError
from mixlora.common.outputs import LIST, OutputFolder

COMMAND = "interference report"
KEPT = "earlier versions kept no list: choose another --out, or move it"


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LIST
    }


def written(folder, files, **options):
    return OutputFolder(folder, COMMAND).replace(files, **options)


def refused(folder, command=COMMAND):
    with pytest.raises(RunError) as told:
        OutputFolder(folder, command)
    return str(told.value)


def test_a_report_replaces_the_one_before(tmp_path):
    out = tmp_path / "out"
    paths = written(out, {"report.html": b"1", "figures/matrix-1.png": b"2", "figures/matrix-2.png": b"3"})
    assert paths == [out / "report.html", out / "figures/matrix-1.png", out / "figures/matrix-2.png"]
    written(out, {"report.html": b"4", "figures/matrix-1.png": b"2"})
    assert tree(out) == {"report.html": b"4", "figures/matrix-1.png": b"2"}
    assert json.loads((out / LIST).read_text())["files"].keys() == tree(out).keys()


def test_figures_gather_in_one_place(tmp_path):
    written(tmp_path, {"blocks.svg": b"1"}, keep=True)
    written(tmp_path, {"methods.svg": b"2"}, keep=True)
    written(tmp_path, {"blocks.svg": b"3"}, keep=True)
    assert tree(tmp_path) == {"blocks.svg": b"3", "methods.svg": b"2"}


@pytest.mark.parametrize("name", ["report.html", "tables/cells.csv", "figures/matrix-7.png", "notes/mine.txt"])
def test_a_file_that_was_not_written_by_it_is_the_user_s(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = tree(tmp_path)
    words = f"{tmp_path / name} is not listed as written by interference report; {KEPT}"
    assert refused(tmp_path) == words
    assert tree(tmp_path) == before and not (tmp_path / LIST).exists()


def test_so_is_one_that_was_added_or_changed_since(tmp_path):
    written(tmp_path, {"report.html": b"1", "tables/cells.csv": b"2"})
    (tmp_path / "tables" / "mine.csv").write_text("mine")
    assert refused(tmp_path).startswith(f"{tmp_path}/tables/mine.csv is not listed as written by interference report; ")
    (tmp_path / "tables" / "mine.csv").unlink()
    (tmp_path / "tables" / "cells.csv").write_text("corrected")
    assert refused(tmp_path) == (
        f"{tmp_path}/tables/cells.csv has changed since interference report wrote it; choose another --out, or move or "
        "delete it"
    )
    (tmp_path / "tables" / "cells.csv").unlink()
    written(tmp_path, {"report.html": b"3"})
    assert tree(tmp_path) == {"report.html": b"3"}


def test_another_command_s_directory_is_not_its_own(tmp_path):
    written(tmp_path, {"a.svg": b"1"})
    assert refused(tmp_path, "interference figure").startswith(
        f"{tmp_path}/a.svg is not listed as written by interference fig"
    )


def test_links_inside_are_not_followed(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "matrix-7.png").write_text("mine")
    written(out, {"report.html": b"1", "figures/matrix-7.png": b"2"})
    (out / "figures" / "matrix-7.png").unlink()
    (out / "figures").rmdir()
    (out / "figures").symlink_to(elsewhere)
    assert refused(out) == f"{out}/figures is not listed as written by interference report; {KEPT}"
    (out / "figures").unlink()
    (out / "report.html").unlink()
    (elsewhere / "page").write_bytes(b"1")  # as it was written, but elsewhere
    (out / "report.html").symlink_to(elsewhere / "page")
    assert "report.html has changed since" in refused(out)
    assert tree(elsewhere) == {"matrix-7.png": b"mine", "page": b"1"}


def test_a_place_behind_a_link_that_the_user_names_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    written(tmp_path / "out", {"report.html": b"1"})
    assert tree(tmp_path / "disk") == {"report.html": b"1"}


@pytest.mark.parametrize("dies_at", range(4))
def test_a_kill_at_any_moment_leaves_a_directory_that_is_written_again(tmp_path, monkeypatch, dies_at):
    written(tmp_path, {"report.html": b"1", "a.csv": b"1", "b.csv": b"1"})
    own, moves = Path.replace, []

    def replace(self, target):
        moves.append(target)
        if len(moves) > dies_at:
            raise KeyboardInterrupt
        return own(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", replace)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process removes nothing
        written(tmp_path, {"report.html": b"2", "a.csv": b"2"})
    written(tmp_path, {"report.html": b"3", "a.csv": b"3"})
    assert tree(tmp_path) == {"report.html": b"3", "a.csv": b"3"}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"by": "interference report", "files": [1]}', '{"files": {}}'])
def test_a_list_that_is_damaged_lists_nothing(tmp_path, text):
    written(tmp_path, {"report.html": b"1"})
    (tmp_path / LIST).write_text(text)
    assert refused(tmp_path).startswith(f"{tmp_path}/report.html is not listed as written by interference report; ")


def test_a_list_cannot_name_files_outside(tmp_path):
    """A stranger's list names a user's file: it is not in the directory, and stays."""
    mine, out = tmp_path / "mine.txt", tmp_path / "out"
    mine.write_bytes(b"mine")
    out.mkdir()
    names = {"../mine.txt": [outputs._digest(b"mine")], str(mine): [outputs._digest(b"mine")]}
    (out / LIST).write_text(json.dumps({"by": COMMAND, "files": names}))
    written(out, {"report.html": b"1"})
    assert mine.read_bytes() == b"mine" and tree(out) == {"report.html": b"1"}


def test_a_file_and_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert refused(tmp_path / "file") == f"--out {tmp_path}/file is a file; give a directory"
    folder = OutputFolder(tmp_path / "file" / "out", COMMAND)
    with pytest.raises(RunError, match=r"file/out cannot be written: Not a directory; choose another --out"):
        folder.replace({"report.html": b"1"})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
