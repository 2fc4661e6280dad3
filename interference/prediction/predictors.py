"""Predictors: what a run says about which task helps or hurts which, as a matrix to be tested against training.

A predictor is a function of a Run that returns a matrix [tasks i, tasks j], larger where training with j is said to do
i more good. Only the order within a row, or over all pairs, is tested.

Not here: predictions from real branches (`lookahead`), and the test (`validation`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from interference.blocks import Space
from interference.errors import ConfigError, MeasurementError, ScopeError
from interference.run import Run
from interference.statistics.layout import Array
from mixlora.common.errors import type_of

__all__ = ["progress", "smallness"]
BY_PART = "interference, in "
"""What the name of interference in one part of the model begins with."""
AVERAGED = ", averaged so far"
"""What the name of a prediction ends with that is the mean over the checkpoints up to one."""
_TAKEN = ("interference", "delta", "lookahead")
"""What names of predictions begin with that are made without a user."""
Predictor = Callable[[Run], Any]
"""A function of a run that returns tasks x tasks, as an array or a DataFrame with the tasks' names."""


def of_metric(run: Run, metric: str, **scope: Any) -> pd.DataFrame:
    """A metric of the run in a scope; NaN throughout where it has no gradients there.

    Args:
        run: Of a checkpoint.
        metric: As `Run.matrix` takes it.
        **scope: As `Run.matrix` takes it.

    Returns:
        [tasks, tasks].
    """
    try:
        return run.matrix(metric, **scope)
    except MeasurementError:  # every gradient in the scope is zero, as A's before training
        return pd.DataFrame(np.nan, run.tasks, run.tasks)


def progress(run: Run) -> pd.DataFrame:
    """The share of its own progress that task i keeps where i and j take one normalised step together.

    With the tasks' mean gradients G_i and G_j it is cos(G_i, G_i + G_j): alone, task i would fall by |G_i| a unit of
    length. A large gradient of j takes the step from i, which the interference score does not see.

    Args:
        run: Of a checkpoint.

    Returns:
        [tasks, tasks], rows affected, columns stepped; NaN where a mean gradient is lost in noise.
    """
    inner = products(run)
    own = np.where(np.diagonal(inner) > 0, np.diagonal(inner), np.nan)
    joint = own[:, None] + own[None, :] + inner + inner.T
    kept = (own[:, None] + inner) / np.sqrt(own[:, None] * np.where(joint > 0, joint, np.nan))
    return pd.DataFrame(kept, run.tasks, run.tasks)


def smallness(run: Run) -> pd.DataFrame:
    """Minus the length of j's mean gradient, the same for every i: a control that knows nothing of conflicts.

    Args:
        run: Of a checkpoint.

    Returns:
        [tasks, tasks], rows affected, columns stepped; NaN where a mean gradient is lost in noise.
    """
    own = np.diagonal(products(run))
    length = np.sqrt(np.where(own > 0, own, np.nan))
    return pd.DataFrame(np.tile(-length, (len(length), 1)), run.tasks, run.tasks)


def products(run: Run) -> Array:
    """Inner products of the tasks' mean gradients over all blocks; pairs of units of one group do not count.

    Args:
        run: Of a checkpoint.

    Returns:
        [tasks i, tasks j].
    """
    gram, tasks = run.gram().astype(float), pd.factorize(run.probes["task"])[0]
    groups = np.arange(len(tasks)) if run.groups is None else np.array(run.groups)
    apart = groups[:, None] != groups[None, :]
    member = np.eye(tasks.max() + 1)[tasks]
    found: Array = (member.T @ (gram * apart) @ member) / (member.T @ apart @ member)
    return found


PREDICTORS: Mapping[str, Predictor] = MappingProxyType(
    {
        "interference": partial(of_metric, metric="interference"),
        "delta": partial(of_metric, metric="delta"),
        "cosine": partial(of_metric, metric="cosine"),
        "progress": progress,
        "smallness": smallness,
    }
)
"""The predictors that are always tested, by name."""


def scopes(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts of a model in which interference is also tested: each layer, side and module that was probed.

    Args:
        run: Of a checkpoint.

    Yields:
        What the part is called, and the scope that `Run.matrix` takes.
    """
    for layer in run.layers if len(run.layers) > 1 else []:
        yield f"layer {layer}", {"layers": [layer]}
    for side in run.sides if len(run.sides) > 1 else []:
        yield f"side {side}", {"side": side}
    for module in run.modules if len(run.modules) > 1 else []:
        yield module, {"modules": [module]}


def predicted(name: str, predictor: Predictor, run: Run) -> Array:
    """What a predictor says of a run, [tasks i, tasks j] in the order of the run's tasks.

    Args:
        name: Of the prediction, for errors.
        predictor: A function of a run.
        run: Of a checkpoint.

    Returns:
        [tasks i, tasks j].

    Raises:
        ScopeError: If it returns no such matrix.
    """
    return named(name, predictor(run), run.tasks)


def named(name: str, found: Any, tasks: Sequence[str]) -> Array:
    """A prediction as a matrix [tasks i, tasks j].

    Args:
        name: Of the prediction, for errors.
        found: Such an array, or a DataFrame with the tasks' names in any order.
        tasks: In the order that is wanted.

    Returns:
        The matrix.

    Raises:
        ScopeError: If it is no such matrix.
    """
    if isinstance(found, pd.DataFrame):
        if set(found.index) != set(tasks) or set(found.columns) != set(tasks):
            raise ScopeError(f"prediction {name!r} has rows {list(found.index)}, but the tasks are {list(tasks)}")
        found = found.loc[list(tasks), list(tasks)]
    try:
        matrix = np.asarray(found, dtype=float)
    except (TypeError, ValueError):
        raise ScopeError(f"prediction {name!r} is {type_of(found)}, but must be tasks x tasks") from None
    if matrix.shape != (len(tasks), len(tasks)):
        raise ScopeError(f"prediction {name!r} is {matrix.shape}, but there are {len(tasks)} tasks")
    return matrix


def check(own: Mapping[str, Predictor]) -> None:
    """Check a user's predictors before anything is computed.

    Args:
        own: {name: a predictor}.

    Raises:
        ConfigError: If a name is taken, or a predictor is no function.
    """
    for name, predictor in own.items():
        if not callable(predictor):
            raise ConfigError(f"predictor {name!r} is {type_of(predictor)}, but must be a function of a Run")
        if name in PREDICTORS or not name or name.startswith(_TAKEN) or name.endswith(AVERAGED):
            raise ConfigError(
                f"predictor {name!r} has a name that is taken or kept for others; choose one that does not begin with "
                f"{', '.join(_TAKEN)}"
            )


def matrices(run: Run, own: Mapping[str, Predictor]) -> Iterator[tuple[str, Array]]:
    """Every prediction of a run by name: those always tested, AdamW's step, interference by scope, and a user's.

    Args:
        run: Of one checkpoint.
        own: {name: a user's predictor}.

    Yields:
        Name and matrix [tasks i, tasks j].

    Raises:
        ScopeError: If a user's predictor returns no matrix.
    """
    for name, predictor in {**PREDICTORS, **own}.items():
        yield name, predicted(name, predictor, run)
    if run.meta.get("adam") is not None:
        for metric in ("interference", "delta"):
            yield f"{metric} of AdamW's step", of_metric(run, metric, space=Space.ADAM).to_numpy()
    for words, scope in scopes(run):
        yield f"{BY_PART}{words}", of_metric(run, "interference", **scope).to_numpy()
