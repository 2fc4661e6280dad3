"""Groups of a trainer's rows: those that share a picture, or a value of a column, or have one label of the caller's.

Not here: labels of collated batches (`labels`), and groups of a configuration's examples (`sample`).
"""

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from interference.errors import ScopeError
from interference.measurement.labels import Labels
from interference.measurement.rows import Row
from mixlora.common.errors import type_of
from mixlora.data.groups import IMAGE, NONE, connected, label_of
from mixlora.data.images import content

Groups = str | Labels
"""What rows share: "image", a column, or "none"; or {task: a label for every row of it, in the dataset's order}."""
_PICTURES = ("image", "images", "pixel_values")
"""Columns of a row that hold its pictures."""


def groups_of(rows: Sequence[Row], groups: Groups) -> list[int]:
    """[rows]: a number, from 0 by first appearance, the same for rows of one group, also through others.

    Args:
        rows: those that are measured; of labels, each with its own (`rows.drawn`).
        groups: as `Groups`.

    Raises:
        ScopeError: if a row lacks the column, a value or picture cannot be told from others, or a task's rows are all
            of one group.
    """
    if not isinstance(groups, str):
        found = connected([("label", row.label)] for row in rows)
    else:
        found = connected(_shared(row, groups) for row in rows)
    for task in dict.fromkeys(row.task for row in rows):
        own = [group for row, group in zip(rows, found, strict=True) if row.task == task]
        if len(set(own)) < 2:
            what = "pictures" if groups == IMAGE else f"values of {groups!r}" if isinstance(groups, str) else "a label"
            raise ScopeError(
                f"the {len(own)} rows of task {task!r} that were drawn form 1 group, because they share {what}, but "
                "at least 2 groups are needed: draw more samples, or give groups='none' if they are independent"
            )
    return found


def _shared(row: Row, kind: str) -> list[Hashable]:
    """What a row shares with others of its group."""
    if kind == NONE:
        return []
    record = row.record()
    if kind == IMAGE:
        return [hashlib.sha256(picture).hexdigest() for picture in _pictures(record, row)]
    try:
        label = label_of(record.get(kind))
    except TypeError as error:
        raise ScopeError(
            f"{row.source}: {kind}, which groups names, is {error}; use a column of text or numbers"
        ) from None
    if label is None:
        columns = ", ".join(map(str, record)) or "no columns"
        raise ScopeError(
            f"{row.source}: no value of {kind!r}, which groups names; it has {columns}; name a column that every row "
            "has, or give groups='image' or 'none'"
        )
    return [(kind, label)]


def _pictures(record: Mapping[str, Any], row: Row) -> Iterator[bytes]:
    """The content of a row's pictures: of its columns, and of those within its messages."""
    for name in _PICTURES:
        yield from _contents(record.get(name), row)
    for name in ("messages", "prompt", "completion"):
        turns = record.get(name)
        for turn in turns if isinstance(turns, list) else []:
            parts = turn.get("content") if isinstance(turn, Mapping) else None
            for part in parts if isinstance(parts, list) else []:
                if isinstance(part, Mapping):
                    yield from _contents(part.get("image"), row)


def _contents(value: Any, row: Row) -> Iterator[bytes]:
    """The content of a picture, or of each of several; nothing of none."""
    if value is None:
        return
    if isinstance(value, Image.Image):
        yield content(value)
    elif isinstance(value, Mapping) and (value.get("bytes") or value.get("path")):
        yield bytes(value["bytes"]) if value.get("bytes") else _file(value["path"])
    elif isinstance(value, str | Path):
        yield _file(value)
    elif isinstance(value, bytes):
        yield value
    elif isinstance(value, Tensor):
        yield value.detach().cpu().float().numpy().tobytes()
    elif isinstance(value, np.ndarray) or (isinstance(value, list) and _numeric(value)):
        yield np.asarray(value, dtype=np.float32).tobytes()
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _contents(one, row)
    else:
        raise ScopeError(
            f"{row.source}: its picture is {type_of(value)}, which cannot be compared with others; name a "
            "column that says which examples share one (groups=), or give groups='none'"
        )


def _numeric(value: Any) -> bool:
    """Whether a list is of numbers, nested or not: pixels."""
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, int | float)


def _file(name: str | Path) -> bytes:
    """The bytes of a picture's file, or its name where there is no such file, as of a URL."""
    try:
        return Path(name).read_bytes()
    except (OSError, ValueError):
        return str(name).encode("utf-8", "surrogateescape")
