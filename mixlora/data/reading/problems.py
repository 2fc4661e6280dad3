"""What is wrong with data, collected while reading goes on, and what of it is skipped. `checking` reports it."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mixlora.common.errors import DataError

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\b\d+\b")


@dataclass
class Noted:
    """What was found in a task's data and not used.

    Attributes:
        skipped: {reason: records}, of a task with on_error: skip.
        unread: keys of records that are of no known meaning.
    """

    skipped: Counter[str] = field(default_factory=Counter)
    unread: set[str] = field(default_factory=set)

    def skip(self, problems: Sequence[DataError]) -> None:
        """Count problems by their reason: what they say, without places, names and numbers."""
        for problem in problems:
            _, _, reason = str(problem).partition(": ")
            self.skipped[_QUOTED.sub("…", reason.partition(";")[0])[:200]] += 1

    def sentences(self, task: str) -> Iterator[str]:
        """What a reader should know of a task's data."""
        if self.skipped:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.skipped.most_common(5))
            yield f"task {task!r}: {self.skipped.total()} records were skipped ({reasons})"
        if self.unread:
            yield f"task {task!r}: these keys of its records are not read: {', '.join(sorted(self.unread))}"

    def json(self) -> dict[str, Any]:
        """What a run records."""
        return {"skipped": dict(self.skipped), "unread_keys": sorted(self.unread)}


@contextmanager
def collecting(problems: list[DataError] | None) -> Iterator[None]:
    """What runs within it ends at a DataError, which is appended to `problems`; without that list it is raised."""
    try:
        yield
    except DataError as error:
        if problems is None:
            raise
        problems.append(DataError(str(error)))  # a new one: the traceback would keep records and pixels alive
