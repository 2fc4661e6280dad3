"""Places that cannot be written, or no longer: one sentence, nothing lost, and the same command ends as ever."""

import io
import os
from contextlib import ExitStack
from itertools import product

import pytest

from interference import load
from interference.errors import RunError
from interference.measurement.compute import compute_config
from interference.run import Run
from tests.support.checkpoints import ARGUMENTS
from tests.support.disks import full, read_only
from tests.support.killing import files

SETTINGS = {"layers": [0, 2], "batch_size": 1}
COMMANDS = ["compute", "factors", "plan", "report", "figure"]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The files of a run that nothing disturbed, without run.json, which says when it was."""
    out = tmp_path_factory.mktemp("whole") / "run"
    compute_config(tiny.config(out, **SETTINGS))
    return bytes_of(out)


def arguments(command, tiny, run, out, spools):
    """What makes a command write to `out`, or to `spools`."""
    return {
        "compute": [*tiny.arguments(out), *ARGUMENTS],
        "factors": [*tiny.arguments(out), *ARGUMENTS, "--perplexity", "3"],
        "plan": [*tiny.arguments(), *ARGUMENTS[:-1], "--set", f"probe.spool_dir={spools}"],
        "report": [run, "--detail", "small", "--out", out, "--quiet"],
        "figure": ["blocks", run, "--out", out],
    }[command]


def bytes_of(out):
    return {name: data for name, data in files(out).items() if name != "run.json"}


def parts(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("run.partial/part-*.safetensors")}


def ends_as_ever(tiny, folder, whole):
    """The same command, once it may write again, takes what was measured and ends with the same run."""
    before, seen = parts(folder), []
    assert len(before) == 12
    compute_config(tiny.config(folder / "run", **SETTINGS), lambda stage, *_: seen.append((stage, parts(folder))))
    assert all(found == before for stage, found in seen if stage == "gram")
    assert bytes_of(folder / "run") == whole and [path.name for path in folder.iterdir()] == ["run"]


# --- full ---


def test_gram_matrices_that_do_not_fit(tiny, tmp_path, whole):
    with ExitStack() as stack, pytest.raises(RunError) as told:
        compute_config(
            tiny.config(tmp_path / "run", **SETTINGS),
            lambda stage, done, _: stack.enter_context(full(3000)) if (stage, done) == ("gram", 1) else None,
        )
    file = tmp_path / "run.partial" / "gram.safetensors"
    assert str(told.value).startswith(f"{file} cannot be written: File too large; make room there")
    ends_as_ever(tiny, tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "size"),
    [*product(("compute", "factors", "plan"), (0, 100, 3000)), ("report", 3000), ("figure", 100)],
)
def test_a_full_disk_is_no_mistake_in_the_input(interference, tiny, run_dir, tmp_path, command, size):
    given = arguments(command, tiny, run_dir, tmp_path / "out", tmp_path / "spools")
    with full(size):
        said = interference(command, *given)
    assert (said.code, said.out) == (1, ""), said.err
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert "File too large" in said.err and "make room there, and" in said.err
    again = interference(command, *given)
    assert again.code == 0, again.err


def test_a_run_that_does_not_fit(tiny, tmp_path, monkeypatch, whole):
    own = Run.save

    def late(*given):
        with full(3000):
            own(*given)

    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"run cannot be written to .*; .*make room"):
        patch.setattr(Run, "save", late)
        compute_config(tiny.config(tmp_path / "run", **SETTINGS))
    assert not (tmp_path / "run").exists()
    ends_as_ever(tiny, tmp_path, whole)


def test_what_has_come_to_lie_in_the_runs_place_is_left_alone(tiny, tmp_path, whole):
    def put(stage, done, total):
        if stage == "gram" and done == 1:
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "thesis.tex").write_text("years of work")

    place = f"{tmp_path}/run"
    told = f"^{place} is taken: something was written there while {place}.partial/result was computed, which is a whole"
    with pytest.raises(RunError, match=told):
        compute_config(tiny.config(tmp_path / "run", **SETTINGS), put)
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "run").rename(tmp_path.parent / f"{tmp_path.name} thesis")
    with pytest.raises(RunError, match="run already holds a run"):  # the whole result moves to its place now
        compute_config(tiny.config(tmp_path / "run", **SETTINGS))
    assert bytes_of(tmp_path / "run") == whole
    assert not (tmp_path / "run.partial").exists()


def test_an_identity_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "run.partial" / ".identity.new").mkdir(parents=True)
    with pytest.raises(RunError) as told:
        compute_config(tiny.config(tmp_path / "run"))
    assert str(told.value) == f"{tmp_path}/run.partial cannot be written: Is a directory; choose another --out"
    assert not (tmp_path / "run").exists()


# --- read-only ---


def test_a_disk_that_becomes_read_only_loses_nothing(tiny, tmp_path, whole):
    with ExitStack() as stack, pytest.raises(RunError, match="Read-only file system"):
        compute_config(
            tiny.config(tmp_path / "run", **SETTINGS),
            lambda _, done, total: stack.enter_context(read_only(tmp_path)) if done == total else None,
        )
    assert not (tmp_path / "run").exists()
    ends_as_ever(tiny, tmp_path, whole)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_read_only_place_is_told_in_a_sentence(interference, tiny, run_dir, tmp_path, command):
    closed = tmp_path / "closed"
    closed.mkdir()
    given = arguments(command, tiny, run_dir, closed / "out", closed)
    with read_only(closed):
        with pytest.raises(OSError, match="Read-only"):
            (closed / "mine").write_text("")  # so it is
        said = interference(command, *given)
    assert said.code == 2 and said.out == "", said.err
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert str(closed) in said.err and "Read-only file system" in said.err
    assert list(closed.iterdir()) == []


# --- elsewhere ---


def test_the_command_line_says_where_gradients_wait_and_how_much_memory_they_take(interference, tiny, tmp_path):
    spools = tmp_path / "spools"
    given = ["--spool-dir", spools, "--memory-budget", "2GiB"]
    said = interference("compute", *tiny.arguments(tmp_path / "run"), *ARGUMENTS, *given)
    assert said.code == 0, said.err
    probe = load(tmp_path / "run").meta["config"]["probe"]
    assert probe["memory_budget"] == 2 * 2**30 and probe["spool_dir"] == str(spools)
    assert list(spools.iterdir()) == []


def test_the_way_back_is_open():
    """What `read_only` closes, it opens again."""
    before = os.mkdir, os.open, io.open
    with read_only("/nowhere"):
        assert (os.mkdir, os.open, io.open) != before
    assert (os.mkdir, os.open, io.open) == before
