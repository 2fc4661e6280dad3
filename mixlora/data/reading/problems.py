"""Problems of data, collected while reading continues. `data.checking` makes one error of them."""

from collections.abc import Iterator
from contextlib import contextmanager

from mixlora.common.errors import DataError


@contextmanager
def collecting(problems: list[DataError] | None) -> Iterator[None]:
    """Append a DataError that ends the block to `problems`; without that list, raise it."""
    try:
        yield
    except DataError as error:
        if problems is None:
            raise
        problems.append(DataError(str(error)))  # a new error: a traceback would keep records and pixels in memory
