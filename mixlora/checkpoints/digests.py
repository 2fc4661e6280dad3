"""Digests of bytes, files and tensors.

Not here: what a model or a checkpoint is digested by (`fingerprints`).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

_PIECE = 2**24  # bytes of a file that are read at once


def digest(pieces: Iterable[Any]) -> str:
    """A digest of bytes, 32 hexadecimal digits: fast, and no protection against forgery."""
    found = xxhash.xxh3_128()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def of_file(path: Path) -> str:
    """A digest of a file's content.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return digest(iter(lambda: stream.read(_PIECE), b""))


def of_tensor(value: Tensor) -> str:
    """A digest of a tensor: its shape, its dtype and its values to the bit."""
    return of_tensors([("", value)])


def of_tensors(tensors: Iterable[tuple[str, Any]]) -> str:
    """A digest of tensors and of other values, by their names."""
    return digest(_bytes(tensors))


def _bytes(tensors: Iterable[tuple[str, Any]]) -> Iterator[Any]:
    for name, value in tensors:
        if not isinstance(value, Tensor):
            yield f"{name} {value!r}".encode()
            continue
        yield f"{name} {tuple(value.shape)} {value.dtype}".encode()
        flat = value.detach().contiguous().reshape(-1)
        yield flat.view(torch.uint8).cpu().numpy() if flat.numel() else b""
