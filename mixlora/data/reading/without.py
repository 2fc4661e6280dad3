"""Examples that a task leaves out: named by their ids in a file, or held out by a hash of their ids.

Not here: records that cannot be used (`problems`), and which records belong to a task (`tasks`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixlora.common.errors import DataError
from mixlora.common.files import LARGEST_JSON, read_text
from mixlora.data.examples import Example


def without(found: Mapping[str, Sequence[Example]], file: Path, name: str, whole: bool) -> dict[str, list[Example]]:
    """The examples of a task, or of several from one source, without those that a file names.

    Args:
        found: {task: its examples}.
        file: an id a line; blank lines do not count.
        name: the configuration's name of the task.
        whole: whether every record was read, so that each id must be one's.

    Raises:
        DataError: the file cannot be read, it names an id that no record has, or it leaves a task no example.
    """
    try:
        lines = read_text(file, LARGEST_JSON).splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise DataError(
            f"Task {name}: {file}, which `without` names, cannot be read: {why}; give a file of ids."
        ) from None
    left = dict.fromkeys(line.strip() for line in lines if line.strip())
    known = {example.id for examples in found.values() for example in examples}
    if unknown := [each for each in left if each not in known] if whole else []:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise DataError(
            f"Task {name}: {file} names {unknown[0]!r:.80}{more}, which is no id of its records; remove it, or write "
            "ids as `interference preview` shows them."
        )
    kept = {task: [one for one in examples if one.id not in left] for task, examples in found.items()}
    if empty := [task for task, examples in kept.items() if found[task] and not examples]:
        raise DataError(f"Task {empty[0]}: {file} names every record, so none is left; name fewer.")
    return kept


def part_of(found: Mapping[str, Sequence[Example]], share: float, heldout: bool) -> dict[str, list[Example]]:
    """The examples of each task that are held out, or the others.

    Which are depends on each example's id alone. Files whose records have ids may grow and be put in another order.

    Args:
        found: {task: its examples}.
        share: about which share of the examples is held out.
        heldout: whether to take those.

    Raises:
        DataError: it leaves a task no example.
    """
    kept = {task: [one for one in own if (_place(one.id) < share) is heldout] for task, own in found.items()}
    if empty := [task for task, own in kept.items() if found[task] and not own]:
        part, count = "held out" if heldout else "left to train on", len(found[empty[0]])
        raise DataError(
            f"Task {empty[0]}: with holdout: {share:g} none of its {count} examples is {part}; choose another share."
        )
    return kept


def _place(name: str) -> float:
    """A number from 0 to below 1, uniform over ids."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
