"""Signals at random moments (TERM, INT, KILL, HUP): the same command ends with the result of one left alone."""

import random
import signal
import time
from pathlib import Path

from tests.attacks.commands import Command, Ended, call
from tests.attacks.counts import Counts
from tests.attacks.places import COMMANDS, Job, make

COUNT = 240
"""Signals that come before the end, in all."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP)
IN_A_ROW = 5
"""Signals before a job is left alone."""


def attack(folder: Path, generator: random.Random, count: int, commands: tuple[str, ...] = tuple(COMMANDS)) -> Counts:
    """Interrupt every command."""
    found, values = Counts(), make(folder / "inputs", "mixture")
    for command in commands:
        whole = Job(command, values[command], folder / command / "whole" / "out")
        assert call(whole).code == 0
        began = time.monotonic()
        assert call(whole.elsewhere(folder / command / "again" / "out")).code == 0
        seconds, sent, number = time.monotonic() - began, 0, 0
        while sent < count / len(commands):
            number += 1
            job = whole.elsewhere(folder / command / str(number) / "out")
            came = _interrupted(job, generator, seconds, found)
            sent, seconds = sent + came, seconds * (0.8 if came == 0 else 1.1)  # others may use the machine
            _judge(job, whole, found)
    return found


def _interrupted(job: Job, generator: random.Random, seconds: float, found: Counts) -> int:
    """Interrupt a job a few times; how many signals it was sent."""
    mine = job.out.parent / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    sent = 0
    while sent < IN_A_ROW and not job.finished:
        begun, number = Command(job, job.out.parent / "log"), generator.choice(SIGNALS)
        begun.wait()
        time.sleep(generator.uniform(0, seconds))
        if not begun.send(number):
            begun.ended()
            break
        sent += 1
        _told(begun.ended(), number, f"{job.command} after {number.name}", found)
    return sent


def _told(ended: Ended, number: int, place: str, found: Counts) -> None:
    """Count how an interrupted process ended."""
    found.add("tried")
    stopped = ended.code in (-number, 128 + number) or ended.sentence
    if ended.traceback or not (ended.code == 0 or stopped):
        found.add("tracebacks", f"{place}: {ended.short()}")
    else:
        found.add("refused" if ended.sentence else "expected")


def _judge(job: Job, whole: Job, found: Counts) -> None:
    """Leave the job alone, and compare."""
    found.add("tried")
    ended = call(job)
    done = ended.code == 0 or "already holds a run" in ended.sentence
    if not done:
        found.add("tracebacks" if ended.traceback or not ended.sentence else "lost", f"{job.command}: {ended.short()}")
    elif job.result() != whole.result():
        found.add("wrong", f"{job.command}: {differing(job, whole)}")
    elif (job.out.parent / "mine.txt").read_text() != "mine" or list(job.out.parent.glob("*.partial")):
        found.add("lost", f"{job.command}: {sorted(path.name for path in job.out.parent.iterdir())}")
    else:
        found.add("expected")


def differing(job: Job, whole: Job) -> list[str]:
    """Names of the files that differ."""
    one, other = job.result(), whole.result()
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
