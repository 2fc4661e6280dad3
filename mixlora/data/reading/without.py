"""Examples that a task leaves out, named by their ids in a file.

Not here: records that cannot be used (`problems`), and which records belong to a task (`tasks`).
"""

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
