"""The bytes of data files, unpacked where they are compressed, and within bounds: no file of a few bytes fills memory.

Not here: what the bytes mean (`formats`).
"""

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from mixlora.common.errors import DataError
from mixlora.common.files import LARGEST_DATA, read_bytes

PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip")
"""Endings of compressed files. What a file is, its first bytes say."""
_PIECE = 2**20
"""Bytes that are unpacked at once."""
MOST_RECORDS = 2**23
"""The most records of a task's data: each takes about a kilobyte of memory, however few bytes it has in a file."""
_USUAL, _TIMES = 2**28, 100
"""Bytes of unpacked data, and how often its packed size: what is larger than both is refused."""
_USUAL_OF_TABLES = 2**30
"""The same bytes of a table, where a text that all rows share takes no space: a system prompt of many rows is usual."""


class Bound(Protocol):
    """What bounds data: an `Allowance`, or a `TableAllowance`."""

    def take(self, count: int, name: str) -> None: ...  # noqa: D102
    def check(self, count: int, name: str) -> None: ...  # noqa: D102
    def expect(self, count: int, name: str) -> None: ...  # noqa: D102


@dataclass
class Allowance:
    """How many bytes a task's data may still have, unpacked, and how many records."""

    left: int = field(default_factory=lambda: LARGEST_DATA)
    records: int = field(default_factory=lambda: MOST_RECORDS)

    def take(self, count: int, name: str) -> None:
        """Count bytes that were read.

        Raises:
            DataError: they are more than are left.
        """
        self.check(count, name)
        self.left -= count

    def check(self, count: int, name: str) -> None:
        """Check that this many bytes are left.

        Raises:
            DataError: they are not.
        """
        if count > self.left:
            raise DataError(f"{name}: unpacked, the data has more than {LARGEST_DATA} bytes; give a part of it.")

    def count(self, name: str) -> None:
        """Count a record, or what stands in the place of one.

        Raises:
            DataError: there are more than are left.
        """
        self.expect(1, name)
        self.records -= 1

    def expect(self, count: int, name: str) -> None:
        """Check that so many records are left.

        Raises:
            DataError: they are not.
        """
        if count > self.records:
            raise DataError(f"{name}: the data has more than {MOST_RECORDS} records; give a part of it.")


@dataclass
class TableAllowance:
    """What a table may have unpacked: no more than its task, and not much more than its file.

    Args:
        task: the allowance of the task that it is of.
        packed: the bytes of its file.
    """

    task: Bound
    packed: int
    taken: int = 0

    def take(self, count: int, name: str) -> None:
        """As `Allowance.take`."""
        self.check(count, name)
        self.taken += count
        self.task.take(count, name)

    def check(self, count: int, name: str) -> None:
        """As `Allowance.check`."""
        self.task.check(count, name)
        if self.taken + count > max(_USUAL_OF_TABLES, _TIMES * self.packed):
            raise DataError(
                f"{name}: unpacked, it is more than {_TIMES} times as large; write it without compression, "
                "dictionaries and runs, if you trust it."
            )

    def expect(self, count: int, name: str) -> None:
        """As `Allowance.expect`."""
        self.task.expect(count, name)


def read_data(file: Path, allowance: Allowance) -> tuple[bytes, str]:
    """The content of a regular file, unpacked, and the ending that tells its format, as ".csv".

    Raises:
        DataError: it cannot be read or unpacked, or is larger than is allowed.
    """
    try:
        data = read_bytes(file, LARGEST_DATA)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}; give a file that can.") from error
    endings = [ending for ending in file.suffixes if ending.lower() not in PACKED]
    ending = endings[-1].lower() if endings else ""
    unpack = next((opened for start, opened in _STARTS.items() if data.startswith(start)), None)
    if unpack is None:
        allowance.take(len(data), file.name)
        return data, ending
    try:
        stream, inner = unpack(data)
        return _content(stream, allowance, file.name, max(_USUAL, _TIMES * len(data))), inner or ending
    except DataError:
        raise
    except Exception as error:  # each library raises errors of its own on broken input
        raise DataError(f"{file.name}: the compressed file cannot be unpacked ({error}); pack it again.") from error


def _content(stream: Any, allowance: Allowance, name: str, most: int) -> bytes:
    found = bytearray()
    while piece := stream.read(_PIECE):
        allowance.take(len(piece), name)
        found += piece
        if len(found) > most:
            raise DataError(f"{name}: unpacked, it is more than {_TIMES} times as large; unpack it, if you trust it.")
    return bytes(found)


def _plain(opening: Callable[[IO[bytes]], Any]) -> Callable[[bytes], tuple[Any, str]]:
    return lambda data: (opening(io.BytesIO(data)), "")


def _zstandard(data: bytes) -> tuple[Any, str]:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd"), ""


def _only_file(data: bytes) -> tuple[IO[bytes], str]:
    """The one file in a zip archive, and its ending."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    files = [one for one in archive.infolist() if not one.is_dir() and not one.filename.startswith("__MACOSX/")]
    if len(files) != 1:
        raise ValueError(f"it contains {len(files)} files, but must contain one")
    return archive.open(files[0]), PurePosixPath(files[0].filename).suffix.lower()


_STARTS: dict[bytes, Callable[[bytes], tuple[Any, str]]] = {
    b"\x1f\x8b": _plain(gzip.open),
    b"BZh": _plain(bz2.open),
    b"\xfd7zXZ\0": _plain(lzma.open),
    b"\x28\xb5\x2f\xfd": _zstandard,
    b"PK\x03\x04": _only_file,
    b"PK\x05\x06": _only_file,
}
"""How a file begins, and what opens it."""
