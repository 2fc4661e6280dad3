"""Groups of examples that are not independent: those that share a picture, or a value of a key of their records.

Not here: reading the key of a record (`reading.records`), and what groups mean for numbers.
"""

import hashlib
from collections.abc import Hashable, Iterable

from mixlora.data.examples import Example
from mixlora.data.images import content

IMAGE = "image"
"""Examples that share a picture are in one group; those without a picture are independent."""
NONE = "none"
"""Every example is independent."""


def shared_by(example: Example, group: str) -> list[tuple[str, str]]:
    """What an example shares with others of its group, in any task: (kind, value).

    Args:
        example: its pictures are told apart by their content, not by their names.
        group: `IMAGE`, `NONE`, or the key of its record that it was read with.
    """
    if group == NONE:
        return []
    if group == IMAGE:
        return [(IMAGE, hashlib.sha256(content(image)).hexdigest()) for image in example.images]
    return [] if example.group is None else [(f"key {group}", example.group)]


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
