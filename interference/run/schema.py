"""Reading: what a run's directory holds, looked through as a stranger's before it is taken for a run."""

from pathlib import Path
from typing import Any

import pandas as pd

from interference.blocks import Granularity, Side
from interference.errors import RunError
from interference.run import record
from interference.run.grams import GramFile, adam, packed_size

SCHEMA, _OLDER = 2, (1,)


def meta_of(folder: Path) -> dict[str, Any]:
    """What a run's run.json tells, whatever has become of its other files; nothing where it cannot be read."""
    try:
        return read_meta(folder / "run.json")
    except RunError:
        return {}


def read_meta(path: Path) -> dict[str, Any]:
    """What `path` tells of a run; one that a configuration made also tells what `verify` reads again."""
    meta = record.read_meta(path, SCHEMA, "run", _OLDER)
    if meta.get("config") is not None:
        for key in ("unit", "token_mean", "granularity"):
            if meta.get(key) is None:
                raise RunError(f"{path} is damaged: it lacks {key!r}; compute the run again")
    if (kind := meta.get("granularity")) not in (None, *Granularity):
        raise RunError(f"{path} is damaged: its 'granularity' is {kind!r:.60}; compute the run again")
    return meta


def steps_of(blocks: pd.DataFrame) -> list[str]:
    """The names of the Gram matrices of AdamW's step, of a run that has them."""
    return [adam(name) for name in blocks["name"][blocks["side"] != Side.W]]


def check_whole(folder: Path, probes: pd.DataFrame, blocks: pd.DataFrame, grams: GramFile, steps: bool) -> None:
    """Raise a RunError that names the file in which something is missing; `steps`: the run has those of AdamW, too."""
    for frame, name, column in ((probes, "probes", "task"), (blocks, "blocks", "name")):
        if not len(frame) or frame[column].isna().any():
            raise RunError(f"{folder / f'{name}.parquet'} is damaged: a {column} is missing")
    if "content" in probes and not all(isinstance(value, str) and value for value in probes["content"]):
        raise RunError(f"{folder / 'probes.parquet'} is damaged: a content is not a digest")
    if "group" in probes and not _whole_numbers(probes["group"]):
        raise RunError(f"{folder / 'probes.parquet'} is damaged: a group is not a whole number")
    layers = blocks["layer"].dropna()
    if blocks["name"].duplicated().any() or (layers != layers.round()).any() or (layers.abs() > 2**31).any():
        raise RunError(f"{folder / 'blocks.parquet'} is damaged: it lists a block twice, or an impossible layer")
    for name in [*blocks["name"], *(steps_of(blocks) if steps else [])]:
        if name not in grams:
            raise RunError(f"{folder / 'gram.safetensors'} is damaged: it lacks block {name}")
        if grams.kind(name) != "F32" or grams.shape(name) != [packed_size(name, len(probes))]:
            raise RunError(f"{folder / 'gram.safetensors'} is damaged: block {name} does not have {len(probes)} units")


def _whole_numbers(column: pd.Series) -> bool:
    """Whether every value of a column is a whole number that a float has exactly."""
    if not record.is_number(column) or column.isna().any():
        return False
    return bool((column == column.round()).all() and (column.abs() < 2**53).all())
