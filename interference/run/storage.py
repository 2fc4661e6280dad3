"""Storage: a run's directory, written whole or not at all, and read as a stranger's.

It holds `run.json` (how the run came about), `probes.parquet` (a row for each unit), `blocks.parquet` (one for each
block), `gram.safetensors` (packed triangles), MixLoRA's `selections.safetensors`, and `moments.safetensors`, where the
second moments of AdamW were estimated.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import save_file

from interference.errors import RunError
from interference.run import record
from interference.run.grams import GramFile, write_packed
from interference.run.schema import SCHEMA, check_whole, read_meta, steps_of
from mixlora.common import directories
from mixlora.common.files import expanded

if TYPE_CHECKING:
    from interference.run.measured import Measured

_FILES = ("run.json", "probes.parquet", "blocks.parquet", "gram.safetensors")
_SELECTIONS = "selections.safetensors"  # of MixLoRA runs alone
_MOMENTS = "moments.safetensors"


class Stored(NamedTuple):
    """What a directory holds: the attributes of a `Run`."""

    probes: pd.DataFrame
    blocks: pd.DataFrame
    grams: GramFile
    meta: dict[str, Any]
    selections: dict[str, Any]
    moments: GramFile | None = None


def read(path: Path | str) -> Stored:
    """What a run's directory holds; its Gram matrices are read when they are asked for.

    Raises:
        RunError: if the directory is not a run, is damaged, or is of another version.
    """
    folder = expanded(path)
    if not folder.is_dir():
        raise RunError(f"there is no run at {folder}")
    for name in _FILES:
        if not (folder / name).is_file():
            raise RunError(f"{folder} is not a run: it has no {name}")
    meta = read_meta(folder / "run.json")
    record.check_sums(folder, meta.pop("checksums", None) or {}, (*_FILES[1:], _SELECTIONS, _MOMENTS))
    probes = record.read_frame(folder / "probes.parquet", ("task", "ids", "source"), ("loss", "tokens"))
    texts = ("name", "component", "module", "group", "side")
    blocks = record.read_frame(folder / "blocks.parquet", texts, ("layer", "size"))
    grams = _matrices(folder / "gram.safetensors")
    moments = _matrices(folder / _MOMENTS) if (folder / _MOMENTS).is_file() else None
    selections = record.read_tensors(folder / _SELECTIONS) if (folder / _SELECTIONS).is_file() else {}
    check_whole(folder, probes, blocks, grams, bool(meta.get("adam")))
    return Stored(probes, blocks.astype({"layer": "Int64"}), grams, meta, selections, moments)


def _matrices(path: Path) -> GramFile:
    """Arrays that are read when they are asked for.

    Raises:
        RunError: if the file is damaged.
    """
    try:
        return GramFile(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is damaged and must be computed again: {error}") from None


def check_free(out: Path) -> None:
    """Raise a RunError if something is at `out` already."""
    directories.check_free(out, "run.json", "a run", "is not a run")


def write(run: "Measured", out: Path | str, grams: Path | None = None) -> None:
    """What `Run.save` does."""
    out = expanded(out)
    check_free(out)
    with record.saving(out, "the run") as folder:
        _write(run, grams, folder)


def _write(run: "Measured", grams: Path | None, folder: Path) -> None:
    run.probes.to_parquet(folder / "probes.parquet", index=False)
    run.blocks.to_parquet(folder / "blocks.parquet", index=False)
    names = list(run.blocks["name"])
    names += steps_of(run.blocks) if run.meta.get("adam") else []
    if grams is None:
        packed = ((name, run._grams[name]) for name in names)
        write_packed(folder / "gram.safetensors", names, len(run.probes), packed)
    else:
        grams.rename(folder / "gram.safetensors")
    if run.selections:
        save_file(run.selections, folder / _SELECTIONS)
    if run.moments:
        save_file(dict(run.moments), folder / _MOMENTS)
    checksums = {path.name: record.checksum(path) for path in sorted(folder.iterdir())}
    meta = {"schema": SCHEMA, **run.meta, "checksums": checksums}
    record.write_meta(folder / "run.json", meta)
