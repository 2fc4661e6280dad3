"""Progress: how long work says where it stands."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many units are done and how many there are (0 if that is not known)."""


def silent(stage: str, done: int, total: int) -> None:
    """A Progress that says nothing."""
