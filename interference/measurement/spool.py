"""Spools: where gradients wait, part by part, in memory or on disk, until all are measured.

Not here: which directory outlives an interruption, and what it holds besides (`resume`).
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interference.errors import RunError, WriteError
from mixlora.checkpoints.digests import of_tensor
from mixlora.common.errors import is_full, unwritable
from mixlora.common.sealed import SEAL, seal, sealed
from mixlora.common.writing import whole_file

Rows = Mapping[str, Tensor]

_SUMS = "sums"
"""The key of a part's metadata that holds a digest of the rows of each of its blocks."""
_DAMAGED = (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError)
"""Errors of reading a file whose bytes may be anything."""


class Spool(Protocol):
    """What is read of a place where gradients wait, in parts of some units each."""

    def read(self, part: int, block: str) -> Tensor:
        """The rows [units of the part, size] of one block."""


class MemorySpool:
    """Gradients in memory up to a limit, and in temporary files beyond it; use as a context manager.

    Args:
        limit: bytes kept in memory.
        folder: directory of the temporary files, created if it is missing; None for the system's.
    """

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self._left = limit
        self._folder = folder
        self._parts: dict[int, dict[str, Tensor]] = {}
        self._stack = ExitStack()
        self._disk: DiskSpool | None = None

    def __enter__(self) -> "MemorySpool":
        """Open the spool.

        Raises:
            RunError: if nothing can be written to the folder.
        """
        if self._folder is not None:  # raise now, not when the limit is reached
            self._disk = self._temporary()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def write(self, part: int, rows: Rows) -> None:
        """Keep the rows in memory, or write them to a file once the limit is reached.

        Raises:
            WriteError: if a file is needed and cannot be written.
        """
        self._left -= sum(tensor.nbytes for tensor in rows.values())
        if self._left >= 0:
            self._parts[part] = dict(rows)
            return
        if self._disk is None:
            self._disk = self._temporary()
        self._disk.write(part, rows)

    def read(self, part: int, block: str) -> Tensor:
        """The rows that were written."""
        if part in self._parts or self._disk is None:
            return self._parts[part][block]
        return self._disk.read(part, block)

    def _temporary(self) -> "DiskSpool":
        return DiskSpool(Path(self._stack.enter_context(temporary(self._folder))))


def temporary(folder: Path | None) -> TemporaryDirectory[str]:
    """A directory in the folder (None for the system's) that is deleted with its context.

    Raises:
        RunError: if it cannot be created.
    """
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return TemporaryDirectory(prefix="interference-", dir=folder)
    except OSError as error:
        raise unwritable(f"nothing can be written to {folder or gettempdir()}", error, option="spool_dir") from None


class DiskSpool:
    """Gradients in one safetensors file a part; a file is whole or absent."""

    def __init__(self, folder: Path) -> None:
        """Create the folder, if it is missing.

        Raises:
            RunError: if it cannot be created.
        """
        self.folder = folder
        self._sums: dict[int, dict[str, str]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            failed = f"{folder} cannot be made"
            if is_full(error.errno):
                raise unwritable(failed, error) from None
            remedy = "choose a --spool-dir that every process can write to"
            raise RunError(f"{failed}: {error.strerror or error}; {remedy}") from None

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{part:06d}.safetensors"

    def write(self, part: int, rows: Rows, metadata: dict[str, str] | None = None) -> None:
        """Write the rows under a temporary name, sync them if a later process may need them, then rename.

        Args:
            part: number of the part.
            rows: {name: rows}.
            metadata: what a later process checks before it takes the part; None if there is no later process. A digest
                of every block's rows is kept with it, and a seal of the whole.

        Raises:
            WriteError: if they cannot be written; earlier parts stay.
        """
        held = {name: tensor.contiguous() for name, tensor in rows.items()}
        self._sums[part] = {name: of_tensor(tensor) for name, tensor in held.items()}
        kept = sealed({**(metadata or {}), _SUMS: json.dumps(self._sums[part])})
        try:
            with whole_file(self.path(part), durable=metadata is not None) as new:
                save_file(held, new, kept)
        except (OSError, SafetensorError) as error:
            failed = f"what is measured cannot be written to {self.folder}: {error}"
            raise WriteError(f"{failed}; make room there, and start again") from None

    def read(self, part: int, block: str) -> Tensor:
        """Read one block of a part; the others stay on disk.

        Raises:
            RunError: if the file is gone or damaged.
        """
        with self._opened(part) as file:
            return self._checked(file, part, block)

    def rows(self, part: int) -> dict[str, Tensor]:
        """Read all blocks of a part.

        Raises:
            RunError: if the file is gone or damaged.
        """
        with self._opened(part) as file:
            return {name: self._checked(file, part, name) for name in file.keys()}  # noqa: SIM118  # it is not a mapping

    def metadata(self, part: int) -> dict[str, str] | None:
        """The metadata that was written with a part; None if the part is missing or damaged."""
        try:
            with safe_open(self.path(part), framework="pt") as file:
                found, sums = _unsealed(file)
                held = {name: of_tensor(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  # no mapping
        except _DAMAGED:
            return None
        return found if held == sums else None

    def _checked(self, file: safe_open, part: int, block: str) -> Tensor:
        """The rows of a block, as they were written."""
        if part not in self._sums:
            self._sums[part] = _unsealed(file)[1]
        found: Tensor = file.get_tensor(block)
        if of_tensor(found) != self._sums[part][block]:
            raise ValueError(f"the rows of {block} are not what was measured")
        return found

    @contextmanager
    def _opened(self, part: int) -> Iterator[safe_open]:
        path = self.path(part)
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except _DAMAGED as error:
            raise RunError(f"{path} is gone or damaged ({error}); the same command measures it again") from None


def _unsealed(file: safe_open) -> tuple[dict[str, str], dict[str, str]]:
    """The metadata of a part, as they were written, and the digests of its rows."""
    found = dict(file.metadata())
    if found.pop(SEAL) != seal(found):
        raise ValueError("what it says of itself is not what was written")
    return found, json.loads(found.pop(_SUMS))
