"""What the system does not give: standard streams, open files, address space. One sentence, and soon."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")  # noqa: PTH110
NO_ROOM = (
    "error: standard output cannot be written: No space left on device; send it to a file or a terminal with room\n"
)


def called(*arguments, limits=(), unbuffered=False, redirect="", package="interference.cli"):
    """How a command of its own process ends: its exit code and what it says on standard error."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONUNBUFFERED", None)
    if unbuffered:
        environment["PYTHONUNBUFFERED"] = "1"

    def limited():
        for kind, value in limits:
            resource.setrlimit(kind, (value, value))

    command = ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-m", package, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, preexec_fn=limited, timeout=60, check=False
    )
    return done.returncode, done.stderr


@needs_full
@pytest.mark.parametrize("unbuffered", [True, False])
@pytest.mark.parametrize("arguments", [["show"], ["show", "--json"], ["--help"], ["--version"]])
def test_a_full_standard_output(run_dir, arguments, unbuffered):
    given = [*arguments, run_dir] if arguments[0] == "show" else arguments
    assert called(*given, redirect="> /dev/full", unbuffered=unbuffered) == (1, NO_ROOM)


@needs_full
def test_a_full_standard_output_of_mixlora():
    assert called("--version", redirect="> /dev/full", package="mixlora.cli") == (1, NO_ROOM)


def test_a_closed_standard_output(run_dir):
    code, said = called("show", run_dir, redirect=">&-")
    assert code == 1 and said == NO_ROOM.replace("No space left on device", "it is closed")


@pytest.mark.parametrize("redirect", ["2>&-", pytest.param("2> /dev/full", marks=needs_full)])
def test_a_mistake_has_its_exit_code_where_nobody_is_told(tmp_path, redirect):
    assert called("show", tmp_path / "none", redirect=redirect) == (2, "")


def test_a_reader_that_has_read_enough_is_told_nothing(run_dir):
    assert called("show", run_dir, redirect="| true") == (0, "")
    code, said = called("--version", redirect="| sleep 0.1")
    assert (code, said) == (0, "")


@pytest.mark.slow
def test_too_few_open_files_for_a_report(run_dir, tmp_path):
    code, said = called("report", run_dir, "--out", tmp_path / "out", limits=[(resource.RLIMIT_NOFILE, 8)])
    assert code == 1 and said.splitlines()[-1] == (
        "error: this process cannot open more files (Too many open files); raise the limit (ulimit -n)"
    )
    assert "Traceback" not in said and "panicked" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["show", "compare"])
def test_an_address_space_that_is_too_small(run_dir, command):
    runs = [run_dir] * (2 if command == "compare" else 1)
    assert called(command, *runs, limits=[(resource.RLIMIT_AS, 380 * 2**20)]) == (
        1,
        "error: the address space of this process is limited to 380 MiB, but its libraries need 1024; raise the limit "
        "(ulimit -v)\n",
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "this process cannot get more memory; free some, or raise its limit"),
        (OSError(12, "Cannot allocate memory"), "this process cannot get more memory ("),
        (RuntimeError("can't start new thread"), "this process cannot get more memory (can't start new thr"),
        (ImportError("x.so: failed to map segment from shared object"), "this process cannot get more memo"),
        (OSError(24, "Too many open files"), "this process cannot open more files"),
    ],
)
def test_what_runs_out_later_is_told_as_well(interference, monkeypatch, tmp_path, error, words):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("interference.run.load", fails)
    said = interference("show", tmp_path)
    assert said.code == 1 and said.err.startswith(f"error: {words}") and said.err.count("\n") == 1
