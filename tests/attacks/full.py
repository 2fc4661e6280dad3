"""Disks of many sizes, from a page to more than is needed: the whole run or one sentence, and again once there is room.

The disk is a tmpfs; where none can be mounted, a bound on the size of every file stands for it.
"""

import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.attacks.commands import Command, call
from tests.attacks.counts import Counts
from tests.attacks.places import Job, make
from tests.support.killing import files

COUNT = 75
"""Sizes."""
_PAGE = resource.getpagesize()
_ROOM = 2**26


def attack(folder: Path, generator: random.Random, count: int) -> Counts:
    """Compute on a disk of every size, and again with room."""
    del generator  # nothing is drawn
    found, values = Counts(), make(folder / "inputs", "mixture")["compute"]
    whole = Job("compute", values, folder / "whole" / "out")
    assert call(whole).code == 0
    most = 1.25 * _peak(Job("compute", values, folder / "disk" / "out")) // _PAGE
    for number in range(count):
        pages = 1 + round(number * most / max(1, count - 1))
        with _disk(folder / "disk", pages * _PAGE) as grow:
            _try(Job("compute", values, folder / "disk" / "out"), whole, grow, f"{pages} pages", found)
    return found


def _peak(job: Job) -> int:
    """The most bytes that a job has on its disk, as far as is seen from outside."""
    most = 0
    with _disk(job.out.parent, _ROOM):
        begun = Command(_beside(job), job.out.parent.with_name("log"))
        while begun.process.is_alive():
            found = os.statvfs(job.out.parent)
            held = (found.f_blocks - found.f_bfree) * found.f_frsize
            most = max(most, held if held < _ROOM else 0)
            time.sleep(0.002)
        assert begun.ended().code == 0
    return most


def _try(job: Job, whole: Job, grow: Callable[[], object], place: str, found: Counts) -> None:
    log, mine = job.out.parent.with_name("log"), job.out.parent / "mine.txt"
    with suppress(OSError):
        mine.write_text("mine")
    before = files(job.out.parent)
    found.add("tried")
    first = call(_beside(job), log)
    if first.code == 0:
        found.add("expected")
    elif first.code == 1 and "make room there" in first.sentence and not job.finished:
        found.add("refused")
    else:
        found.add("tracebacks", f"{place}: {first.short()}")
    grow()
    again = call(_beside(job), log) if first.code else first
    if again.code or not job.finished:
        found.add("lost", f"{place}, with room: {again.short()}")
    elif job.result() != whole.result():
        found.add("wrong", place)
    kept = files(job.out.parent)
    if any(kept.get(name) != data for name, data in before.items()) or list(job.out.parent.glob("*.partial")):
        found.add("lost", f"{place}: {sorted(kept)}")


class _Beside(Job):
    """A job whose configuration is written outside of the disk."""

    def arguments(self) -> list[str]:
        given = self.elsewhere(self.out.parent.with_name("beside") / "out").arguments()
        given[given.index("--out") + 1] = str(self.out)
        return given


def _beside(job: Job) -> Job:
    return _Beside(job.command, job.values, job.out)


@contextmanager
def _disk(place: Path, size: int) -> Iterator[Callable[[], object]]:
    """A disk of a size at a place; what is given makes room on it."""
    place.mkdir()
    try:
        if _mounted("-t", "tmpfs", "-o", f"size={size}", "tmpfs", place):
            try:
                yield lambda: bool(_mounted("-o", f"remount,size={_ROOM}", place))
            finally:
                subprocess.run(["umount", place], check=True)
        else:
            yield from _bounded(size)
    finally:
        subprocess.run(["rm", "-r", place], check=True)


def _bounded(size: int) -> Iterator[Callable[[], object]]:
    """The bound on the size of files, which processes inherit; what is given lifts it."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def _mounted(*arguments: str | Path) -> bool:
    with suppress(OSError):
        return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
    return False
