"""Commands in processes of their own, and how one ended: as if alone, in one sentence, or in neither."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.attacks.places import Job
from tests.support import killing

STARTS = "note: the command starts"


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, negative for a signal, and what it said on standard error."""

    code: int
    said: str

    @property
    def sentence(self) -> str:
        """The one sentence of a refusal; "" if there is none, or more than that."""
        told = [line for line in self.said.splitlines() if not line.startswith("note: ")]
        one = len(told) == 1 and told[0].startswith("error: ")
        return told[0].removeprefix("error: ") if one and self.code in (1, 2) else ""

    @property
    def traceback(self) -> bool:
        """Whether it ended in what only a developer can read."""
        return "Traceback" in self.said or "--debug" in self.said

    def short(self) -> str:
        """The end in a line."""
        return f"exit {self.code}: {self.said.strip()[-600:]}"


class Command:
    """A command that has begun in another process."""

    def __init__(self, job: Job, log: Path, at: float = 0.0) -> None:
        """Begin, at a time of the clock if that is to come."""
        self.log = log
        log.unlink(missing_ok=True)  # what an earlier process said
        self.process = killing.start(_main, job.arguments(), at, log=log)

    def wait(self) -> None:
        """Wait until the process is the command's: before, a signal meets what starts it."""
        while self.process.is_alive() and not (self.log.exists() and self.log.stat().st_size):
            time.sleep(0.001)

    def send(self, number: int) -> bool:
        """Send a signal; whether it came before the end."""
        alive = self.process.is_alive()
        if alive:
            os.kill(self.process.pid, number)
        return alive

    def ended(self) -> Ended:
        """Wait for the end."""
        code = killing.ended(self.process)
        return Ended(
            code, self.log.read_text(errors="replace").removeprefix(f"{STARTS}\n") if self.log.exists() else ""
        )


def call(job: Job, log: Path | None = None) -> Ended:
    """Do a job."""
    return Command(job, log or job.out.with_name(f"{job.out.name}.log")).ended()


def cut_short(job: Job, parts: int) -> bool:
    """Begin a job and kill it once it has kept some parts; whether it was not yet done."""
    for _ in range(20):
        begun = Command(job, job.out.with_name(f"{job.out.name}.log"))
        while begun.process.is_alive() and job.begun() < parts:
            time.sleep(0.001)
        begun.send(signal.SIGKILL)
        begun.ended()
        if not job.finished and job.begun():
            return True
        if job.finished:
            return False
    return False


def _main(arguments: list[str], at: float) -> None:
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from interference.cli import main as interference
    from mixlora.cli import main as mixlora

    sys.argv = arguments
    time.sleep(max(0.0, at - time.time()))
    print(STARTS, file=sys.stderr, flush=True)
    {"interference": interference, "mixlora": mixlora}[arguments[0]]()
