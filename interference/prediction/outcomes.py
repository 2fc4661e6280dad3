"""Outcomes: what trainings on sets of tasks did to every task's held-out loss, as an artifact on disk. No model.

On disk it is a directory: `outcomes.json` (how it was computed), `examples.parquet` (task, id, source, group, tokens;
one row an example that is held out) and `losses.safetensors`: `losses` after every training [seeds, sets, horizons,
examples] and `before` any step [seeds, examples]. It is whole or absent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import save_file

from interference.config import Truth
from interference.errors import RunError, ScopeError
from interference.prediction.truth import gains
from interference.run import record
from interference.statistics.falls import Falls, falls

SCHEMA = 1
MARKER = "outcomes.json"
"""The file by which such a directory is recognised."""
_EXAMPLES, _LOSSES = "examples.parquet", "losses.safetensors"
_TEXTS, _NUMBERS = ("task", "id", "source"), ("group", "tokens")


@dataclass(frozen=True)
class Outcomes:
    """Losses of held-out examples after trainings on sets of tasks.

    Attributes:
        examples: One row an example: task, id, source, group, tokens.
        losses: [seeds, sets, horizons, examples], nats per token.
        before: [seeds, examples], before any step.
        meta: `tasks`, `sets` (lists of tasks), `horizons`, `seeds`, `truth` (kinds), `share`, recipe, versions.
    """

    examples: pd.DataFrame
    losses: NDArray[np.float64]
    before: NDArray[np.float64]
    meta: Mapping[str, Any]

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order of the configuration."""
        return list(self.meta["tasks"])

    @property
    def horizons(self) -> list[int]:
        """Numbers of steps after which losses were read, ascending."""
        return list(self.meta["horizons"])

    @property
    def seeds(self) -> list[int]:
        """The seed of every training of a set."""
        return list(self.meta["seeds"])

    @property
    def kinds(self) -> list[Truth]:
        """The comparisons that the trainings allow."""
        return [Truth(kind) for kind in self.meta["truth"]]

    def gains(self, kind: Truth | str, horizon: int) -> NDArray[np.float64]:
        """By how much a task's presence in training lowers the loss of every example.

        Args:
            kind: "pairs" or "leave-one-out".
            horizon: Steps of training.

        Returns:
            [seeds, tasks j, examples], nats per token.

        Raises:
            ScopeError: If no such comparison was trained, or no loss was read after these steps.
        """
        if kind not in self.kinds:
            raise ScopeError(f"{kind!r} was not trained; there is {', '.join(self.kinds)}")
        if horizon not in self.horizons:
            raise ScopeError(f"losses were read after {', '.join(map(str, self.horizons))} steps, not after {horizon}")
        at = self.horizons.index(horizon)
        by_set = {frozenset(own): self.losses[:, k, at] for k, own in enumerate(self.meta["sets"])}
        return gains({frozenset(): self.before, **by_set}, self.tasks, list(self.examples["task"]), Truth(kind))

    def truth(self, kind: Truth | str, horizon: int) -> NDArray[np.float64]:
        """T, what task j did to task i, for every seed.

        Args:
            kind: "pairs" or "leave-one-out".
            horizon: Steps of training.

        Returns:
            [seeds, tasks i, tasks j], nats per token; above 0 where j helped. The diagonal is a task's own fall.

        Raises:
            ScopeError: As `gains`.
        """
        found, owner = self.gains(kind, horizon), self.examples["task"].to_numpy()
        return np.stack([found[:, :, owner == task].mean(axis=2) for task in self.tasks], axis=1)

    def falls(self, kind: Truth | str, horizon: int, level: float = 0.95) -> Falls:
        """T over all seeds, with intervals over seeds and examples.

        Args:
            kind: "pairs" or "leave-one-out".
            horizon: Steps of training.
            level: Of the intervals.

        Returns:
            The values and resamples [tasks i, tasks j].

        Raises:
            ScopeError: As `gains`.
        """
        tasks, groups = list(self.examples["task"]), list(self.examples["group"])
        return falls(self.gains(kind, horizon), tasks, groups, level=level, seed=int(self.meta.get("seed", 0)))

    def save(self, out: Path) -> None:
        """Write it to a directory that does not exist yet: to a temporary name, synced, renamed.

        Args:
            out: The directory.

        Raises:
            RunError: If it cannot be written.
        """
        with record.saving(out, "the outcomes") as folder:
            self.examples.to_parquet(folder / _EXAMPLES, index=False)
            values = {"losses": self.losses, "before": self.before}
            save_file({name: np.ascontiguousarray(value) for name, value in values.items()}, folder / _LOSSES)
            sums = {name: record.checksum(folder / name) for name in (_EXAMPLES, _LOSSES)}
            record.write_meta(folder / MARKER, {"schema": SCHEMA, **self.meta, "checksums": sums})


def load(folder: Path) -> Outcomes:
    """The outcomes that were saved to a directory.

    Args:
        folder: As `Outcomes.save` wrote it.

    Returns:
        What was found.

    Raises:
        RunError: If it is damaged, or of another version.
    """
    meta = record.read_meta(folder / MARKER, SCHEMA, "validation")
    record.check_sums(folder, meta.pop("checksums", None) or {}, (_EXAMPLES, _LOSSES))
    examples = record.read_frame(folder / _EXAMPLES, _TEXTS, _NUMBERS)
    arrays = record.read_tensors(folder / _LOSSES, np.floating)
    empty = np.empty(0)
    found = Outcomes(examples, arrays.get("losses", empty), arrays.get("before", empty), meta)
    _check_whole(folder, found)
    return found


def _check_whole(folder: Path, found: Outcomes) -> None:
    """Raise a RunError that names the file in which something is missing or impossible."""
    lists = {key: found.meta.get(key) for key in ("tasks", "sets", "horizons", "seeds", "truth")}
    if broken := [key for key, value in lists.items() if not isinstance(value, list) or not value]:
        raise RunError(f"{folder / MARKER} is damaged: its {broken[0]!r} is not whole; compute it again")
    if set(found.examples["task"]) != set(found.tasks) or found.examples.isna().any(axis=None):
        raise RunError(f"{folder / _EXAMPLES} is damaged: a task or value is missing; compute it again")
    shapes = (len(found.seeds), len(found.meta["sets"]), len(found.horizons), len(found.examples))
    if found.losses.shape != shapes or found.before.shape != shapes[::3] or not np.isfinite(found.losses).all():
        raise RunError(f"{folder / _LOSSES} is damaged: a loss is missing; compute it again")
