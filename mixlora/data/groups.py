"""Groups of examples that are not independent: those that share a picture, or a value of a key of their records.

What an example shares is a key, (kind, value), the same in any task.

Not here: reading the key of a record (`reading.records`), and what groups mean for numbers.
"""

import math
import re
from collections.abc import Hashable, Iterable, Iterator
from datetime import date
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

from mixlora.common.errors import DataError, reason, type_of
from mixlora.data.examples import Example
from mixlora.data.images import identity

Key = tuple[str, str]
"""What examples share: its kind, as "image" or "key document", and which one."""

IMAGE = "image"
"""Examples that share a picture are in one group; those without a picture are independent."""
NONE = "none"
"""Every example is independent."""
_WHOLE = re.compile(r"^(-?\d+)\.0$")  # a whole number as pandas writes it into a column with an empty cell


def label_of(value: Any) -> Hashable | None:
    """The label that a value names, the same wherever it comes from: 3, 3.0, "3" and a tensor of 3 are one; None if it
    is missing: None, NaN, blank text.

    Raises:
        TypeError: it is not text, a number, a date or an identifier, nor a tuple of these, so it cannot be compared
            by its content.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    if isinstance(value, tuple):
        return tuple(label_of(one) for one in value)
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, float):
        return None if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    if not isinstance(value, str | int | date | UUID | PurePath):
        raise TypeError(type_of(value))
    text = str(value)
    return None if not text.strip() else _WHOLE.sub(r"\1", text)


def shared_by(example: Example, group: str) -> list[Key]:
    """What an example shares with others of its group, in any task.

    Args:
        example: its pictures are told apart by their content, not by their names.
        group: `IMAGE`, `NONE`, or the key of its record that it was read with.

    Raises:
        DataError: a picture cannot be read.
    """
    return next(all_shared([(example, group)]))


def all_shared(asked: Iterable[tuple[Example, str]]) -> Iterator[list[Key]]:
    """What each of several examples shares, as `shared_by`; a file of pictures is read once.

    Raises:
        DataError: a picture cannot be read.
    """
    read: dict[Path, str] = {}
    for example, group in asked:
        if group == IMAGE:
            yield _pictures(example, read)
        else:
            yield [] if group == NONE or example.group is None else [(f"key {group}", example.group)]


def _pictures(example: Example, read: dict[Path, str]) -> list[Key]:
    found = []
    for image in example.images:
        known = read.get(image) if isinstance(image, Path) else None
        try:
            found.append((IMAGE, known or identity(image)))
        except OSError as error:
            raise DataError(f"{example.source}: a picture cannot be read: {reason(error)}; put it back.") from None
        if isinstance(image, Path):
            read[image] = found[-1][1]
    return found


def connected(keys: Iterable[Iterable[Hashable]]) -> list[int]:
    """A number for every item, from 0 by first appearance, the same for those that share a key, also through others.

    Example:
        >>> connected([["a"], ["b"], ["b", "c"], ["c"], []])
        [0, 1, 1, 1, 2]
    """
    parent: list[int] = []
    owner: dict[Hashable, int] = {}
    for item, own in enumerate(keys):
        parent.append(item)
        for key in own:
            first, second = sorted((_root(parent, owner.setdefault(key, item)), _root(parent, item)))
            parent[second] = first
    numbers: dict[int, int] = {}
    return [numbers.setdefault(_root(parent, item), len(numbers)) for item in range(len(parent))]


def _root(parent: list[int], item: int) -> int:
    """The item that stands for an item's group; the way to it becomes shorter."""
    while parent[item] != item:
        parent[item] = parent[parent[item]]
        item = parent[item]
    return item
