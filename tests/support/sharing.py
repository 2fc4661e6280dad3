"""Sharing: jobs of several processes in which a test knows who does what: a worker first, then this process."""

import contextlib

import pytest

from interference.branching.branches import Branches
from tests.support.pieces import wait


@contextlib.contextmanager
def leaving(part, then=lambda: None):
    """Inside, this process takes its first steps when a worker has finished a part, and does `then` before.

    Yields:
        What this process has trained: tasks and seeds.
    """
    own, taken = Branches.along, []

    def along(self, *arguments):
        if not taken:
            wait(part.exists, self.stepped)
            then()
        taken.append(arguments[:2])
        return own(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Branches, "along", along)
        yield taken
