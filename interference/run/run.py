"""Run: what a measurement leaves behind. Every number is derived from its Gram matrices, without the model.

On disk a run is a directory, whole or absent: `run.json` (how it came about), `probes.parquet` (a row for each unit),
`blocks.parquet` (one for each block), `gram.safetensors` (packed triangles) and MixLoRA's `selections.safetensors`.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from interference.blocks import Scope, Side, Space, select
from interference.errors import RunError, ScopeError
from interference.run import record
from interference.run.grams import GramFile, Grams, sum_of, unpack, write_packed
from interference.run.remarks import other_units
from interference.run.schema import SCHEMA, check_whole, read_meta
from interference.statistics import metrics, uncertainty
from interference.statistics.carriers import carried_by
from interference.statistics.estimand import Aggregate, Estimand, estimate
from interference.statistics.layout import held_repeatedly
from mixlora.common import directories
from mixlora.common.files import expanded

_FILES = ("run.json", "probes.parquet", "blocks.parquet", "gram.safetensors")
_SELECTIONS = "selections.safetensors"  # of MixLoRA runs alone


class Run:
    """One measurement.

    Attributes:
        probes: one row a unit: task, loss (nats per token), tokens (supervised), ids, source; and group, the same
            number for units that are not independent, in all tasks, where that is known.
        blocks: one row a block: name, component, layer, module, group, side, size.
        meta: how the run came about: config, conventions, fingerprints, versions, timings, notes.
        selections: of a MixLoRA run, the factors that every example used: {block name: [examples, r], ranked}, and
            under "unit" [examples] the row of `probes` that each belongs to; empty for LoRA.
    """

    def __init__(
        self,
        probes: pd.DataFrame,
        blocks: pd.DataFrame,
        grams: Mapping[str, NDArray[np.float32]],
        meta: Mapping[str, Any],
        selections: Mapping[str, NDArray[np.int32]] | None = None,
    ) -> None:
        self.probes = probes
        self.blocks = blocks
        self.meta = dict(meta)
        self.selections = dict(selections or {})
        self._grams = grams

    def __repr__(self) -> str:
        counts = ", ".join(f"{task} {count}" for task, count in self.probes["task"].value_counts(sort=False).items())
        return f"Run({len(self.probes)} units: {counts}; {len(self.blocks)} blocks)"

    def _repr_html_(self) -> str:
        """What a notebook shows: the units and mean loss of every task, and below them what the blocks are of."""
        losses = self.probes.groupby("task", sort=False)["loss"]
        tasks = pd.DataFrame({"units": losses.size(), "loss (nats per token)": losses.mean()}).reset_index()
        parts = [f"{len(self.blocks)} blocks"]
        for column in ("layer", "module", "side"):
            values = [str(value) for value in self.blocks[column].dropna().unique()]
            shown = [*values[:8], "…", values[-1]] if len(values) > 10 else values
            parts += [f"{column}s {', '.join(shown)}"] if shown else []
        table = tasks.to_html(index=False, float_format="{:.2f}".format, max_rows=40)
        return f"{table}\n<p>{escape('; '.join(parts))}</p>"

    @property
    def tasks(self) -> list[str]:
        """Task names, by first appearance."""
        return list(dict.fromkeys(self.probes["task"]))

    @property
    def groups(self) -> list[int] | None:
        """The group of every unit; None where units are taken as independent because nothing is known of groups."""
        return [int(group) for group in self.probes["group"]] if "group" in self.probes else None

    @property
    def _labels(self) -> list[int]:
        """A label of every unit, its own where nothing is known of groups."""
        return list(range(len(self.probes))) if self.groups is None else self.groups

    @property
    def seed(self) -> int:
        """Of the sampling and of the bootstrap."""
        return int(self.meta.get("seed", 0))

    def scope(
        self,
        layers: Sequence[int] | None = None,
        modules: Sequence[str] | None = None,
        side: Side | str | None = None,
        space: Space | str = Space.PARAMETERS,
    ) -> pd.DataFrame:
        """The rows of `blocks` in a scope.

        Args:
            layers: transformer blocks, from 0; None for all that were probed.
            modules: module names or "attention", "mlp"; None for all.
            side: "A" or "B"; None for both.
            space: "parameters", or "weight" if the run was computed with weight_space=True.

        Raises:
            ScopeError: if the scope is not there.
        """
        return select(self.blocks, Scope(layers, modules, side, space))

    def grams(self, names: Sequence[str]) -> Grams:
        """The Gram matrices of these blocks, unpacked one at a time.

        Args:
            names: of rows of `blocks`.
        """
        return Grams(self._grams, names, len(self.probes))

    def gram(
        self,
        layers: Sequence[int] | None = None,
        modules: Sequence[str] | None = None,
        side: Side | str | None = None,
        space: Space | str = Space.PARAMETERS,
    ) -> NDArray[np.float32]:
        """The Gram matrix [units, units] of a scope: the sum of its blocks'.

        Args:
            layers: transformer blocks, from 0; None for all that were probed.
            modules: module names or "attention", "mlp"; None for all.
            side: "A" or "B"; None for both.
            space: "parameters", or "weight" if the run was computed with weight_space=True.

        Raises:
            ScopeError: if the scope is not there.
        """
        return self._sum(Scope(layers, modules, side, space))

    def matrix(
        self,
        metric: str = "interference",
        *,
        layers: Sequence[int] | None = None,
        modules: Sequence[str] | None = None,
        side: Side | str | None = None,
        space: Space | str = Space.PARAMETERS,
        aggregate: Aggregate | str = Aggregate.SUM,
        **options: Any,
    ) -> pd.DataFrame:
        """A metric for every pair of tasks [tasks, tasks]: rows are the affected task i, columns the stepped task j.

        Args:
            metric: "interference", "delta", "cosine", "pair_cosine", "conflict_rate", "magnitude_similarity" or
                "curvature".
            layers: transformer blocks, from 0; None for all that were probed.
            modules: module names or "attention", "mlp"; None for all.
            side: "A" or "B"; None for both.
            space: "parameters", or "weight" if the run was computed with weight_space=True.
            aggregate: "sum" treats the scope as one theta, "mean" averages the blocks' values.
            options: `pairs`, `reduce`, `norms`, `step`; see `metrics`.

        Raises:
            ScopeError: if the scope is not there.
            ConfigError: if an option has a value that is not allowed.
            MeasurementError: if every gradient in the scope is zero.
        """
        estimand = Estimand(metric, aggregate=aggregate, **options)
        grams = self._theta(Scope(layers, modules, side, space), aggregate)
        values = estimate(estimand, grams, list(self.probes["task"]), groups=self._labels)[0]
        affected, stepped = (pd.Index(self.tasks, name=name) for name in ("affected", "stepped"))
        return pd.DataFrame(values, affected, stepped)

    def table(
        self,
        metric: str = "interference",
        *,
        layers: Sequence[int] | None = None,
        modules: Sequence[str] | None = None,
        side: Side | str | None = None,
        space: Space | str = Space.PARAMETERS,
        aggregate: Aggregate | str = Aggregate.SUM,
        **options: Any,
    ) -> pd.DataFrame:
        """The cells of `matrix` with what is known about their error, one row a cell.

        Args:
            metric: as in `matrix`.
            layers: as in `matrix`.
            modules: as in `matrix`.
            side: as in `matrix`.
            space: as in `matrix`.
            aggregate: as in `matrix`.
            options: those of `matrix`, and `replicates` (1000), `level` (0.95), `seed`, `groups` (the run's own).

        Returns:
            Columns affected, stepped, value, low and high (95% bootstrap interval), verdict (about Delta_j L_i), p, q
            (p adjusted over the cells), nonpositive (share of units whose own Delta is not above 0), leverage (share
            of the worst unit), both of groups where units have them, at_odds ("sign" or "interval": what of the value
            contradicts the verdict; else "").

        Raises:
            ScopeError: as in `matrix`.
            ConfigError: as in `matrix`.
            MeasurementError: as in `matrix`.
        """
        grams = self._theta(Scope(layers, modules, side, space), aggregate)
        options = {"seed": self.seed, "groups": self.groups} | options
        found = uncertainty.table(grams, list(self.probes["task"]), metric, aggregate=aggregate, **options)
        return pd.DataFrame(found.columns())

    def signal(
        self,
        layers: Sequence[int] | None = None,
        modules: Sequence[str] | None = None,
        side: Side | str | None = None,
        space: Space | str = Space.PARAMETERS,
    ) -> pd.DataFrame:
        """What each task's gradients say beside their noise, one row a task; the columns are those of `metrics.Signal`.

        Args:
            layers: transformer blocks, from 0; None for all that were probed.
            modules: module names or "attention", "mlp"; None for all.
            side: "A" or "B"; None for both.
            space: "parameters", or "weight" if the run was computed with weight_space=True.

        Raises:
            ScopeError: if the scope is not there.
            MeasurementError: if every gradient in the scope is zero.
        """
        found = metrics.signal(self._sum(Scope(layers, modules, side, space)), list(self.probes["task"]), self._labels)
        frame = pd.DataFrame(vars(found)).set_index("tasks").rename_axis("task")
        by_task = self.probes.groupby("task", sort=False)
        frame.insert(0, "units", by_task.size())
        frame.insert(1, "effective", frame.pop("effective"))
        frame.insert(2, "loss", by_task["loss"].mean())
        return frame

    def null(
        self,
        *,
        layers: Sequence[int] | None = None,
        modules: Sequence[str] | None = None,
        side: Side | str | None = None,
        space: Space | str = Space.PARAMETERS,
        aggregate: Aggregate | str = Aggregate.SUM,
        **options: Any,
    ) -> pd.DataFrame:
        """The split-half null, one row a task: I of one half of its units against the other, which should be 1.

        Its columns are mean, low and high over the splits.

        Args:
            layers: as in `matrix`.
            modules: as in `matrix`.
            side: as in `matrix`.
            space: as in `matrix`.
            aggregate: as in `matrix`.
            options: `pairs`, `reduce`, `splits`, `level`, `seed`, `groups`; see `uncertainty.split_half_null`.

        Raises:
            ScopeError: if the scope is not there, or a task has fewer than 4 units.
            ConfigError: as in `matrix`.
        """
        grams = self._theta(Scope(layers, modules, side, space), aggregate)
        options = {"seed": self.seed, "groups": self.groups} | options
        found = uncertainty.split_half_null(grams, list(self.probes["task"]), aggregate=aggregate, **options)
        columns = {name: getattr(found, name) for name in ("mean", "low", "high")}
        return pd.DataFrame(columns, index=pd.Index(found.tasks, name="task"))

    def zero_blocks(self) -> list[str]:
        """Blocks in which every gradient is zero: A's, as long as B is at its initial zero."""
        return [name for name in self.blocks["name"] if not self._grams[name].any()]

    def overlap(self) -> pd.DataFrame:
        """The share of a row's groups of which a column has units, too, [tasks, tasks]; 0 where none are known."""
        held = [set(self.probes.loc[self.probes["task"] == task].get("group", [])) for task in self.tasks]
        shares = [[len(own & other) / max(len(own), 1) for other in held] for own in held]
        np.fill_diagonal(values := np.array(shares, dtype=float), 1)
        return pd.DataFrame(values, pd.Index(self.tasks, name="task"), self.tasks)

    def copies(self) -> list[list[int]]:
        """Rows of `probes` whose gradients are the same but for rounding: each list is one example, held repeatedly."""
        return held_repeatedly(self.gram())

    def carriers(self, **scope: Any) -> dict[str, list[list[int]]]:
        """The tasks that a few units carry, each with the rows of `probes` of every group that does, the longest first.

        Args:
            scope: `layers`, `modules`, `side` and `space`, as in `matrix`.
        """
        return carried_by(self.gram(**scope), list(self.probes["task"]), self._labels)

    def save(self, out: Path | str, grams: Path | None = None) -> None:
        """Write the run to a directory that must not exist yet: to a temporary name, synced, renamed.

        Args:
            out: the directory.
            grams: a file of its packed Gram matrices that may be moved there; None to write them.

        Raises:
            RunError: if `out` exists or cannot be written.
        """
        out = expanded(out)
        check_free(out)
        with record.saving(out, "the run") as folder:
            self._write(grams, folder)

    def _write(self, grams: Path | None, folder: Path) -> None:
        self.probes.to_parquet(folder / "probes.parquet", index=False)
        self.blocks.to_parquet(folder / "blocks.parquet", index=False)
        names = list(self.blocks["name"])
        if grams is None:
            packed = ((name, self._grams[name]) for name in names)
            write_packed(folder / "gram.safetensors", names, len(self.probes), packed)
        else:
            grams.rename(folder / "gram.safetensors")
        if self.selections:
            save_file(self.selections, folder / _SELECTIONS)
        checksums = {path.name: record.checksum(path) for path in sorted(folder.iterdir())}
        meta = {"schema": SCHEMA, **self.meta, "checksums": checksums}
        record.write_meta(folder / "run.json", meta)

    def _sum(self, scope: Scope) -> NDArray[np.float32]:
        """The Gram matrix of a scope."""
        return unpack(sum_of(self._grams[name] for name in select(self.blocks, scope)["name"]), len(self.probes))

    def _theta(self, scope: Scope, aggregate: Aggregate | str) -> NDArray[np.float32] | Grams:
        """What a metric needs of a scope: the sum of its blocks, or the blocks."""
        if aggregate != Aggregate.MEAN:
            return self._sum(scope)
        return self.grams(list(select(self.blocks, scope)["name"]))


def load(path: Path | str) -> Run:
    """The run in a directory; neither a model nor torch is needed.

    Args:
        path: the directory.

    Raises:
        RunError: if the directory is no run, is damaged, or is of another version.
    """
    folder = expanded(path)
    if not folder.is_dir():
        raise RunError(f"there is no run at {folder}")
    for name in _FILES:
        if not (folder / name).is_file():
            raise RunError(f"{folder} is no run: it has no {name}")
    meta = read_meta(folder / "run.json")
    record.check_sums(folder, meta.pop("checksums", None) or {}, (*_FILES[1:], _SELECTIONS))
    probes = record.read_frame(folder / "probes.parquet", ("task", "ids", "source"), ("loss", "tokens"))
    texts = ("name", "component", "module", "group", "side")
    blocks = record.read_frame(folder / "blocks.parquet", texts, ("layer", "size"))
    try:
        grams = GramFile(folder / "gram.safetensors")
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder / 'gram.safetensors'} is damaged and must be computed again: {error}") from None
    selections = record.read_tensors(folder / _SELECTIONS) if (folder / _SELECTIONS).is_file() else {}
    check_whole(folder, probes, blocks, grams)
    return Run(probes, blocks.astype({"layer": "Int64"}), grams, meta, selections)


