"""Progress: the callback by which long work reports how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the stage, the number of units done, and their total (0 if unknown)."""


def silent(stage: str, done: int, total: int) -> None:
    """A Progress that reports nothing."""
