"""Several computes of one place at once: one ends with the run, the others in a sentence, and nothing is deleted."""

import random
import time
from pathlib import Path

from tests.attacks.commands import Command, Ended, call
from tests.attacks.counts import Counts
from tests.attacks.places import Job, make

COUNT = 8
"""Rounds."""
PROCESSES = 6
_REFUSALS = ("another process is computing", "already holds a run")


def attack(folder: Path, generator: random.Random, count: int, processes: int = PROCESSES) -> Counts:
    """Begin all processes of a round at one moment, or within the time that one takes."""
    found, values = Counts(), make(folder / "inputs", "mixture")["compute"]
    whole = Job("compute", values, folder / "whole" / "out")
    assert call(whole).code == 0
    began = time.monotonic()
    assert call(whole.elsewhere(folder / "again" / "out")).code == 0
    seconds = time.monotonic() - began
    for number in range(count):
        job = whole.elsewhere(folder / str(number) / "out")
        job.out.parent.mkdir()
        (job.out.parent / "mine.txt").write_text("mine")
        at = time.time() + 1.0
        moments = [at + generator.uniform(0, seconds * (number % 3) / 2) for _ in range(processes)]
        begun = [Command(job, job.out.parent / f"log-{k}", moment) for k, moment in enumerate(moments)]
        _judge([each.ended() for each in begun], job, whole, found)
    return found


def _judge(ends: list[Ended], job: Job, whole: Job, found: Counts) -> None:
    found.tried += len(ends)
    found.expected += sum(end.code == 0 for end in ends)
    found.refused += sum(any(words in end.sentence for words in _REFUSALS) for end in ends)
    for end in ends:
        if end.code != 0 and not any(words in end.sentence for words in _REFUSALS):
            found.add("tracebacks", end.short())
    if sum(end.code == 0 for end in ends) != 1 or not job.finished:
        found.add("lost", f"ends {[end.code for end in ends]}")
    elif job.result() != whole.result():
        found.add("wrong", "the run is another than that of one process")
    if (job.out.parent / "mine.txt").read_text() != "mine" or list(job.out.parent.glob("*.partial")):
        found.add("lost", str(sorted(path.name for path in job.out.parent.iterdir())))