def check_free(out: Path) -> None:
    """Raise a RunError if something is at `out` already."""
    directories.check_free(out, "run.json", "a run", "is no run")


def compare(a: Run, b: Run, metric: str = "interference", **options: Any) -> pd.DataFrame:
    """The change of a metric from run a to run b, one row a cell, resampling the same units in both.

    Columns: affected, stepped, a, b, difference (b - a), low, high, p, q, verdict ("lower", "higher", "unclear").

    Args:
        a: a run.
        b: another, on the same examples.
        metric: as in `Run.matrix`.
        options: scope and options of `Run.table`, for both runs.

    Raises:
        ScopeError: if the runs do not hold the same units.
    """
    if any(list(a.probes[column]) != list(b.probes[column]) for column in ("task", "ids", "source")):
        raise ScopeError(
            other_units(a.meta, b.meta)
            or "the runs do not hold the same examples in the same order; compute both with the same seed"
        )
    own = {"groups": a.groups, "groups_b": b.groups}
    if "groups" in options:
        own["groups_b"] = options["groups"]
    scope, options = Scope.split({"seed": a.seed, **own} | options)
    first, second = (run._theta(scope, options.get("aggregate", Aggregate.SUM)) for run in (a, b))
    found = uncertainty.compare(first, second, list(a.probes["task"]), metric, **options)
    return pd.DataFrame(found.columns())
