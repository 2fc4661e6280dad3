"""Run: what a measurement leaves behind. Every number is derived from its Gram matrices, without the model.

Not here: its directory (`storage`), how it differs from another run (`comparison`), how one shows it (`notebook`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interference.blocks import Scope, Side, Space, select
from interference.errors import ConfigError, MeasurementError
from interference.run import frames, notebook, storage
from interference.run.measured import Measured
from interference.run.scoped import Scoped, keys_of, scope_of
from interference.statistics import metrics, uncertainty
from interference.statistics.carriers import carried_by
from interference.statistics.estimand import Aggregate, Estimand, estimate

if TYPE_CHECKING:
    import xarray
    from pandas.io.formats.style import Styler


class Run(Measured):
    """One measurement: the Gram matrices of the gradients of its units, and what is known of them.

    `run[5, "mlp"]` is the same run in one scope: name layers (int), modules or groups (str) and a side between the
    brackets, where IPython completes them. Its methods are those of the run that take a scope, without it.

    Attributes:
        probes: One row per unit: task, loss (nats per token), tokens (supervised), ids, source; content, a digest of
            its examples (not in runs of earlier versions); and group, the same number for units that are not
            independent, in all tasks, where that is known.
        blocks: One row per block: name, component, layer, module, group, side, size (gradient entries).
        meta: How the run came about: config, conventions, fingerprints, versions, timings, notes.
        selections: Of a MixLoRA run, the factors that every example used: {block name: [examples, r], ranked}, and
            under "unit" [examples] the row of `probes` that each belongs to; empty for LoRA.
        moments: Second moments that AdamW's step divides by, where they were estimated: {name of a block before blocks
            were summed: [entries]}, squared nats per token; empty else.
    """

    __iter__ = None  # `run[...]` takes scopes; a run is not a sequence of them

    def _repr_html_(self) -> str:
        """What a notebook shows: the matrix of interference with intervals and verdicts, the tasks, the blocks."""
        return notebook.html(self)

    def __getitem__(self, key: Any) -> Scoped:
        """The run in the scope that the key names, as `run[5]`, `run["mlp"]` or `run[[0, 3], "q_proj", "A"]`."""
        scope = scope_of(key)
        self._held(scope)
        return Scoped(self, scope)

    def _ipython_key_completions_(self) -> list[Any]:
        """What IPython offers after `run[`."""
        return keys_of(self.layers, self.modules, self.sides)

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
        """A metric for every pair of tasks, without intervals.

        Args:
            metric: "interference", "delta", "cosine", "pair_cosine", "conflict_rate", "magnitude_similarity" or
                "curvature".
            layers: Transformer blocks, from 0; None for all that were probed.
            modules: Module names, "attention" or "mlp"; None for all.
            side: "A" or "B"; None for both.
            space: "parameters", or "adam" or "weight" of a run computed with `step="adam"` or `weight_space=True`.
            aggregate: "sum" treats the scope as one theta, "mean" averages the blocks' values.
            **options: `pairs`, `reduce`, `norms`, `step`; see `metrics`.

        Returns:
            [tasks, tasks], where rows are the affected task i, columns the stepped task j.

        Raises:
            ScopeError: If the scope is not there.
            ConfigError: If an option has a value that is not allowed.
            MeasurementError: If every gradient in the scope is zero.

        Example:
            >>> import interference
            >>> run = interference.load("reports/reference/lora")
            >>> bool(run.matrix(layers=[3]).loc["read_word", "name_ink"] < 0)
            True
        """
        estimand = Estimand(metric, aggregate=aggregate, **options)
        grams = self._theta(Scope(layers, modules, side, space), aggregate)
        values = estimate(estimand, grams, list(self.probes["task"]), groups=self._labels)[0]
        affected, stepped = (pd.Index(self.tasks, name=name) for name in frames.CELLS)
        return pd.DataFrame(values, affected, stepped)

    def table(
        self,
        metric: str = "interference",
        *,
        by: Sequence[str] | str = (),
        layers: Sequence[int] | None = None,
        modules: Sequence[str] | None = None,
        side: Side | str | None = None,
        space: Space | str = Space.PARAMETERS,
        aggregate: Aggregate | str = Aggregate.SUM,
        **options: Any,
    ) -> pd.DataFrame:
        """The cells of `matrix` with what is known about their error, one row per cell.

        Args:
            metric: As in `matrix`.
            by: "layer", "module", "group" or "side", or several of them: a matrix for each of their values instead of
                one for the whole scope. Parts whose gradients are all zero are left out.
            layers: Transformer blocks, from 0; None for all that were probed.
            modules: Module names, "attention" or "mlp"; None for all.
            side: "A" or "B"; None for both.
            space: "parameters", or "adam" or "weight" of a run computed with `step="adam"` or `weight_space=True`.
            aggregate: "sum" treats the scope as one theta, "mean" averages the blocks' values.
            **options: Those of `matrix`, and `replicates` (1000), `level` (0.95), `seed`, `groups` (the run's own).

        Returns:
            The columns of `by`, then affected and stepped (ordered categoricals, in the order of `tasks`). Then value,
            low and high (95% bootstrap interval), verdict (about Delta_j L_i), p, and q (p adjusted over the cells).
            Then nonpositive (share of units whose own Delta is not above 0) and leverage (share of the worst unit),
            both of groups where units have them. Last at_odds: "sign" or "interval", where the value's sign
            or interval contradicts the verdict, else "".

        Raises:
            ScopeError: If the scope is not there, or a task has a single unit.
            ConfigError: If an option has a value that is not allowed.
            MeasurementError: If every gradient in the scope is zero.

        Example:
            >>> import interference
            >>> run = interference.load("reports/reference/lora")
            >>> cells = run.table("interference", layers=[3])
            >>> cells.groupby("affected", observed=True)["value"].min().index[0] == run.tasks[0]
            True
        """
        by, scope = frames.parts_by(by), Scope(layers, modules, side, space)
        options = {"seed": self.seed, "groups": self.groups} | options
        if not by:
            return self._cells(metric, self._theta(scope, aggregate), aggregate, options)
        parts = frames.split(self._held(scope), by)
        tables = {
            key: self._cells(metric, self._of(names, aggregate), aggregate, options)
            for key, names in parts.items()
            if any(self._grams[name].any() for name in names)
        }
        if not tables:
            raise MeasurementError("every gradient in this scope is zero; choose other blocks, or a later checkpoint")
        return frames.stacked(tables, by, parts)

    def to_xarray(
        self, metric: str | Sequence[str] = "interference", *, by: Sequence[str] | str = (), **options: Any
    ) -> "xarray.Dataset":
        """The cells of `table` as an xarray Dataset.

        Args:
            metric: As in `matrix`; several make a dimension "metric".
            by: As in `table`; each is a dimension.
            **options: Scope and options of `table`.

        Returns:
            Variables value, low, high, p, q and verdict over the dimensions affected and stepped, after "metric" and
            those of `by` where they are given. What was not probed, or has zero gradients, is NaN, its verdict "".

        Raises:
            ConfigError: If xarray is not installed, no metric is named, or an option is not allowed.
            ScopeError: If the scope is not there.
            MeasurementError: If every gradient in the scope is zero.

        Example:
            >>> import interference
            >>> run = interference.load("reports/reference/lora")
            >>> found = run.to_xarray(by="layer", replicates=100)
            >>> found["value"].dims
            ('layer', 'affected', 'stepped')
        """
        named = [metric] if isinstance(metric, str) else list(dict.fromkeys(metric))
        if not named:
            raise ConfigError("metric is empty; name one or more of: " + ", ".join(metrics.METRICS))
        tables = {one: self.table(one, by=by, **options) for one in named}
        by = frames.parts_by(by)
        parts = frames.split(select(self.blocks, Scope.split(options)[0]), by)
        return frames.dataset(tables, by, parts, self.tasks, several=not isinstance(metric, str))

    def styled(self, metric: str = "interference", **options: Any) -> "Styler":
        """The matrix of a metric in the colours of the report, with a frame around what is beyond noise.

        Args:
            metric: As in `matrix`.
            **options: Scope and options of `table`, but `by`.

        Returns:
            A pandas Styler over the values [tasks, tasks]. A solid frame is a conflict, a dashed one a synergy. Names
            are escaped. `.format`, `.set_caption` and `.to_html` work as usual.

        Raises:
            ScopeError: If the scope is not there.
            ConfigError: If an option has a value that is not allowed.
            MeasurementError: If every gradient in the scope is zero.

        Example:
            >>> import interference
            >>> run = interference.load("reports/reference/lora")
            >>> run.styled(layers=[3]).to_html().count("dashed") > 0
            True
        """
        if "by" in options:
            raise ConfigError("styled shows one matrix, so `by` cannot be given; name layers or modules, or use table")
        return notebook.styled(self.table(metric, **options), metric)

    def signal(
        self,
        layers: Sequence[int] | None = None,
        modules: Sequence[str] | None = None,
        side: Side | str | None = None,
        space: Space | str = Space.PARAMETERS,
    ) -> pd.DataFrame:
        """The signal and the noise of each task's gradients, one row per task.

        Args:
            layers: Transformer blocks, from 0; None for all that were probed.
            modules: Module names, "attention" or "mlp"; None for all.
            side: "A" or "B"; None for both.
            space: "parameters", or "adam" or "weight" of a run computed with `step="adam"` or `weight_space=True`.

        Returns:
            Columns units, effective (their effective number), loss (mean, nats per token), and the other attributes of
            `metrics.Signal`.

        Raises:
            ScopeError: If the scope is not there, or a task has a single unit.
            MeasurementError: If every gradient in the scope is zero.
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
        """The split-half null: I of one half of a task's units against the other, which should be 1.

        Args:
            layers: Transformer blocks, from 0; None for all that were probed.
            modules: Module names, "attention" or "mlp"; None for all.
            side: "A" or "B"; None for both.
            space: "parameters", or "adam" or "weight" of a run computed with `step="adam"` or `weight_space=True`.
            aggregate: "sum" treats the scope as one theta, "mean" averages the blocks' values.
            **options: `pairs`, `reduce`, `splits`, `level`, `seed`, `groups`; see `uncertainty.split_half_null`.

        Returns:
            One row per task: mean, low and high over the splits.

        Raises:
            ScopeError: If the scope is not there, or a task has fewer than 4 units (groups, where units have them).
            ConfigError: If an option has a value that is not allowed.
        """
        grams = self._theta(Scope(layers, modules, side, space), aggregate)
        options = {"seed": self.seed, "groups": self.groups} | options
        found = uncertainty.split_half_null(grams, list(self.probes["task"]), aggregate=aggregate, **options)
        columns = {name: getattr(found, name) for name in ("mean", "low", "high")}
        return pd.DataFrame(columns, index=pd.Index(found.tasks, name="task"))

    def carriers(self, **scope: Any) -> dict[str, list[list[int]]]:
        """The tasks that a few units carry, as these have more than half of the task's squared gradient norms.

        Args:
            **scope: `layers`, `modules`, `side` and `space`, as in `matrix`.

        Returns:
            {task: the rows of `probes` of every group that carries it, the longest gradients first}.

        Raises:
            ScopeError: If the scope is not there.
        """
        return carried_by(self.gram(**scope), list(self.probes["task"]), self._labels)

    def _cells(self, metric: str, grams: Any, aggregate: Aggregate | str, options: dict[str, Any]) -> pd.DataFrame:
        found = uncertainty.table(grams, list(self.probes["task"]), metric, aggregate=aggregate, **options)
        return frames.tidy(found.columns(), found.tasks)


def load(path: Path | str) -> Run:
    """The run in a directory; neither a model nor torch is needed.

    Args:
        path: The directory.

    Returns:
        The run; its Gram matrices are read from disk when they are needed.

    Raises:
        RunError: If the directory is not a run, is damaged, or is of another version.

    Example:
        >>> import interference
        >>> interference.load("reports/reference/lora").layers
        [0, 1, 2, 3]
    """
    return Run(*storage.read(path))
