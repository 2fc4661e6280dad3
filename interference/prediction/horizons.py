"""Horizons: what a lookahead found, as an artifact on disk, with tables at every number of steps. No model, no torch.

On disk it is a directory: `lookahead.json` (how it was computed: recipe, steps, seeds, configuration),
`examples.parquet` (task, id, source, group, tokens and the loss before any step; one row per held-out example)
and `losses.safetensors` (the losses after every branch, [seeds, tasks, steps, examples]). It is whole or absent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import save_file

from interference.errors import RunError, ScopeError
from interference.run import Run, record
from interference.statistics.falls import Falls, falls, ratios
from mixlora.common import directories
from mixlora.common.files import expanded, is_file, without_dots

SCHEMA = 1
MARKER = "lookahead.json"
"""The file by which such a directory is recognised."""
_EXAMPLES, _LOSSES = "examples.parquet", "losses.safetensors"
_TEXTS, _NUMBERS = ("task", "id", "source"), ("group", "tokens", "loss")
_CELLS = ("value", "low", "high", "p", "q", "verdict")


@dataclass(frozen=True)
class Lookahead:
    """Losses of held-out examples along branches of single tasks from a checkpoint.

    Attributes:
        examples: One row per example: task, id, source, group, tokens, and its loss at the checkpoint.
        losses: [seeds, tasks, steps, examples], nats per token: of every example after each branch.
        meta: Recipe, steps, seeds, config, adapter, loss, data, fingerprints, versions.
    """

    examples: pd.DataFrame
    losses: NDArray[np.float64]
    meta: Mapping[str, Any]

    def __repr__(self) -> str:
        steps = ", ".join(map(str, self.steps))
        counts = ", ".join(f"{task} {count}" for task, count in self.examples["task"].value_counts(sort=False).items())
        return f"Lookahead({len(self.seeds)} seeds; {steps} steps; {len(self.examples)} examples: {counts})"

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order of the configuration: stepped and affected ones."""
        return list(dict.fromkeys(self.examples["task"]))

    @property
    def steps(self) -> list[int]:
        """Numbers of steps after which losses were read, ascending."""
        return list(self.meta["steps"])

    @property
    def seeds(self) -> list[int]:
        """The seed of every branch along a task."""
        return list(self.meta["seeds"])

    def table(self, metric: str = "interference", steps: int | None = None, level: float = 0.95) -> pd.DataFrame:
        """A metric of every pair of tasks with intervals over seeds and examples, tidy.

        Delta is the fall of the affected task's mean loss along the stepped task's branch. Interference is that fall
        over the fall along the affected task's own branch.

        Args:
            metric: "interference" or "delta".
            steps: Only after this number of steps; None for every one.
            level: Of the intervals.

        Returns:
            One row per number of steps and pair of tasks, with steps, affected, stepped, value, low, high, p, q and
            verdict. As in the table of a run, p, q and verdict are about Delta.

        Raises:
            ScopeError: If there is no such metric or number of steps.
            ConfigError: If the level is not a share.
        """
        frames = []
        for each in self.steps if steps is None else [steps]:
            cells = self._falls(each, level).cells(metric)
            pairs = pd.MultiIndex.from_product([self.tasks, self.tasks], names=["affected", "stepped"]).to_frame(False)
            frames.append(pairs.assign(**{name: cells[name].ravel() for name in _CELLS}))
            frames[-1].insert(0, "steps", each)
        return pd.concat(frames, ignore_index=True)

    def matrix(self, metric: str = "interference", steps: int | None = None) -> pd.DataFrame:
        """A metric as a matrix: rows are affected tasks, columns stepped ones.

        Args:
            metric: "interference" or "delta".
            steps: After this number of steps; None for the largest.

        Returns:
            Tasks x tasks.

        Raises:
            ScopeError: If there is no such metric or number of steps.
        """
        values = self._falls(self.steps[-1] if steps is None else steps, 0.95).cells(metric)["value"]
        axes = pd.Index(self.tasks, name="affected"), pd.Index(self.tasks, name="stepped")
        return pd.DataFrame(values, *axes)

    def resamples(self, steps: int) -> NDArray[np.float64]:
        """Resamples of interference, over seeds and examples.

        Args:
            steps: After this number of steps.

        Returns:
            [replicates, tasks i, tasks j].

        Raises:
            ScopeError: If there is no such number of steps.
        """
        return np.asarray(ratios(self._falls(steps, 0.95).draws), dtype=float)

    def branches(self) -> pd.DataFrame:
        """The loss of every held-out example after every branch, tidy: what intervals of your own are made of.

        Returns:
            One row per seed, stepped task, number of steps and example: seed, stepped, steps, affected, id, group,
            loss, and before, its loss at the checkpoint.
        """
        seed, stepped, steps, example = (axis.ravel() for axis in np.indices(self.losses.shape))
        own = self.examples.rename(columns={"task": "affected", "loss": "before"})
        rows = own[["affected", "id", "group", "before"]].iloc[example].reset_index(drop=True)
        axes = {"seed": (self.seeds, seed), "stepped": (self.tasks, stepped), "steps": (self.steps, steps)}
        named = pd.DataFrame({name: np.array(values)[place] for name, (values, place) in axes.items()})
        return pd.concat([named, rows.assign(loss=self.losses.ravel())], axis=1)

    def save(self, out: Path | str) -> None:
        """Write it to a directory that does not exist yet: to a temporary name, synced, renamed.

        Args:
            out: The directory.

        Raises:
            RunError: If `out` exists or cannot be written.
        """
        out = expanded(out)
        check_free(out)
        with record.saving(out, "the lookahead") as folder:
            self.examples.to_parquet(folder / _EXAMPLES, index=False)
            save_file({"losses": np.ascontiguousarray(self.losses)}, folder / _LOSSES)
            sums = {name: record.checksum(folder / name) for name in (_EXAMPLES, _LOSSES)}
            record.write_meta(folder / MARKER, {"schema": SCHEMA, **self.meta, "checksums": sums})

    @cached_property
    def _known(self) -> dict[tuple[int, float], Falls]:
        return {}

    def _falls(self, steps: int, level: float) -> Falls:
        if steps not in self.steps:
            raise ScopeError(f"losses were read after {', '.join(map(str, self.steps))} steps, not after {steps}")
        if (steps, level) not in self._known:
            fallen = self.examples["loss"].to_numpy() - self.losses[:, :, self.steps.index(steps)]
            tasks, groups = self.examples["task"].tolist(), self.examples["group"].tolist()
            self._known[steps, level] = falls(fallen, tasks, groups, level=level, seed=int(self.meta.get("seed", 0)))
        return self._known[steps, level]


