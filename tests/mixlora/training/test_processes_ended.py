"""A process of a training that ends ends the other, soon and in one sentence; the same command continues."""

import json
import re
import time

import pytest

from tests.support.launching import launched
from tests.support.trainings import values

PROGRAM = """
import os, signal, sys
from transformers import Trainer, TrainerCallback
from mixlora import cli
from mixlora.training import run

class Killer(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

def full(*arguments, **named):
    raise OSError(28, "No space left on device")

def with_killer(*arguments, **named):
    trainer = make(*arguments, **named)
    trainer.add_callback(Killer())
    return trainer

make = run._trainer
if os.environ["RANK"] == "{rank}":
    {fault}
sys.argv = ["mixlora", "train", "{settings}", "--quiet"]
cli.main()
"""
GONE = (
    r"stopped: another of the 2 processes ended or cannot be reached \(.+\); the same command continues",
    r"stopped: SIGTERM arrived, perhaps because another process ended; the same command continues",
)
FULL = "No space left on device; make room there, and the same command continues from the last checkpoint"


def is_gone(line):
    return any(re.fullmatch(words, line) for words in GONE)


def begun(tmp_path, rank, fault):
    """What two processes say, of which one has a fault, and how long they took."""
    settings = tmp_path / "t.yaml"
    settings.write_text(json.dumps(values(tmp_path / "out")))
    (tmp_path / "program.py").write_text(PROGRAM.format(rank=rank, fault=fault, settings=settings))
    start = time.monotonic()
    ended = launched(2, tmp_path / "program.py")
    said = [line for line in ended.stderr.splitlines() if line.startswith(("error: ", "stopped: "))]
    return ended.returncode, said, time.monotonic() - start


def goes_on(tmp_path):
    code, said, _ = begun(tmp_path, "none", "pass")
    assert (code, said) == (0, [])
    assert json.loads((tmp_path / "out" / "training.json").read_text())["steps"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("place", ["_save_checkpoint", "save_model"])
def test_a_full_disk_in_the_first_process_ends_both(tmp_path, place):
    code, said, seconds = begun(tmp_path, 0, f"Trainer.{place} = full")
    assert code != 0 and seconds < 60
    (error,) = [line for line in said if line.startswith("error: ")]
    assert error.endswith(FULL)
    assert all(is_gone(line) for line in said if line is not error)
    goes_on(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_other(tmp_path, rank):
    code, said, seconds = begun(tmp_path, rank, "run._trainer = with_killer")
    assert code != 0 and seconds < 60
    assert len(said) == 1 and is_gone(said[0])
    goes_on(tmp_path)
