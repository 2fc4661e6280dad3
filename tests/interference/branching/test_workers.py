"""Workers: the same losses from however many processes, and how a job ends whose worker fails, is killed or left."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from interference.branching import workers
from interference.branching.finished import Finished
from interference.branching.workers import Piece, losses_of
from interference.errors import ConfigError, MeasurementError, RunError
from interference.measurement.spool import DiskSpool
from interference.prediction import lookahead as library
from mixlora.common.errors import EndedError
from mixlora.common.progress import silent
from tests.support.killing import start as started
from tests.support.sharing import leaving, wait
from tests.support.starts import RECIPE

PIECES = [Piece(number, (number,), ("known", number), 2) for number in range(4)]


class Numbers:
    """Losses that name their piece and the process that read them."""

    def __init__(self, *error):
        self.error = error

    def opened(self, stepped):
        def losses(number):
            if self.error:
                kind, *given = self.error
                raise kind(*given)
            stepped()
            stepped()
            return torch.tensor([number, os.getpid()], dtype=torch.float64)

        return losses


class Patient(Numbers):
    """As Numbers, in this process, which leaves all pieces but the first to workers."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def opened(self, stepped):
        whole = super().opened(stepped)

        def losses(number):
            wait(lambda: len(list(self.folder.glob("part-*.safetensors"))) == 3, lambda: stepped.__self__.step(0))
            return whole(number)

        return losses


