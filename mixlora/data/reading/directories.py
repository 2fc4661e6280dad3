"""Folders of data to records: those that `save_to_disk` of `datasets` wrote, and those of data files as hubs have them.

Not here: single files (`formats`), data sets that are still on a hub (`hub`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixlora.common.errors import DataError
from mixlora.common.files import exists, read_json
from mixlora.data.reading.formats import ENDINGS, Problems, has_ending, numbered, read_file
from mixlora.data.reading.tables import batch_rows
from mixlora.data.reading.unpacking import Allowance
from mixlora.data.reading.values import Record

_AT_ONCE = 1000
"""Rows of a dataset that are converted together."""
_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
"""In a dataset directory: the list of data files, the description of the columns, the list of splits."""


def read_folder(folder: Path, split: str | None, allowance: Allowance, problems: Problems) -> Iterator[Record]:
    """The records of a folder; with splits of one of them.

    Args:
        folder: written by `save_to_disk`, or of data files whose names or folders say of which split they are.
        split: which split; None where there is only one.
        allowance: how many bytes may be read.
        problems: collects what is no record; None to raise the first.

    Raises:
        DataError: it is no such folder, has no or several such splits, or leads out of itself.
    """
    if exists(folder / _STATE) or exists(folder / _SPLITS):
        return _saved_records(folder, split, allowance, problems)
    return _records_of_files(folder, split, allowance, problems)


def records_of_dataset(
    loaded: Any, name: str, shown: str, split: str | None, allowance: Allowance, problems: Problems
) -> Iterator[Record]:
    """The stored records of a dataset or of one of its splits: nothing is decoded, an image is {"bytes", "path"}.

    Args:
        loaded: a Dataset or a DatasetDict.
        name: what places of records begin with.
        shown: what other messages call it.
        split: which split.
        allowance: how many bytes may be read.
        problems: collects what is not a record.

    Raises:
        DataError: there are no or several such splits, or the rows cannot be read.
    """
    import datasets

    if isinstance(loaded, datasets.DatasetDict):
        chosen = chosen_split(list(loaded), split, shown)
        name, loaded = f"{name}/{chosen}", loaded[chosen]
    elif split is not None:
        raise DataError(f"{shown} has no splits; leave out `split: {split}`.")
    allowance.expect(len(loaded), name)
    return numbered(_stored_rows(loaded, name, shown, allowance), name, allowance, problems)


def chosen_split(splits: list[str], split: str | None, shown: str) -> str:
    """The split that is asked for, or the only one.

    Raises:
        DataError: there is none of that name, or there are several.
    """
    chosen = split or next(iter(splits))
    if chosen not in splits or (split is None and len(splits) > 1):
        other = "" if split is None else f", not {split}"
        raise DataError(f"{shown} has the splits {', '.join(splits)}; choose one with `split`{other}.")
    return chosen


def _saved_records(folder: Path, split: str | None, allowance: Allowance, problems: Problems) -> Iterator[Record]:
    import datasets

    _refuse_leading_out(folder)
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets raises errors of every kind on broken input
        remedy = "give such a directory, or a .jsonl, .json or parquet file"
        raise DataError(f"datasets' save_to_disk did not write {folder}; {remedy}.") from error
    return records_of_dataset(loaded, folder.name, str(folder), split, allowance, problems)


def _stored_rows(loaded: Any, name: str, shown: str, allowance: Allowance) -> Iterator[Any]:
    """The rows of a dataset without the decoding that its features ask for."""
    stored = loaded.with_format("arrow")
    batches = (_sound(stored[first : first + _AT_ONCE]) for first in range(0, len(stored), _AT_ONCE))
    try:
        yield from batch_rows(batches, name, allowance)
    except DataError:
        raise
    except Exception as error:  # pyarrow raises errors of every kind on broken input
        raise DataError(f"{shown}: the dataset cannot be read ({error}); save it again.") from error


def _sound(rows: Any) -> Any:
    """The rows, after a check that what their offsets say is inside of the file: pyarrow would read on behind it."""
    rows.validate(full=True)
    return rows


def _records_of_files(folder: Path, split: str | None, allowance: Allowance, problems: Problems) -> Iterator[Record]:
    """The records of a folder of data files, in the order of their names."""
    splits = _files_of_splits(folder)
    if not splits:
        raise DataError(
            f"{folder} has no data: no file ends in {', '.join(ENDINGS)}, and datasets' "
            "save_to_disk did not write it; give another."
        )
    files = splits[chosen_split(list(splits), split, str(folder))]
    root = folder.resolve()  # below which the files are named
    name = root.name if folder.name in ("", "..") else folder.name
    if len(parents := list(dict.fromkeys(file.parent for file in files))) > 1:
        which = ", ".join(str(parent.relative_to(root)) for parent in parents)
        raise DataError(f"{folder} has data in several folders, {which}; name one of them.")
    position = 0
    for file in files:
        place = f"{name}/{file.relative_to(root)}"
        for record in read_file(file, place, None, allowance, problems):
            yield record.at(position)
            position += 1


def _files_of_splits(folder: Path) -> dict[str, list[Path]]:
    """The data files of each split, by the rules of `datasets`: names and folders say which; else it is train.

    Raises:
        DataError: one of them is not a regular file in the folder.
    """
    from datasets.data_files import get_data_patterns, resolve_pattern

    found: dict[str, list[Path]] = {}
    root = folder.resolve()
    try:
        for split, patterns in get_data_patterns(str(root)).items():
            names = {name for pattern in patterns for name in _resolved(resolve_pattern, pattern, root)}
            if files := sorted(Path(name) for name in names if has_ending(Path(name).name)):
                found[str(split)] = files
    except OSError:  # datasets' own error says that there is no data
        return {}
    for file in (file for files in found.values() for file in files):
        if not _is_file_in(file, root):
            raise DataError(
                f"{folder} lists {str(file)!r:.200}, which is not a file in it; replace the link by a copy."
            )
    return found


def _resolved(resolve_pattern: Any, pattern: str, folder: Path) -> list[str]:
    try:
        return list(resolve_pattern(pattern, str(folder)))
    except FileNotFoundError:  # nothing of this name
        return []


def _refuse_leading_out(folder: Path) -> None:
    """Check that a dataset directory, whose own files name what is read, reads only regular files within itself."""
    real = folder.resolve()
    for part in (folder, *_splits(folder)):
        for path in _files_of(part):
            if not _is_file_in(path, real):
                raise DataError(f"{part} reads {str(path)!r:.200}, which is not a file in {folder}; save it again.")


def _splits(folder: Path) -> list[Path]:
    """The folders of a dataset directory's splits, all directly in it."""
    if not exists(file := folder / _SPLITS):
        return []
    try:
        names = list(read_json(file)["splits"])
        strange = [name for name in names if name in ("", "..") or Path(name).name != name or ":" in name]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{file} does not name the splits of a dataset ({error}); save it again.") from error
    if strange:
        raise DataError(f"{file} names {strange[0]!r:.200}, which is not a folder in {folder}; save it again.")
    return [folder / name for name in names]


def _files_of(part: Path) -> list[Path]:
    """The files that are read of a split, or of a dataset directory without splits; none if it is neither."""
    state, info = part / _STATE, part / _INFO
    if not exists(state):
        return []
    try:
        read_json(info)
        return [state, info, *(part / entry["filename"] for entry in read_json(state)["_data_files"])]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{state} does not name the files of a dataset ({error}); save it again.") from error


def _is_file_in(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder) and path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, a loop of links
        return False
