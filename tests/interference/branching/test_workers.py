"""Workers: the same losses from however many processes, and how a job ends whose worker fails, is killed or left."""

import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from interference import config
from interference.branching import workers
from interference.branching.workers import losses_of
from interference.errors import ConfigError, MeasurementError, RunError
from interference.prediction import lookahead as library
from mixlora.common.errors import EndedError
from mixlora.common.progress import silent
from tests.support.pieces import PIECES, Numbers, Patient, Stuck, UnlikeError, finished, parts, wait
from tests.support.sharing import leaving


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
        assert "pieces.py" in told.value.__notes__[0]


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
    values = start.data()
    values["model"] |= given.pop("model", {})
    with pytest.raises(ConfigError, match=words):
        library.compute(config.build({**values, **given}, "test"), tmp_path / "out")


# --- how a job ends ---


def begun(monkeypatch):
    """The processes that are begun from now on."""
    own, found = subprocess.Popen, []
    monkeypatch.setattr(
        subprocess, "Popen", lambda *given, **options: found.append(own(*given, **options)) or found[-1]
    )
    return found


def test_a_killed_worker_ends_the_job_which_continues(tmp_path, monkeypatch):
    processes = begun(monkeypatch)
    here = Patient(tmp_path, 1, lambda: processes[0].kill() or processes[0].wait())
    words = (
        "ended (SIGKILL, which may say that memory ran out); the same command continues, and processes: 1 takes less"
    )
    with pytest.raises(EndedError) as told:
        losses_of(PIECES, finished(tmp_path), here, Stuck(), 2, silent)
    assert words in str(told.value) and told.value.exit_code == 1
    again = losses_of(PIECES, finished(tmp_path), Numbers(), Numbers(), 1, silent)
    assert [int(number) for number, _ in again] == [0, 1, 2, 3]
    assert processes[0].pid in {int(pid) for _, pid in again}  # what it had finished


def test_ctrl_c_ends_workers_and_keeps_what_is_finished(tmp_path, monkeypatch):
    processes = begun(monkeypatch)

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        losses_of(PIECES, finished(tmp_path), Patient(tmp_path, 1, interrupt), Stuck(), 2, silent)
    assert [process.returncode for process in processes] == [-signal.SIGKILL]
    assert len(parts(tmp_path)) == 1


def script(folder, pieces):
    """The command of a job in two processes, whose own begins when the other has finished some pieces."""
    (folder / "script.py").write_text(
        "from pathlib import Path\n"
        "from interference.branching.workers import losses_of\n"
        "from tests.support import pieces as here\n"
        f"print('begun')\nplace = Path({str(folder / 'out')!r})\n"
        f"both = here.Patient(place, {pieces}), here.Numbers()\n"
        "print(len(losses_of(here.PIECES, here.finished(place), *both, 2, lambda *told: None)))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return {"args": [sys.executable, folder / "script.py"], "env": environment, "text": True}


def test_a_script_is_not_run_again_by_its_workers(tmp_path):
    """As multiprocessing would run a script without a guard."""
    done = subprocess.run(**script(tmp_path, 3), capture_output=True, check=True, timeout=120)
    assert done.stdout == "begun\n4\n"


def test_a_worker_ends_with_a_process_that_is_killed(tmp_path):
    with subprocess.Popen(**script(tmp_path, 4)) as process:
        try:
            wait(lambda: len(parts(tmp_path / "out")) == 3)
            (worker,) = psutil.Process(process.pid).children()
        finally:
            process.kill()
    assert psutil.wait_procs([worker], timeout=10)[1] == []


# --- of a lookahead ---


def part(out):
    """The second branch."""
    return out.with_name(f"{out.name}.partial") / "part-000001.safetensors"


@pytest.mark.slow
def test_two_processes_find_the_same_to_the_bit(start, tmp_path):
    alone = library.compute(start.config(), tmp_path / "alone")
    with leaving(part(tmp_path / "out")) as taken:
        found = library.compute(start.config().model_copy(update={"processes": 2}), tmp_path / "out")
    assert np.array_equal(found.losses, alone.losses) and found.examples.equals(alone.examples)
    assert 1 <= len(taken) < 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "out"]


def test_a_checkpoint_that_has_changed_is_noticed_by_a_worker(start):
    job = start.job()
    there = replace(job.elsewhere, parts={**job.parts, "adapter weights": "others"})
    with pytest.raises(RunError, match="the checkpoint was changed while branches were trained from it; start again"):
        there.opened(lambda: None)
