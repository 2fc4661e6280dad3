"""What is wrong with data, collecting while reading goes on. What is told of it in the end is in `checking`."""

from collections.abc import Iterator
from contextlib import contextmanager

from mixlora.common.errors import DataError


@contextmanager
def collecting(problems: list[DataError] | None) -> Iterator[None]:
    """What runs within it ends at a DataError, which is appended to `problems`; without that list it is raised."""
    try:
        yield
    except DataError as error:
        if problems is None:
            raise
        problems.append(DataError(str(error)))  # a new one: the traceback would keep records and pixels alive