class UnlikeError(Exception):
    """An error that another process cannot read."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def finished(folder):
    return Finished(DiskSpool(folder), "job")


def test_every_process_takes_what_is_left(tmp_path):
    steps = []
    found = losses_of(
        PIECES,
        finished(tmp_path),
        Patient(tmp_path),
        Numbers(),
        2,
        lambda stage, done, total: steps.append((done, total)),
    )
    assert [int(number) for number, _ in found] == [0, 1, 2, 3]
    counts = Counter(int(pid) for _, pid in found)
    assert counts[os.getpid()] == 1 and sorted(counts.values()) == [1, 3]
    assert steps == sorted(steps) and steps[-1] == (8, 8) and torch.get_num_threads() == 1
    again = losses_of(PIECES, finished(tmp_path), Numbers(ValueError, "trained again"), Numbers(), 2, silent)
    assert np.array_equal(again, found)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ((MeasurementError, "the loss is nan"), MeasurementError, "^the loss is nan$"),
        ((ValueError, "a bug"), ValueError, "^a bug\n"),
        ((UnlikeError, 1, 2), RuntimeError, "^UnlikeError: 1 and 2$"),
    ],
)
def test_an_error_of_a_worker_is_that_of_the_job(tmp_path, error, kind, words):
    with pytest.raises(kind, match=words) as told:
        losses_of(PIECES, finished(tmp_path), Patient(tmp_path), Numbers(*error), 2, silent)
    if kind is ValueError:
        assert "test_workers.py" in told.value.__notes__[0]


def test_a_worker_that_cannot_begin_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_BEGIN", "import sys; sys.exit('no such module')")
    words = r"a process that trained beside this one ended \(exit code 1: no such module\); the same command continues"
    with pytest.raises(EndedError, match=words):
        losses_of(PIECES, finished(tmp_path), Patient(tmp_path), Numbers(), 2, silent)


def test_what_cannot_travel_is_refused(tmp_path):
    there = Numbers()
    there.local = lambda: None
    with pytest.raises(RunError, match=r"cannot be given to other processes \(.*local.*\); drop processes"):
        losses_of(PIECES, finished(tmp_path), Numbers(), there, 2, silent)
    assert len(losses_of(PIECES, finished(tmp_path), Numbers(), there, 1, silent)) == 4


def test_no_worker_is_waited_for_that_has_nothing_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_BEGIN", "import time; time.sleep(1000)")
    found = losses_of(PIECES, finished(tmp_path), Numbers(), Numbers(), 3, silent)
    assert {int(pid) for _, pid in found} == {os.getpid()}


def test_threads_are_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_BEGIN", "import time; time.sleep(1000)")
    threads = []

    class Counted(Numbers):
        def opened(self, stepped):
            return lambda number: torch.tensor([threads.append(torch.get_num_threads()) or 0.0]).double()

    torch.set_num_threads(7)
    try:
        losses_of(PIECES, finished(tmp_path / "two"), Counted(), Numbers(), 2, silent)
        losses_of(PIECES[:1], finished(tmp_path / "one"), Counted(), Numbers(), 2, silent)
        assert threads == [3, 3, 3, 3, 7] and torch.get_num_threads() == 7
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"processes": 0}, "processes: Input should be greater than or equal to 1"),
        ({"processes": 2, "model": {"device": "cuda:0"}}, "processes is 2, but they would share one cuda device; drop"),
    ],
)
def test_a_number_of_processes_that_cannot_be_used_is_refused(start, tmp_path, given, words):
    from interference import config

    values = start.data()
    values["model"] |= given.pop("model", {})
    with pytest.raises(ConfigError, match=words):
        library.compute(config.build({**values, **given}, "test"), tmp_path / "out")


# --- of a lookahead ---


def part(out):
    """The second branch."""
    return out.with_name(f"{out.name}.partial") / "part-000001.safetensors"


def two(start, **asked):
    return start.config(**asked).model_copy(update={"processes": 2})


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """The losses of a lookahead in one process."""
    return library.compute(start.config(), tmp_path_factory.mktemp("alone") / "out")


def test_two_processes_find_the_same_to_the_bit(start, tmp_path, alone):
    with leaving(part(tmp_path / "out")) as taken:
        found = library.compute(two(start), tmp_path / "out")
    assert np.array_equal(found.losses, alone.losses) and found.examples.equals(alone.examples)
    assert 1 <= len(taken) < 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_branch_that_diverges_in_a_worker_leaves_nothing(start, tmp_path):
    asked = two(start, recipe={**RECIPE, "learning_rate": 1e30})
    with (
        leaving(part(tmp_path / "out")),
        pytest.raises(MeasurementError, match="the branch along 'blue' with seed 0 diverg"),
    ):
        library.compute(asked, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def begun(monkeypatch):
    """The processes that are begun from now on."""
    own, found = subprocess.Popen, []
    monkeypatch.setattr(
        subprocess, "Popen", lambda *given, **options: found.append(own(*given, **options)) or found[-1]
    )
    return found


def test_a_killed_worker_ends_the_job_which_continues(start, tmp_path, monkeypatch, alone):
    processes = begun(monkeypatch)

    def kill():
        processes[0].send_signal(signal.SIGKILL)
        time.sleep(0.5)

    words = (
        "ended (SIGKILL, which may say that memory ran out); the same command continues, and processes: 1 takes less"
    )
    with leaving(part(tmp_path / "out"), kill), pytest.raises(EndedError) as told:
        library.compute(two(start), tmp_path / "out")
    assert words in str(told.value) and told.value.exit_code == 1
    assert part(tmp_path / "out").exists()
    again = library.compute(start.config(), tmp_path / "out")
    assert np.array_equal(again.losses, alone.losses)


def test_a_checkpoint_that_has_changed_is_noticed_by_a_worker(start):
    job = start.job()
    there = replace(job.elsewhere, parts={**job.parts, "adapter weights": "others"})
    with pytest.raises(RunError, match="the checkpoint was changed while branches were trained from it; start again"):
        there.opened(lambda: None)


@pytest.mark.slow
def test_ctrl_c_ends_workers_and_keeps_what_is_finished(start, tmp_path, monkeypatch, alone):
    processes = begun(monkeypatch)

    def interrupt():
        raise KeyboardInterrupt

    with leaving(part(tmp_path / "out"), interrupt), pytest.raises(KeyboardInterrupt):
        library.compute(two(start), tmp_path / "out")
    assert [process.returncode for process in processes] == [-signal.SIGKILL]
    kept = part(tmp_path / "out").stat().st_mtime_ns
    again = library.compute(start.config(), tmp_path / "out")
    assert np.array_equal(again.losses, alone.losses) and kept


def forever(out, folder):
    """A job that never ends by itself, in two processes."""
    losses_of(PIECES, finished(Path(out)), Patient(Path(folder)), Numbers(), 2, silent)


@pytest.mark.slow
def test_a_worker_ends_with_a_process_that_is_killed(tmp_path):
    process = started(forever, tmp_path / "out", tmp_path / "nowhere")
    try:
        own = psutil.Process(process.pid)
        wait(lambda: len(list((tmp_path / "out").glob("part-*.safetensors"))) == 3)
        (worker,) = [each for each in own.children() if "workers.work" in " ".join(each.cmdline())]
        process.kill()
        assert psutil.wait_procs([worker], timeout=10)[1] == []
    finally:
        process.kill()
        process.join()


@pytest.mark.slow
def test_a_script_is_not_run_again_by_its_workers(start, tmp_path):
    """As multiprocessing would run a script without a guard."""
    (tmp_path / "script.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom tests.interference.branching import test_workers as here\n"
        f"print('begun')\nplace = Path({str(tmp_path / 'out')!r})\n"
        "both = here.Patient(place), here.Numbers()\n"
        "found = here.losses_of(here.PIECES, here.finished(place), *both, 2, here.silent)\n"
        "print(len(found))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout == "begun\n4\n"
