"""Locks: one process at a time, none left by a kill, nothing left at the end."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from mixlora.common.errors import BusyError, RunError
from mixlora.common.locks import LOCK, locked
from tests.support.launching import other
from tests.support.paths import ROOT


def test_a_second_process_is_refused_and_takes_nothing_away(tmp_path):
    path = tmp_path / "runs" / "x" / LOCK
    with locked(path, "training runs/x"):
        for _ in range(2):
            said = "another process is training runs/x; wait for it, or choose another --out\n"
            assert other(path).stdout == said
        with pytest.raises(BusyError, match="another process is"), locked(path, "training runs/x"):
            pass
        assert path.exists()
    assert other(path).stdout == "in\n"


def test_nothing_is_left_but_what_was_there_or_was_put_there(tmp_path):
    with locked(tmp_path / "runs" / "x" / LOCK, "it"):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "runs" / "x" / LOCK, "it"):
        raise KeyboardInterrupt
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]
    with locked(tmp_path / "runs" / "x" / LOCK, "it"):
        (tmp_path / "runs" / "x" / "weights").touch()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "runs", tmp_path / "runs" / "x", tmp_path / "runs/x/weights"]


def test_a_killed_process_keeps_nobody_out(tmp_path):
    path = tmp_path / "x" / LOCK
    assert other(path, "os.kill(os.getpid(), signal.SIGKILL)").returncode == -signal.SIGKILL
    assert path.exists()
    assert other(path).stdout == "in\n"
    assert not path.exists()


def test_a_child_that_lives_on_keeps_nobody_out(tmp_path):
    """As a worker of a DataLoader does, whose parent is killed."""
    path = tmp_path / "x" / LOCK
    code = f"""
        import os, signal, time
        from pathlib import Path
        from mixlora.common.locks import locked
        with locked(Path({str(path)!r}), "training runs/x"):
            pid = os.fork()
            if pid:
                print(pid, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            os.close(1)
            os.close(2)
            time.sleep(60)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    try:
        assert killed.returncode == -signal.SIGKILL and path.exists()
        assert other(path).stdout == "in\n"
    finally:
        os.kill(int(killed.stdout), signal.SIGKILL)


def test_a_child_that_leaves_takes_nothing_from_its_parent(tmp_path):
    path = tmp_path / "x" / LOCK
    code = f"""
        import os, sys
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from mixlora.common.locks import locked
        from tests.support.launching import other
        path = Path({str(path)!r})
        with locked(path, "training runs/x"):
            if not os.fork():
                sys.exit()
            os.wait()
            print(path.exists(), other(path).stdout)
    """
    said = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert said.stdout.startswith("True another process is training runs/x; "), said.stderr
    assert not path.parent.exists()


def test_a_lock_that_cannot_be_removed_hides_no_result(tmp_path, monkeypatch):
    path, found = tmp_path / LOCK, []

    def failing(_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patched, locked(path, "it"):
        patched.setattr(type(path), "unlink", failing)
        found.append("done")
    assert found == ["done"] and path.exists()
    assert other(path).stdout == "in\n"


def test_a_lock_that_another_has_just_removed_is_not_held(tmp_path, monkeypatch):
    path, lock = tmp_path / LOCK, fcntl.flock

    def late(handle, how):
        path.unlink()  # its holder ends between open and flock, and a third process comes
        path.touch()
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    path.touch()
    with pytest.raises(BusyError, match="another process is it; wait for it"), locked(path, "it"):
        pass
    assert path.exists()  # it is the third one's


def test_a_folder_that_goes_with_its_lock_stays_gone(tmp_path):
    path = tmp_path / "run.partial" / "lock"
    with locked(path, "it"):
        path.unlink()
        path.parent.rmdir()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_comes_to_the_place_of_a_lock_stays(tmp_path):
    path = tmp_path / "run.partial" / "lock"
    with locked(path, "it"):
        path.unlink()
        path.touch()  # by another process that found the place free
    assert path.exists()


def test_a_folder_that_its_holder_has_just_removed_is_busy(tmp_path, monkeypatch):
    path, made = tmp_path / "run.partial" / "lock", type(tmp_path).mkdir

    def gone(folder, *arguments, **options):
        made(folder, *arguments, **options)
        folder.rmdir()

    with monkeypatch.context() as patched:
        patched.setattr(type(tmp_path), "mkdir", gone)
        with pytest.raises(BusyError, match="another process is it; wait for it"), locked(path, "it"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for out, said in (
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "x" / "y", "Not a directory"),
        (tmp_path / "a" / ("n" * 300), "File name too long"),
        (tmp_path / ("n" * 300), "File name too long"),
        (tmp_path / "a\0b", "embedded null byte"),
    ):
        with pytest.raises(RunError) as told, locked(out / LOCK, "it"):
            pass
        assert str(told.value) == f"{out} cannot be written: {said}; choose another --out"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("known", [errno.ENOSYS, errno.EIO])
def test_a_file_system_without_locks_is_no_reason_to_refuse(tmp_path, monkeypatch, known):
    def failing(*_):
        raise OSError(known, os.strerror(known))

    monkeypatch.setattr(fcntl, "flock", failing)
    if known == errno.ENOSYS:
        with locked(tmp_path / "x" / LOCK, "it"):
            assert (tmp_path / "x").is_dir()
        assert list(tmp_path.iterdir()) == []
    else:
        with pytest.raises(RunError, match="cannot be written: Input/output error"), locked(tmp_path / LOCK, ""):
            pass
