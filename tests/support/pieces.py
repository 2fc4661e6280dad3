"""Pieces of a job that need no model: losses that name their piece and the process that read them."""

import os
import time

import torch

from interference.branching.finished import Finished
from interference.branching.workers import Piece
from interference.measurement.spool import DiskSpool

PIECES = [Piece(number, (number,), ("known", number), 2) for number in range(4)]
LONGEST = 60
"""Seconds that a test waits for a worker."""


class Numbers:
    """What reads them, or raises an error."""

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


class Stuck(Numbers):
    """As Numbers, but a process finishes one piece and never the next."""

    def opened(self, stepped):
        whole, known = super().opened(stepped), []

        def losses(number):
            if known:
                time.sleep(1000)
            known.append(number)
            return whole(number)

        return losses


class Patient(Numbers):
    """As Numbers, in this process, which begins when others have finished some pieces, and does something before."""

    def __init__(self, folder, count=3, then=lambda: None):
        super().__init__()
        self.folder = folder
        self.count = count
        self.then = then

    def opened(self, stepped):
        whole, step = super().opened(stepped), stepped.__self__.step

        def losses(number):
            wait(lambda: len(parts(self.folder)) >= self.count, lambda: step(0))
            self.then()
            return whole(number)

        return losses


class UnlikeError(Exception):
    """An error that another process cannot read."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def finished(folder):
    return Finished(DiskSpool(folder), "job")


def parts(folder):
    """The finished pieces."""
    return list(folder.glob("part-*.safetensors"))


def wait(done, meanwhile=lambda: None):
    """Wait until it is done."""
    ends = time.monotonic() + LONGEST
    while not done():
        assert time.monotonic() < ends, "no worker has done it"
        meanwhile()
        time.sleep(0.02)
