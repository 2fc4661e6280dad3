"""Where a task's records come from: a file, several by a pattern, a folder, or a data set of the hub.

Not here: what is in a file (`formats`), in a folder (`directories`), and how a hub is asked (`hub`).
"""

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from mixlora.common.errors import DataError
from mixlora.common.files import exists, is_folder
from mixlora.data.reading import hub
from mixlora.data.reading.directories import read_folder
from mixlora.data.reading.formats import Problems, read_file
from mixlora.data.reading.unpacking import Allowance
from mixlora.data.reading.values import Record

_MAGIC = re.compile(r"[*?\[]")
"""What makes a path a pattern."""


def read_records(file: Path, split: str | None, problems: Problems) -> Iterator[Record]:
    """The records of a file, of all files of a pattern, of a folder, or of a data set of the hub, in their order.

    With a list `problems`, a line that is not JSON or an entry that is not a record adds an error to it and is skipped.

    Raises:
        DataError: the file cannot be read, or (without `problems`) something in it is not a record.
    """
    allowance = Allowance()
    if is_folder(file):
        yield from read_folder(file, split, allowance, problems)
    elif exists(file):
        yield from read_file(file, file.name, split, allowance, problems)
    elif hub.is_id(str(file)):
        yield from hub.read_dataset(str(file), split, allowance, problems)
    else:
        yield from _shards(file, split, allowance, problems)


def is_there(file: Path) -> bool:
    """Whether there is something at a path, or it is the id of a data set, or a pattern that a file has."""
    return exists(file) or hub.is_id(str(file)) or bool(_matching(file))


def folder_of(file: Path) -> Path:
    """The folder that names of pictures in a file are relative to."""
    if is_folder(file):
        return file
    fixed = list(takewhile(lambda part: not _MAGIC.search(part), file.parts))
    return Path(*fixed) if len(fixed) < len(file.parts) and not exists(file) else file.parent


def _shards(pattern: Path, split: str | None, allowance: Allowance, problems: Problems) -> Iterator[Record]:
    """The records of all files of a pattern, in the order of their names, numbered through."""
    if split is not None:
        raise DataError(f"{pattern} names files, which have no splits; leave out `split: {split}`.")
    above, position = folder_of(pattern), 0
    for file in _matching(pattern):
        for record in read_file(file, str(file.relative_to(above)), None, allowance, problems):
            yield record.at(position)
            position += 1


def _matching(pattern: Path) -> list[Path]:
    """The files that a pattern has, in order; none where it is not a pattern."""
    above = folder_of(pattern)
    if exists(pattern) or not _MAGIC.search(str(pattern)) or not is_folder(above):
        return []
    try:
        return sorted(path for path in above.glob(str(pattern.relative_to(above))) if not path.is_dir())
    except (OSError, ValueError, NotImplementedError):  # no pattern, or a folder that cannot be listed
        return []
