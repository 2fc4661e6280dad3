"""Factors: what the examples of several tasks select, as an artifact on disk, and what it says task by task.

On disk it is a directory: `factors.json` (how it came about, and the blocks), `examples.parquet` (task, id, source; one
row an example) and `selections.safetensors` (block name -> [examples, r]). It is whole or absent. The numbers are made
in `selections` and `neighbours`, the pictures in `factor_figures`; neither a model nor torch is needed here.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from interference import neighbours, selections
from interference.errors import RunError
from interference.neighbours import Embedding
from interference.run import Run
from interference.selections import Correlation, Selections

SCHEMA = 1
_JSON, _EXAMPLES, _VALUES = "factors.json", "examples.parquet", "selections.safetensors"
_COLUMNS = ["task", "id", "source"]
_BLOCK_COLUMNS = ["name", "component", "layer", "module", "group", "side", "factors"]
_KINDS = {"MIXLORA": True, "LORA": False}


@dataclass(frozen=True)
class Factors:
    """What every example of a sample selects, and how that was found.

    Attributes:
        selections: by example and block.
        examples: one row an example: task, id, source.
        meta: config, adapter, adapter_kind ("MIXLORA" or "LORA"), conventions, fingerprints, versions.
    """

    selections: Selections
    examples: pd.DataFrame
    meta: Mapping[str, Any]

    def __repr__(self) -> str:
        counts = ", ".join(f"{task} {count}" for task, count in self.examples["task"].value_counts(sort=False).items())
        kind, blocks = self.meta["adapter_kind"], len(self.selections.blocks)
        return f"Factors({kind}; {len(self.examples)} examples: {counts}; {blocks} blocks)"

    def save(self, out: Path | str) -> None:
        """Write it to a directory that must not exist yet: to a temporary name, synced, renamed.

        Raises:
            RunError: if `out` exists or cannot be written.
        """
        out = Path(out)
        check_free(out)
        temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        try:
            temporary.mkdir(parents=True)
            self._write(temporary)
            if out.exists():
                out.rmdir()  # an empty directory, as check_free saw
            temporary.rename(out)
        except OSError as error:
            raise RunError(f"factors cannot be written to {out}: {error.strerror or error}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        self.examples.to_parquet(folder / _EXAMPLES, index=False)
        values = {name: np.ascontiguousarray(value) for name, value in self.selections.values.items()}
        save_file(values, folder / _VALUES)
        blocks = json.loads(self.selections.blocks.to_json(orient="records"))
        sums = {name: _checksum(folder / name) for name in (_EXAMPLES, _VALUES)}
        meta = {"schema": SCHEMA, **self.meta, "blocks": blocks, "checksums": sums}
        (folder / _JSON).write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / _VALUES).chmod((folder / _JSON).stat().st_mode)  # safetensors writes for its owner alone
        for path in [*folder.iterdir(), folder]:
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


def load(path: Path | str) -> Factors:
    """What was saved to a directory; neither a model nor torch is needed.

    Raises:
        RunError: if the directory holds no factors, is damaged, or is of another version.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise RunError(f"there are no factors at {folder}")
    for name in (_JSON, _EXAMPLES, _VALUES):
        if not (folder / name).is_file():
            raise RunError(f"{folder} holds no factors: it has no {name}")
    meta = _read_meta(folder)
    for name, checksum in meta.pop("checksums").items():
        if _checksum(folder / name) != checksum:
            raise RunError(f"{folder / name} is damaged: its checksum is another than was written; compute it again")
    try:
        examples = pd.read_parquet(folder / _EXAMPLES)
        values = load_file(folder / _VALUES)
        blocks = pd.DataFrame(meta.pop("blocks"), columns=_BLOCK_COLUMNS).astype({"layer": "Int64", "factors": int})
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise RunError(f"{folder} is damaged and must be computed again: {error}") from None
    found = Selections(list(examples.get("task", [])), blocks, values, _KINDS[meta["adapter_kind"]])
    _check_whole(folder, examples, found)
    return Factors(found, examples, meta)


def check_free(out: Path) -> None:
    """Raise a RunError if something is at `out` already."""
    if (out / _JSON).exists():
        raise RunError(f"{out} already holds factors; choose another --out or delete it first")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and holds something else; choose another --out")


def against(found: Factors, run: Run, **options: Any) -> Correlation:
    """How the overlap of tasks' selections goes with their interference I in a run, over pairs of different tasks.

    Args:
        found: what the tasks select.
        run: of tasks of the same names; pairs of tasks that only one has are left out.
        options: scope and options of `Run.matrix`.
    """
    return selections.correlate(selections.overlap(found.selections), run.matrix(**options))


def tables(found: Factors, embedding: Embedding, run: Run | None = None) -> dict[str, pd.DataFrame]:
    """Everything a reader should see beside the map, as tables by name: tasks, layers, overlap, and more.

    "purity": on the selections and on the map; "tasks": one row a task; "layers": use by layer; "information": the
    blocks that say most about the task (MixLoRA); "overlap": tasks x tasks; "interference": its correlation with a run.
    """
    chosen = found.selections
    by_task = embedding.purity.by_task.copy()
    by_task["silhouette"] = neighbours.silhouette(neighbours.distances(chosen), chosen.tasks)
    kinds = {"selections": embedding.purity, "map": embedding.map_purity}
    rows = [(on, p.value, p.chance, p.low, p.high, p.p) for on, p in kinds.items()]
    result = {
        "purity": pd.DataFrame(rows, columns=["neighbours on", "purity", "chance", "chance low", "chance high", "p"]),
        "tasks": by_task,
        "layers": selections.usage_by_layer(chosen),
    }
    if chosen.mixture:
        by_block = selections.information(chosen, seed=embedding.seed)
        result["information"] = by_block.sort_values("corrected", ascending=False, ignore_index=True)
    result["overlap"] = selections.overlap(chosen)
    if run is not None:
        found_there = against(found, run)
        values = (found_there.spearman, found_there.p, found_there.tasks)
        result["interference"] = pd.DataFrame([values], columns=["spearman with overlap", "p", "tasks"])
    return result


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / _JSON).read_text(encoding="utf-8"))
        schema = meta.pop("schema")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"{folder / _JSON} is damaged; compute the factors again") from None
    if schema != SCHEMA:
        raise RunError(
            f"{folder} has schema {schema}, but this version reads schema {SCHEMA}; update task-interference"
        )
    whole = isinstance(meta.get("blocks"), list) and set(meta.get("checksums") or ()) == {_EXAMPLES, _VALUES}
    if not whole or meta.get("adapter_kind") not in _KINDS:
        raise RunError(f"{folder / _JSON} is damaged; compute the factors again")
    return meta


def _check_whole(folder: Path, examples: pd.DataFrame, found: Selections) -> None:
    """Raise a RunError that names the file in which something is missing or cannot be."""
    if lacking := [column for column in _COLUMNS if column not in examples]:
        raise RunError(f"{folder / _EXAMPLES} is damaged: it lacks column {lacking[0]}")
    for name, factors in zip(found.blocks["name"], found.blocks["factors"], strict=True):
        values = found.values.get(name)
        if values is None:
            raise RunError(f"{folder / _VALUES} is damaged: it lacks block {name}")
        if values.ndim != 2 or len(values) != len(examples) or (not found.mixture and values.shape[1] != factors):
            raise RunError(f"{folder / _VALUES} is damaged: block {name} is not of {len(examples)} examples")
        if found.mixture and not ((values >= 0) & (values < factors)).all():
            raise RunError(f"{folder / _VALUES} is damaged: block {name} names a factor that is not among {factors}")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
