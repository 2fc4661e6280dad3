"""Frames: tables in the shapes that people of pandas and xarray expect: ordered names, one row per cell, named axes.

Not here: the numbers (`statistics`), and how a notebook shows them (`notebook`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interference.errors import ConfigError, ScopeError

if TYPE_CHECKING:
    import xarray

PARTS = ("layer", "module", "group", "side")
"""Columns of `Run.blocks` by which a table can be split."""
CELLS = ("affected", "stepped")
NUMBERS = ("value", "low", "high", "p", "q")
"""Columns of `Run.table` that become variables of a Dataset, with its verdicts."""


def ordered(values: Iterable[str], names: Sequence[str]) -> pd.Categorical:
    """Names as an ordered categorical, so that grouping, sorting and pivoting keep the order of `names`.

    Args:
        values: [rows], each of them among `names`.
        names: all names, in order, each once.
    """
    place = {name: k for k, name in enumerate(names)}
    categories = pd.Index(list(names), dtype=object)  # text of every kind, with NULs and half characters
    return pd.Categorical.from_codes([place[value] for value in values], categories, ordered=True)


def tidy(columns: Mapping[str, Any], tasks: Sequence[str]) -> pd.DataFrame:
    """The columns of a table of cells, its tasks ordered as `tasks`."""
    frame = pd.DataFrame(dict(columns))
    return frame.assign(**{name: ordered(columns[name], tasks) for name in CELLS})


def in_order(table: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """The cells of a table row by row of a matrix of `tasks`, its own in any order."""
    named = {name: ordered(list(table[name]), tasks) for name in CELLS}
    return table.assign(**named).sort_values(list(CELLS), ignore_index=True)


def parts_by(by: Sequence[str] | str) -> tuple[str, ...]:
    """The columns that `by` names.

    Raises:
        ConfigError: if there is no such column, or one is named twice.
    """
    named = (by,) if isinstance(by, str) else tuple(by)
    for name in named:
        if name not in PARTS:
            raise ConfigError(f"by is {name!r}, but must be one or more of: {', '.join(PARTS)}")
    if len(set(named)) < len(named):
        raise ConfigError(f"by names a column twice: {', '.join(named)}; name each once")
    return named


def split(blocks: pd.DataFrame, by: Sequence[str]) -> dict[tuple[Any, ...], list[str]]:
    """The names of the blocks of every part, by the part's values of the columns `by`, in the order of the model.

    Args:
        blocks: rows of `Run.blocks`.
        by: columns, see `PARTS`; none for one part.

    Raises:
        ScopeError: if `by` names layers, and no block lies in a layer.
    """
    if not by:
        return {(): list(blocks["name"])}
    if "layer" in by:
        blocks = blocks[blocks["layer"].notna()]
        if blocks.empty:
            raise ScopeError("no block in this scope belongs to a layer; leave 'layer' out of by, or widen the scope")
    found: dict[tuple[Any, ...], list[str]] = {}
    columns = [blocks[name].astype(int if name == "layer" else object) for name in by]
    for *key, name in zip(*columns, blocks["name"], strict=True):
        found.setdefault(tuple(key), []).append(name)
    return found


def stacked(
    tables: Mapping[tuple[Any, ...], pd.DataFrame], by: Sequence[str], parts: Iterable[tuple[Any, ...]]
) -> pd.DataFrame:
    """The tables of parts below each other; their values of `by` are the first columns, ordered as in `parts`."""
    axes = dict(zip(by, _axes(parts, len(by)), strict=True))
    frames = []
    for key, table in tables.items():
        names = {
            name: value if name == "layer" else ordered([value] * len(table), axes[name])
            for name, value in zip(by, key, strict=True)
        }
        frames.append(table.assign(**names)[[*by, *table.columns]])
    return pd.concat(frames, ignore_index=True)


def _axes(parts: Iterable[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """The values of every column of some parts, each once, in order."""
    return [list(dict.fromkeys(column)) for column in zip(*parts, strict=True)] if width else []


def dataset(
    tables: Mapping[str, pd.DataFrame],
    by: Sequence[str],
    parts: Iterable[tuple[Any, ...]],
    tasks: Sequence[str],
    several: bool,
) -> "xarray.Dataset":
    """Tables of `Run.table` as one Dataset.

    Args:
        tables: {metric: its table}, all of the same parts.
        by: the columns by which they are split.
        parts: of `split`, those without a table among them.
        tasks: names, in order.
        several: whether "metric" is a dimension.

    Raises:
        ConfigError: if xarray is not installed.
    """
    try:
        import xarray
    except ImportError:
        raise ConfigError(
            "to_xarray needs xarray, which is not installed; run: pip install 'task-interference[xarray]'"
        ) from None
    axes: dict[str, list[Any]] = {"metric": list(tables)} if several else {}
    for name, values in zip(by, _axes(parts, len(by)), strict=True):
        axes[name] = sorted(values) if name == "layer" else values
    axes |= {name: list(tasks) for name in CELLS}
    shape = [len(values) for values in axes.values()]
    keys = [*by, *CELLS]
    places = pd.MultiIndex.from_product([axes[name] for name in keys], names=keys)
    full = [table.astype(dict.fromkeys(keys, object)).set_index(keys).reindex(places) for table in tables.values()]
    whole = pd.concat(full)
    variables: dict[str, Any] = {name: (list(axes), whole[name].to_numpy(float).reshape(shape)) for name in NUMBERS}
    verdicts = whole["verdict"].astype(object).where(whole["verdict"].notna(), "").to_numpy(str)
    variables["verdict"] = (list(axes), verdicts.reshape(shape))
    coordinates = {name: values if name == "layer" else np.array(values, dtype=object) for name, values in axes.items()}
    return xarray.Dataset(variables, coordinates)