def load(path: Path | str) -> Lookahead:
    """The lookahead that was saved to a directory; neither a model nor torch is needed.

    Args:
        path: The directory, as `interference lookahead` or `Lookahead.save` wrote it.

    Returns:
        What was found.

    Raises:
        RunError: If the directory holds no lookahead, is damaged, or has another version.
    """
    folder = expanded(path)
    if not folder.is_dir():
        raise RunError(f"there is no lookahead at {folder}")
    for name in (MARKER, _EXAMPLES, _LOSSES):
        if not (folder / name).is_file():
            raise RunError(f"{folder} holds no lookahead: it has no {name}")
    meta = meta_of(folder)
    record.check_sums(folder, meta.pop("checksums", None) or {}, (_EXAMPLES, _LOSSES))
    examples = record.read_frame(folder / _EXAMPLES, _TEXTS, _NUMBERS)
    losses = record.read_tensors(folder / _LOSSES, np.floating).get("losses")
    found = Lookahead(examples, np.empty(0) if losses is None else losses.astype(np.float64), meta)
    _check_whole(folder, found)
    return found


def meta_of(folder: Path) -> dict[str, Any]:
    """What `lookahead.json` of a directory tells.

    Args:
        folder: The directory.

    Returns:
        How the lookahead was computed.

    Raises:
        RunError: If it cannot be read, is damaged, or has another version.
    """
    return record.read_meta(folder / MARKER, SCHEMA, "lookahead")


def beside(path: Path, run: Run) -> tuple[Lookahead | None, str]:
    """The lookahead beside a run's directory, as `interference lookahead` puts it there; else why it is not shown.

    Args:
        path: The run's directory.
        run: It.

    Returns:
        The lookahead, or None; and a sentence without full stop, "" where there is nothing to tell.
    """
    path = without_dots(path.absolute())
    place = path.with_name(f"{path.name}-lookahead")
    if not is_file(place / MARKER):
        return None, ""
    try:
        found = load(place)
    except RunError as error:
        return None, f"The lookahead beside it is not shown: {error}"
    own, theirs = ((meta.get("fingerprints") or {}).get("model") for meta in (run.meta, found.meta))
    if own != theirs or own is None:
        return None, f"The lookahead in {place} is not shown: it is of another checkpoint"
    return found, ""


def check_free(out: Path) -> None:
    """Raise a RunError if `out` exists already."""
    directories.check_free(out, MARKER, "a lookahead", "holds something else")


def _check_whole(folder: Path, found: Lookahead) -> None:
    """Raise a RunError that names the file in which something is missing or impossible."""
    for key in ("steps", "seeds"):
        if not _are_ascending(found.meta.get(key)):
            raise RunError(f"{folder / MARKER} is damaged: its {key!r} are not ascending numbers; compute it again")
    if not _are_told(found.meta.get("recipe"), found.meta.get("trained_on")):
        raise RunError(f"{folder / MARKER} is damaged: its 'recipe' or 'trained_on' is not whole; compute it again")
    examples = found.examples
    if not len(examples) or examples[["task", "group", "loss"]].isna().any(axis=None):
        raise RunError(f"{folder / _EXAMPLES} is damaged: a task, group or loss is missing")
    wanted = (len(found.seeds), len(found.tasks), len(found.steps), len(examples))
    if found.losses.shape != wanted or not np.isfinite(found.losses).all():
        raise RunError(
            f"{folder / _LOSSES} is damaged: it has no loss of every seed, task, number of steps and example"
        )
    if examples.groupby("task")["group"].nunique().min() < 2 or len(found.seeds) < 2:
        raise RunError(f"{folder / _EXAMPLES} is damaged: a task has fewer than two groups, or there is a single seed")


def _are_told(recipe: Any, trained_on: Any) -> bool:
    """Whether a recipe has its numbers, and every task what it was trained on."""
    if not isinstance(recipe, Mapping) or not isinstance(trained_on, Mapping):
        return False
    numbers = [recipe.get(name) for name in ("learning_rate", "batch_size", "weight_decay", "max_grad_norm")]
    texts = [recipe.get("of")]
    for own in trained_on.values():
        known = own if isinstance(own, Mapping) else {}
        numbers += [known.get("examples"), known.get("left_out")]
        texts.append(known.get("from"))
    whole = all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers)
    return whole and all(isinstance(value, str) for value in texts)


def _are_ascending(values: Any) -> bool:
    """Whether a value is a list of at least one whole number, each larger than the one before."""
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        return False
    if any(isinstance(value, bool) or not isinstance(value, int) for value in values):
        return False
    return all(after > before for before, after in pairwise(values))
