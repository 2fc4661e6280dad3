"""Scoped: a run in one scope, as `run[5, "mlp"]` gives it, and what can be written between these brackets.

Not here: which blocks a scope picks (`interference.blocks`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from interference.blocks import Scope, Side, Space
from interference.errors import ScopeError
from interference.run import notebook
from interference.run.measured import Theta
from interference.statistics.estimand import Aggregate
from mixlora.common.errors import type_of

if TYPE_CHECKING:
    import xarray
    from pandas.io.formats.style import Styler

    from interference.run.run import Run


@dataclass(frozen=True)
class Scoped:
    """A run in one scope: its methods are those of `Run` that take a scope, and get it from here.

    Attributes:
        run: The whole run.
        scope: The blocks that count as one theta.
    """

    run: "Run"
    scope: Scope

    def __repr__(self) -> str:
        """The scope, and the run that it is of."""
        options = {name: value for name, value in self.scope.options.items() if value not in (None, Space.PARAMETERS)}
        shown = {name: list(value) if isinstance(value, tuple) else str(value) for name, value in options.items()}
        said = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{self.run!r} in {said or 'all blocks'}"

    def _repr_html_(self) -> str:
        """What a notebook shows: the matrix of this scope."""
        return notebook.html(self.run, self.scope)

    def gram(self) -> NDArray[np.float32]:
        """The Gram matrix of this scope, as `Run.gram` gives it.

        Returns:
            [units, units], float32, squared nats per token.
        """
        return self.run.gram(**self.scope.options)

    def theta(self, aggregate: Aggregate | str = Aggregate.SUM) -> Theta:
        """What the functions of `interference.metrics` take of this scope, as `Run.theta` gives it.

        Args:
            aggregate: "sum" for the sum of the blocks, "mean" for one after another.

        Returns:
            [units, units], or a sequence of them; of AdamW's step with the squared lengths of the steps.
        """
        return self.run.theta(**self.scope.options, aggregate=aggregate)

    def matrix(self, metric: str = "interference", **options: Any) -> pd.DataFrame:
        """A metric for every pair of tasks in this scope, as `Run.matrix` gives it.

        Args:
            metric: A key of `metrics.METRICS`.
            **options: Options of `Run.matrix` but for the scope.

        Returns:
            [tasks, tasks], rows affected, columns stepped.
        """
        return self.run.matrix(metric, **self._with(options))

    def table(self, metric: str = "interference", **options: Any) -> pd.DataFrame:
        """The cells of `matrix` with intervals and verdicts, as `Run.table` gives them.

        Args:
            metric: A key of `metrics.METRICS`.
            **options: Options of `Run.table` but for the scope.

        Returns:
            One row per cell, with the columns of `Run.table`.
        """
        return self.run.table(metric, **self._with(options))

    def carriers(self) -> dict[str, list[list[int]]]:
        """The tasks that a few units carry in this scope, as `Run.carriers` gives them.

        Returns:
            {task: rows of `probes`}.
        """
        return self.run.carriers(**self.scope.options)

    def signal(self) -> pd.DataFrame:
        """The signal of each task in this scope, as `Run.signal` gives it.

        Returns:
            One row per task.
        """
        return self.run.signal(**self.scope.options)

    def null(self, **options: Any) -> pd.DataFrame:
        """The split-half null in this scope, as `Run.null` gives it.

        Args:
            **options: Options of `Run.null` but for the scope.

        Returns:
            One row per task: mean, low and high.
        """
        return self.run.null(**self._with(options))

    def styled(self, metric: str = "interference", **options: Any) -> "Styler":
        """The matrix of this scope in the report's colours, as `Run.styled` gives it.

        Args:
            metric: A key of `metrics.METRICS`.
            **options: Options of `Run.styled` but for the scope.

        Returns:
            A pandas Styler over `matrix`.
        """
        return self.run.styled(metric, **self._with(options))

    def to_xarray(self, metric: str | Sequence[str] = "interference", **options: Any) -> "xarray.Dataset":
        """The cells of this scope as a Dataset, as `Run.to_xarray` gives them.

        Args:
            metric: A key of `metrics.METRICS`, or several.
            **options: Options of `Run.to_xarray` but for the scope.

        Returns:
            The Dataset.
        """
        return self.run.to_xarray(metric, **self._with(options))

    def _with(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The scope beside other options; a ScopeError where they name a scope, too."""
        if named := [name for name in self.scope.options if name in options]:
            raise ScopeError(f"the scope is that of run[...], so {named[0]} cannot be given again; name it in brackets")
        return {**self.scope.options, **options}


def scope_of(key: Any) -> Scope:
    """The scope that a key names.

    Args:
        key: A layer (int), a module or group, a side, "weight" or "adam" (str), or several of these.

    Returns:
        The scope.

    Raises:
        ScopeError: if the key holds anything else or an empty list, or names two sides.
    """
    layers: list[int] = []
    modules: list[str] = []
    sides: list[Side] = []
    space = Space.PARAMETERS
    if any(isinstance(part, list | range) and not part for part in (key if isinstance(key, tuple) else (key,))):
        raise ScopeError("run[...] names an empty list, which is not a scope; name layers or modules, or leave it out")
    for part in _flat(key):
        if isinstance(part, int | np.integer) and not isinstance(part, bool):
            layers.append(int(part))
        elif not isinstance(part, str):
            raise ScopeError(f"run[...] takes layers, modules and sides, but {part!r} is {type_of(part)}")
        elif part in (Space.WEIGHT, Side.W):
            space = Space.WEIGHT
        elif part == Space.ADAM:
            space = Space.ADAM
        elif part in list(Side):
            sides.append(Side(part))
        else:
            modules.append(part)
    if len(sides) > 1:
        raise ScopeError(f"run[...] names {len(sides)} sides ({', '.join(sides)}); name one, or none for all")
    return Scope(layers or None, modules or None, sides[0] if sides else None, space)


def _flat(key: Any) -> list[Any]:
    parts = key if isinstance(key, tuple) else (key,)
    return [one for part in parts for one in (part if isinstance(part, list | range) else [part])]


def keys_of(layers: Sequence[int], modules: Sequence[str], sides: Sequence[str]) -> list[Any]:
    """What IPython offers between the brackets: layers, modules, sides, and pairs of them.

    Args:
        layers: That were probed.
        modules: Names of modules and groups.
        sides: That were probed.

    Returns:
        Keys that `run[...]` takes.
    """
    names = [*modules, *sides]
    return [*layers, *names, *product(layers, names), *product(modules, sides)]
