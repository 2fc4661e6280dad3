"""Factors: what the examples of several tasks select, as an artifact on disk, with tables by task.

On disk it is a directory: `factors.json` (how it was computed, and the blocks), `examples.parquet` (task, id, source,
group; one row an example), `selections.safetensors` (block name -> [examples, r]) and `untrained.safetensors` (the same
of the same adapter untrained). It is whole or absent. Neither a model nor torch is needed. Schema 1 knew neither groups
nor the untrained adapter.

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
from interference.factors.contrast import Contrast
from interference.factors.neighbours import Embedding
from interference.factors.selections import Correlation, Selections
from interference.factors.shuffles import alone
from interference.run import Run, record
from interference.statistics.groups import Codes, codes_of
from mixlora.common import directories
from mixlora.common.files import expanded

SCHEMA, _OLDER = 3, (1, 2)
_JSON, _EXAMPLES, _VALUES = "factors.json", "examples.parquet", "selections.safetensors"
_UNTRAINED = "untrained.safetensors"
_COLUMNS = ["task", "id", "source"]
_BLOCK_COLUMNS = ["name", "component", "layer", "module", "group", "side", "factors"]
_KINDS = {"MIXLORA": True, "LORA": False}


@dataclass(frozen=True)
class Factors:
    """What every example of a sample selects, and how it was computed.

    Attributes:
        selections: By example and block.
        examples: One row an example: task, id, source, and group, unless nothing is known of it.
        meta: Config, adapter, adapter_kind ("MIXLORA" or "LORA"), conventions, fingerprints, versions; "untrained": in
            words what `untrained` is of ("text"), or why there is none ("missing").
        untrained: What the same examples select of the same adapter untrained; None if that is not known.
    """

    selections: Selections
    examples: pd.DataFrame
    meta: Mapping[str, Any]
    untrained: Selections | None = None

    def __repr__(self) -> str:
        counts = ", ".join(f"{task} {count}" for task, count in self.examples["task"].value_counts(sort=False).items())
        kind, blocks = self.meta["adapter_kind"], len(self.selections.blocks)
        return f"Factors({kind}; {len(self.examples)} examples: {counts}; {blocks} blocks)"

    def save(self, out: Path | str) -> None:
        """Write it to a directory that does not exist yet: to a temporary name, synced, renamed.

        Args:
            out: The directory.

        Raises:
            RunError: If `out` exists or cannot be written.
        """
        out = expanded(out)
        check_free(out)
        with record.saving(out, "factors") as folder:
            self._write(folder)

    def _write(self, folder: Path) -> None:
        self.examples.to_parquet(folder / _EXAMPLES, index=False)
        held = {_VALUES: self.selections} | ({} if self.untrained is None else {_UNTRAINED: self.untrained})
        for file, chosen in held.items():
            save_file({name: np.ascontiguousarray(value) for name, value in chosen.values.items()}, folder / file)
        blocks = json.loads(self.selections.blocks.to_json(orient="records"))
        sums = {name: record.checksum(folder / name) for name in (_EXAMPLES, *held)}
        meta = {"schema": SCHEMA, **self.meta, "blocks": blocks, "checksums": sums}
        record.write_meta(folder / _JSON, meta)


def load(path: Path | str) -> Factors:
    """The factors that were saved to a directory; neither a model nor torch is needed.

    Args:
        path: The directory, as `interference factors` or `Factors.save` wrote it.

    Returns:
        What every example selects, and how it was computed.

    Raises:
        RunError: If the directory has no factors, is damaged, or has another version.

    Example:
        >>> import interference, tempfile
        >>> import numpy as np, pandas as pd
        >>> from interference.factors.selections import Selections
        >>> place = {"component": "language", "layer": 0, "module": "q_proj", "group": "attention", "side": "A"}
        >>> blocks = pd.DataFrame([{"name": "language.0.q_proj.A", **place, "factors": 4}]).astype({"layer": "Int64"})
        >>> chosen = {"language.0.q_proj.A": np.array([[0, 1], [0, 2], [3, 1], [3, 2]], dtype=np.int32)}
        >>> tasks = ["a", "a", "b", "b"]
        >>> examples = pd.DataFrame({"task": tasks, "id": list("wxyz"), "source": "example"})
        >>> selections = Selections(tasks, blocks, chosen, True, None)
        >>> made = interference.factors.Factors(selections, examples, {"adapter_kind": "MIXLORA"})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made.save(f"{folder}/factors")
        ...     interference.factors.load(f"{folder}/factors")
        Factors(MIXLORA; 4 examples: a 2, b 2; 1 blocks)
    """
    folder = expanded(path)
    if not folder.is_dir():
        raise RunError(f"there are no factors at {folder}")
    for name in (_JSON, _EXAMPLES, _VALUES):
        if not (folder / name).is_file():
            raise RunError(f"{folder} has no factors: it lacks {name}")
    meta = _read_meta(folder)
    sums = meta.pop("checksums")
    record.check_sums(folder, sums, list(sums))
    examples, groups = _read_examples(folder / _EXAMPLES)
    mixture = _KINDS[meta["adapter_kind"]]
    blocks = _read_blocks(folder / _JSON, meta.pop("blocks"))

    def chosen(file: str) -> Selections:
        values = record.read_tensors(folder / file, np.integer if mixture else np.floating)
        found = Selections(list(examples["task"]), blocks, values, mixture, groups)
        _check_whole(folder / file, found)
        return found

    return Factors(chosen(_VALUES), examples, meta, chosen(_UNTRAINED) if _UNTRAINED in sums else None)


def check_free(out: Path) -> None:
    """Raise a RunError if `out` exists already."""
    directories.check_free(out, _JSON, "factors", "contains no factors")


def against(found: Factors, run: Run, **options: Any) -> Correlation:
    """The correlation of the overlap of tasks' selections with their interference I in a run, over pairs of tasks.

    Args:
        found: What the tasks select.
        run: Of tasks of the same names; tasks that only one of the two has are omitted.
        **options: Scope and options of `Run.matrix`.

    Returns:
        Spearman's correlation over pairs of tasks, its p-value, and how many tasks it is of.

    Raises:
        ScopeError: If fewer than three tasks are in both, or the scope is not there.
        MeasurementError: If a value is not finite, or all are the same.
    """
    return selections.correlate(selections.overlap(found.selections), run.matrix(**options))


def remarks(found: Factors) -> list[str]:
    """What a reader must know of the groups of the examples and of the untrained adapter, a sentence each."""
    said = []
    if found.selections.groups is None:
        said.append(
            "these factors have no groups, so their examples were treated as independent: where they share pictures or "
            "documents, chance and intervals are wrong; compute them again"
        )
    elif not alone(found.selections.groups):
        count, groups = len(found.examples), found.examples["group"].nunique()
        copies = int(found.meta.get("copies") or 0)
        repeated = f", {copies} of them with the prompt of another" if copies else ""
        said.append(
            f"{count} examples form {groups} groups{repeated}: neighbours are taken from other groups only, and chance "
            "and intervals are based on whole groups"
        )
    if found.untrained is None:
        missing = (found.meta.get("untrained") or {}).get("missing")
        said.append(
            f"there is no untrained adapter beside it, {missing}: it is unknown whether training made these clusters"
            if missing
            else "these factors have no untrained adapter, so the clusters do not show what training learned; to add "
            "it, run `interference factors` again with another --out"
        )
    return said


def origin(found: Factors) -> str:
    """Where the untrained adapter comes from, for a reader."""
    return str((found.meta.get("untrained") or {}).get("text", "the same adapter untrained"))


def tables(
    found: Factors, embedding: Embedding, run: Run | None = None, beside: Contrast | None = None
) -> dict[str, pd.DataFrame]:
    """The tables that go with the map, by name.

    "purity": on the selections and on the map; "learning": purity beside the untrained adapter's, with the interval of
    the difference; "tasks": one row per task; "layers": use by layer; "information": the blocks with most information
    about the task (MixLoRA); "overlap": tasks x tasks; "interference": the correlation of the overlap with a run.

    Args:
        found: What the examples select.
        embedding: `neighbours.embed` of it.
        run: Of the same tasks.
        beside: `contrast.contrast` with the untrained adapter.

    Returns:
        {name: table}; "learning", "information" and "interference" only where there is what they need.

    Raises:
        ScopeError: As in `against`.
        MeasurementError: As in `against`.
    """
    chosen = found.selections
    by_task = embedding.purity.by_task.copy()
    by_task["silhouette"] = neighbours.silhouette(neighbours.distances(chosen), chosen.tasks, chosen.groups)
    kinds = {"selections": embedding.purity, "map": embedding.map_purity}
    if beside is not None:
        kinds |= {"selections, untrained": beside.embedding.purity, "map, untrained": beside.embedding.map_purity}
        by_task["untrained purity"] = beside.embedding.purity.by_task["purity"]
    rows = [(on, p.value, p.chance, p.low, p.high, p.p) for on, p in kinds.items()]
    columns = ["neighbours on", "purity", "chance", "chance low", "chance high", "p"]
    result = {"purity": pd.DataFrame(rows, columns=columns)}
    if beside is not None:
        pair = (embedding.purity.value, beside.embedding.purity.value)
        row = (*pair, beside.difference, beside.low, beside.high, beside.groups, beside.verdict)
        names = ["purity", "untrained", "difference", "low", "high", "groups", "says"]
        result["learning"] = pd.DataFrame([row], columns=names)
    result |= {"tasks": by_task, "layers": selections.usage_by_layer(chosen)}
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
    meta = record.read_meta(folder / _JSON, SCHEMA, "factors", _OLDER)
    files = set(meta.get("checksums") or ()) - {_UNTRAINED}
    whole = isinstance(meta.get("blocks"), list) and files == {_EXAMPLES, _VALUES}
    told = meta.get("untrained") or {}
    if not isinstance(told, dict) or not all(isinstance(words, str) for words in told.values()):
        whole = False
    if not isinstance(meta.get("copies") or 0, int):
        whole = False
    if not whole or str(meta.get("adapter_kind")) not in _KINDS:
        raise RunError(f"{folder / _JSON} is damaged; compute the factors again")
    return meta


def _read_examples(path: Path) -> tuple[pd.DataFrame, Codes | None]:
    """The examples, and their groups as numbers; None where none are stored."""
    examples = record.read_frame(path, _COLUMNS)
    if not len(examples) or examples["task"].isna().any():
        raise RunError(f"{path} is damaged: a task is missing")
    if "group" not in examples:
        return examples, None
    examples = record.read_frame(path, _COLUMNS, ["group"])
    if examples["group"].isna().any():
        raise RunError(f"{path} is damaged: a group is missing")
    return examples, codes_of(examples["group"].tolist())


def _read_blocks(path: Path, rows: list[Any]) -> pd.DataFrame:
    """The blocks in the rows of `path`, one row per block."""
    try:
        blocks = pd.DataFrame(rows, columns=_BLOCK_COLUMNS).astype({"layer": "Int64", "factors": int})
    except Exception as error:  # pandas raises errors of every kind on broken input
        raise RunError(f"{path} is damaged: its blocks cannot be read ({error}); compute the factors again") from None
    texts = ("name", "component", "module", "group", "side")
    if not all(record.is_text(blocks[column]) for column in texts) or blocks["name"].isna().any():
        raise RunError(f"{path} is damaged: a block has no name; compute the factors again")
    if blocks["name"].duplicated().any() or (blocks["factors"] < 1).any():
        raise RunError(f"{path} is damaged: a block appears twice or has no factors; compute the factors again")
    return blocks


def _check_whole(path: Path, found: Selections) -> None:
    """Raise a RunError that names the file of selections in which something is missing or impossible."""
    for name, factors in zip(found.blocks["name"], found.blocks["factors"], strict=True):
        values = found.values.get(name)
        if values is None:
            raise RunError(f"{path} is damaged: it lacks block {name}")
        count = len(found.tasks)
        if values.ndim != 2 or len(values) != count or (not found.mixture and values.shape[1] != factors):
            raise RunError(f"{path} is damaged: block {name} does not have {count} examples")
        if found.mixture and not ((values >= 0) & (values < factors)).all():
            raise RunError(f"{path} is damaged: block {name} names a factor that is not among {factors}")
