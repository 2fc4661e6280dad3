"""JSON-lines files that grow while a job works, and stay usable if it is killed. Each line carries a checksum."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixlora.common.errors import CheckpointError, TrainingError
from mixlora.common.files import LARGEST_DATA, exists, parse_json, read_bytes
from mixlora.common.sealed import SEAL, intact, sealed
from mixlora.common.writing import whole_file, write_remedy


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records, one a line, to a file.

    Raises:
        TrainingError: they cannot be written; earlier lines stay, and `cut` removes a partial one.
    """
    text = _text(records)
    with written(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def whole_lines(path: Path, unsealed: bool = False) -> list[dict[str, Any]]:
    """The complete records of a growing file, without a partial last one; none if there is no file.

    Args:
        path: the file.
        unsealed: whether lines without checksums are read, as earlier versions wrote them.

    Raises:
        CheckpointError: a line is not a record, or is damaged, or the file cannot be read.
    """
    if not exists(path):
        return []
    try:
        data = read_bytes(path, LARGEST_DATA)
        found = [parse_json(line.decode("utf-8")) for line in data[: data.rfind(b"\n") + 1].split(b"\n") if line]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError:
        found = [None]
    if not all(isinstance(record, dict) for record in found):
        raise CheckpointError(f"{path} has a line that is not a JSON object; delete the file")
    damaged = [number for number, record in enumerate(found, 1) if not intact(record)]
    if damaged and not (unsealed and all(SEAL not in record for record in found)):
        raise CheckpointError(f"{path} is damaged: the checksum of line {damaged[0]} is another; delete the file")
    return [{key: value for key, value in record.items() if key != SEAL} for record in found]


def cut(path: Path) -> None:
    """Remove a last line without newline, which a killed process leaves. No other process may write the file.

    Raises:
        CheckpointError: the file cannot be read or changed.
    """
    if not exists(path):
        return
    try:
        whole = read_bytes(path, LARGEST_DATA)
        if (kept := whole.rfind(b"\n") + 1) < len(whole):
            os.truncate(path, kept)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read, or cut after its last line: {error.strerror or error}") from None


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Explain errors of writing files of an evaluation's directory in the block.

    Raises:
        TrainingError: a file cannot be written.
    """
    try:
        yield
    except OSError as error:
        remedy = write_remedy(error.errno, "the same command continues with those that are kept")
        raise TrainingError(f"answers cannot be written to {path}: {error.strerror or error}; {remedy}") from None


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records, one a line; if that fails, the old file stays."""
    with whole_file(path) as new:
        new.write_text(_text(records), encoding="utf-8")


def _text(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(sealed(record), ensure_ascii=False) + "\n" for record in records)
