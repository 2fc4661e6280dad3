"""Factors: what the examples of several tasks select, as an artifact on disk, with tables by task.

On disk it is a directory: `factors.json` (how it was computed, and the blocks), `examples.parquet` (task, id, source;
one row an example) and `selections.safetensors` (block name -> [examples, r]). It is whole or absent. Neither a model
nor torch is needed.

Not here: the numbers (`selections`, `neighbours`) and the pictures (`figures`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from interference.errors import RunError
from interference.factors import neighbours, selections
from interference.factors.neighbours import Embedding
from interference.factors.selections import Correlation, Selections
from interference.run import Run, record
from mixlora.common import directories

SCHEMA = 1
_JSON, _EXAMPLES, _VALUES = "factors.json", "examples.parquet", "selections.safetensors"
_COLUMNS = ["task", "id", "source"]
_BLOCK_COLUMNS = ["name", "component", "layer", "module", "group", "side", "factors"]
_KINDS = {"MIXLORA": True, "LORA": False}


@dataclass(frozen=True)
class Factors:
    """What every example of a sample selects, and how it was computed.

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
        """Write it to a directory that does not exist yet: to a temporary name, synced, renamed.

        Raises:
            RunError: if `out` exists or cannot be written.
        """
        out = Path(out)
        check_free(out)
        with record.saving(out, "factors") as folder:
            self._write(folder)

    def _write(self, folder: Path) -> None:
        self.examples.to_parquet(folder / _EXAMPLES, index=False)
        values = {name: np.ascontiguousarray(value) for name, value in self.selections.values.items()}
        save_file(values, folder / _VALUES)
        blocks = json.loads(self.selections.blocks.to_json(orient="records"))
        sums = {name: record.checksum(folder / name) for name in (_EXAMPLES, _VALUES)}
        meta = {"schema": SCHEMA, **self.meta, "blocks": blocks, "checksums": sums}
        record.write_meta(folder / _JSON, meta)


def load(path: Path | str) -> Factors:
    """The factors that were saved to a directory; neither a model nor torch is needed.

    Raises:
        RunError: if the directory holds no factors, is damaged, or has another version.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise RunError(f"there are no factors at {folder}")
    for name in (_JSON, _EXAMPLES, _VALUES):
        if not (folder / name).is_file():
            raise RunError(f"{folder} holds no factors: it has no {name}")
    meta = _read_meta(folder)
    record.check_sums(folder, meta.pop("checksums"), (_EXAMPLES, _VALUES))
    examples = record.read_frame(folder / _EXAMPLES, _COLUMNS)
    mixture = _KINDS[meta["adapter_kind"]]
    values = record.read_tensors(folder / _VALUES, np.integer if mixture else np.floating)
    blocks = _read_blocks(folder / _JSON, meta.pop("blocks"))
    found = Selections(list(examples["task"]), blocks, values, mixture)
    _check_whole(folder, examples, found)
    return Factors(found, examples, meta)


def check_free(out: Path) -> None:
    """Raise a RunError if `out` exists already."""
    directories.check_free(out, _JSON, "factors", "holds something else")


def against(found: Factors, run: Run, **options: Any) -> Correlation:
    """The correlation of the overlap of tasks' selections with their interference I in a run, over pairs of tasks.

    Args:
        found: what the tasks select.
        run: of tasks of the same names; tasks that only one of the two has are omitted.
        options: scope and options of `Run.matrix`.
    """
    return selections.correlate(selections.overlap(found.selections), run.matrix(**options))


def tables(found: Factors, embedding: Embedding, run: Run | None = None) -> dict[str, pd.DataFrame]:
    """The tables that go with the map, by name.

    "purity": on the selections and on the map; "tasks": one row a task; "layers": use by layer; "information": the
    blocks with most information about the task (MixLoRA); "overlap": tasks x tasks; "interference": the correlation of
    the overlap with a run.
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
    meta = record.read_meta(folder / _JSON, SCHEMA, "factors")
    whole = isinstance(meta.get("blocks"), list) and set(meta.get("checksums") or ()) == {_EXAMPLES, _VALUES}
    if not whole or str(meta.get("adapter_kind")) not in _KINDS:
        raise RunError(f"{folder / _JSON} is damaged; compute the factors again")
    return meta


def _read_blocks(path: Path, rows: list[Any]) -> pd.DataFrame:
    """The blocks in the rows of `path`, one row a block."""
    try:
        blocks = pd.DataFrame(rows, columns=_BLOCK_COLUMNS).astype({"layer": "Int64", "factors": int})
    except Exception as error:  # pandas raises errors of every kind on broken input
        raise RunError(f"{path} is damaged: its blocks cannot be read ({error}); compute the factors again") from None
    texts = ("name", "component", "module", "group", "side")
    if not all(record.is_text(blocks[column]) for column in texts) or blocks["name"].isna().any():
        raise RunError(f"{path} is damaged: a block in it has no name; compute the factors again")
    if blocks["name"].duplicated().any() or (blocks["factors"] < 1).any():
        raise RunError(f"{path} is damaged: a block in it stands twice or has no factors; compute the factors again")
    return blocks


def _check_whole(folder: Path, examples: pd.DataFrame, found: Selections) -> None:
    """Raise a RunError that names the file in which something is missing or impossible."""
    if not len(examples) or examples["task"].isna().any():
        raise RunError(f"{folder / _EXAMPLES} is damaged: a task is missing")
    for name, factors in zip(found.blocks["name"], found.blocks["factors"], strict=True):
        values = found.values.get(name)
        if values is None:
            raise RunError(f"{folder / _VALUES} is damaged: it lacks block {name}")
        if values.ndim != 2 or len(values) != len(examples) or (not found.mixture and values.shape[1] != factors):
            raise RunError(f"{folder / _VALUES} is damaged: block {name} is not of {len(examples)} examples")
        if found.mixture and not ((values >= 0) & (values < factors)).all():
            raise RunError(f"{folder / _VALUES} is damaged: block {name} names a factor that is not among {factors}")
