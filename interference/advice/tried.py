"""Tried: what came of the arms of a trial, as an artifact on disk, with tables. No model, no torch.

On disk it is a directory: `trial.json` (arms, groups, recipe, how it was computed), `examples.parquet` (task, id,
source, group, tokens; one row an example that is held out) and `losses.safetensors`: `losses` and `right` (1 where the
answer is exact) after every arm [seeds, arms, examples]. It is whole or absent.

Not here: which arms there are (`arms`), and their trainings (`trial`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import save_file

from interference.advice.arms import ADVISED, RANDOM, TOGETHER, WEIGHED
from interference.errors import RunError, ScopeError
from interference.prediction.holding import measured
from interference.run import Run, record
from interference.run.phrases import counted, interval, number
from interference.statistics.averages import Average, Drawn, average
from mixlora.common.files import expanded, is_file, without_dots

SCHEMA = 1
MARKER = "trial.json"
"""The file by which such a directory is recognised."""
_EXAMPLES, _LOSSES = "examples.parquet", "losses.safetensors"
_TEXTS, _NUMBERS = ("task", "id", "source"), ("group", "tokens")
_ENDS = ("", "_low", "_high")


@dataclass(frozen=True)
class Trial:
    """Held-out losses and exact answers after every arm.

    Attributes:
        examples: One row an example: task, id, source, group, tokens.
        losses: [seeds, arms, examples], nats per token.
        right: [seeds, arms, examples], 1 where the answer is exact, else 0.
        meta: `arms` (name, groups, parameters), `among` (how many splits there are into groups of these sizes but the
            advised one), steps, share, seeds, recipe, runs, versions.
    """

    examples: pd.DataFrame
    losses: NDArray[np.float64]
    right: NDArray[np.float64]
    meta: Mapping[str, Any]

    def __repr__(self) -> str:
        steps = counted(int(self.meta["steps"]), "step")
        return f"Trial({len(self.arms)} arms of {steps} x {len(self.losses)} seeds; {len(self.examples)} examples)"

    @property
    def arms(self) -> list[str]:
        """Names of the arms."""
        return [str(arm["name"]) for arm in self.meta["arms"]]

    @property
    def random(self) -> list[int]:
        """The places of the arms of random groups."""
        return [k for k, name in enumerate(self.arms) if name.startswith(RANDOM)]

    @property
    def outcome(self) -> "Outcome | None":
        """The advised groups against the mean of random ones; None where there are not both."""
        if ADVISED not in self.arms or not self.random:
            return None
        row = self.table().set_index("arm").loc[[ADVISED]]
        value, low, high = (float(row[f"against_random{end}"].iloc[0]) for end in _ENDS)
        return Outcome(value, low, high, len(self.random), int(self.meta["among"]))

    @property
    def words(self) -> str:
        """What came of the advised groups, in a sentence."""
        if self.outcome is not None:
            return self.outcome.words
        if ADVISED in self.arms:
            return "There is no other split into groups of the same sizes that the advised one could be compared with."
        return "No split was advised, so none was compared with random ones."

    @property
    def weights_withdrawn(self) -> str:
        """Why the advised weights are withdrawn, in a sentence; "" where they surely helped, or were not tried."""
        if WEIGHED not in self.arms:
            return ""
        row = self.table().set_index("arm").loc[[WEIGHED]]
        value, low, high = (float(row[f"against_together{end}"].iloc[0]) for end in _ENDS)
        if low > 0:
            return ""
        lost = "raised" if high < 0 else "did not surely lower"
        return (
            f"The advised weights of the losses {lost} the held-out loss ({_compared(value, low, high)} nats per token "
            "than without them), so they are withdrawn."
        )

    @property
    def best(self) -> str:
        """Which arm but random groups has the lowest held-out loss of those surely below all tasks together."""
        table = self.table()
        surer = table[~table["arm"].str.startswith(RANDOM) & (table["against_together_low"] > 0)]
        if surer.empty:
            return "No way to train them is surely better than to train all tasks together."
        row = surer.loc[[surer["loss"].idxmin()]].to_dict("records")[0]
        gain, low, high = (float(row[f"against_together{end}"]) for end in _ENDS)
        return (
            f"The lowest held-out loss that is surely below that of all tasks together is that of: {row['arm']}, by "
            f"{number(gain)} {interval(low, high)} nats per token."
        )

    def table(self, task: str | None = None, level: float = 0.95) -> pd.DataFrame:
        """Every arm's held-out loss and exact answers, as a mean over tasks, and its gain over others.

        Args:
            task: Of this task alone; None for the mean over tasks.
            level: Of the intervals, over seeds and groups of examples; against random groups also over the draw of
                these.

        Returns:
            One row an arm, and one for the mean of the random groups: arm, adapters, parameters (trained, of all its
            adapters), then with their intervals (NAME_low, NAME_high) loss (nats per token) and right (share of exact
            answers), against_random and against_together: by how much the loss is lower than the mean of random groups,
            and than that of all tasks together. NaN where there are none, and of the mean of random groups for itself.

        Raises:
            ScopeError: If there is no such task.
            ConfigError: If the level is no share.
        """
        chosen = np.ones(len(self.examples), dtype=bool) if task is None else self._of(task)
        losses, right = self._with_mean(self.losses), self._with_mean(self.right)
        names = [*self.arms, *([f"{RANDOM}, mean"] if self.random else [])]
        columns: dict[str, Any] = {"arm": names, "adapters": self._told("groups"), "parameters": self._told(None)}
        found = {"loss": self._average(losses, chosen, level), "right": self._average(right, chosen, level)}
        reference = losses[:, self.random].mean(axis=1, keepdims=True) if self.random else losses[:, :1] * np.nan
        found["against_random"] = self._average(reference - losses, chosen, level, self._drawn(chosen, level))
        together = losses[:, [self.arms.index(TOGETHER)]]
        found["against_together"] = self._average(together - losses, chosen, level)
        for name, own in found.items():
            columns |= {
                f"{name}{end}": values for end, values in zip(_ENDS, (own.value, own.low, own.high), strict=True)
            }
        return self._without_itself(pd.DataFrame(columns))

    def by_task(self, level: float = 0.95) -> pd.DataFrame:
        """The rows of `table` of every task, with a column task.

        Args:
            level: Of the intervals.

        Returns:
            The rows, task by task.

        Raises:
            ConfigError: If the level is no share.
        """
        tasks = dict.fromkeys(self.examples["task"])
        return pd.concat([self.table(task, level).assign(task=task) for task in tasks], ignore_index=True)

    def _of(self, task: str) -> NDArray[np.bool_]:
        chosen: NDArray[np.bool_] = (self.examples["task"] == task).to_numpy()
        if not chosen.any():
            raise ScopeError(f"there is no task {task!r}; there is {', '.join(dict.fromkeys(self.examples['task']))}")
        return chosen

    def _with_mean(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values of every arm, and last the mean of the random groups, where there are any."""
        if not self.random:
            return values
        return np.concatenate([values, values[:, self.random].mean(axis=1, keepdims=True)], axis=1)

    def _told(self, key: str | None) -> list[float]:
        """A number of every arm, and nothing for the mean of the random groups."""
        own = [len(arm["groups"]) if key else arm["parameters"] for arm in self.meta["arms"]]
        return [*own, *([np.nan] if self.random else [])]

    def _average(
        self, values: NDArray[np.float64], chosen: NDArray[np.bool_], level: float, drawn: Drawn | None = None
    ) -> Average:
        rows = self.examples[chosen]
        return average(values[:, :, chosen], list(rows["task"]), list(rows["group"]), drawn=drawn, level=level)

    def _drawn(self, chosen: NDArray[np.bool_], level: float) -> Drawn | None:
        """The random groups, as a draw from all that there are."""
        if not self.random:
            return None
        return Drawn(self._average(self.losses[:, self.random], chosen, level).value, int(self.meta["among"]))

    def _without_itself(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table without differences of a row to itself."""
        for column, name in (("against_random", f"{RANDOM}, mean"), ("against_together", TOGETHER)):
            table.loc[table["arm"] == name, [f"{column}{end}" for end in _ENDS]] = np.nan
        return table

    def save(self, out: Path) -> None:
        """Write it to a directory that does not exist yet: to a temporary name, synced, renamed.

        Args:
            out: The directory.

        Raises:
            RunError: If it cannot be written.
        """
        with record.saving(out, "the trial") as folder:
            self.examples.to_parquet(folder / _EXAMPLES, index=False)
            values = {"losses": self.losses, "right": self.right}
            save_file({name: np.ascontiguousarray(value) for name, value in values.items()}, folder / _LOSSES)
            sums = {name: record.checksum(folder / name) for name in (_EXAMPLES, _LOSSES)}
            record.write_meta(folder / MARKER, {"schema": SCHEMA, **self.meta, "checksums": sums})


@dataclass(frozen=True)
class Outcome:
    """By how much the held-out loss of the advised groups is lower than the mean of random ones, nats per token.

    Attributes:
        value: the difference; above 0 the advised groups are better.
        low: lower end of its interval.
        high: upper end.
        count: random splits.
        among: how many there are.
    """

    value: float
    low: float
    high: float
    count: int
    among: int

    @property
    def helps(self) -> bool:
        """Whether the advised groups surely beat random ones."""
        return self.low > 0

    @property
    def words(self) -> str:
        """The outcome in a sentence."""
        of_all = f"all {self.among} other splits" if self.count == self.among else f"{self.count} random splits"
        said = f"{number(abs(self.value))} {interval(self.low, self.high)}"
        if self.helps:
            return (
                f"The advised groups beat {of_all} into groups of the same sizes: their held-out loss is {said} nats "
                "per token lower than the mean of these."
            )
        lost = "lost to" if self.high < 0 else "did not surely beat"
        return (
            f"The advised groups {lost} {of_all} into groups of the same sizes (held-out loss "
            f"{_compared(self.value, self.low, self.high)} nats per token), so the split is withdrawn."
        )


def _compared(gain: float, low: float, high: float) -> str:
    """By how much a loss is lower, or higher where the gain is below 0, with its interval."""
    if gain < 0:
        return f"higher by {number(-gain)} {interval(-high, -low)}"
    return f"lower by {number(gain)} {interval(low, high)}"


def load(path: Path | str) -> Trial:
    """The trial that was saved to a directory; neither a model nor torch is needed.

    Args:
        path: The directory, as `interference advise --train` wrote it.

    Returns:
        What was found.

    Raises:
        RunError: If the directory holds no trial, is damaged, or has another version.
    """
    folder = expanded(path)
    for name in (MARKER, _EXAMPLES, _LOSSES):
        if not (folder / name).is_file():
            raise RunError(f"{folder} holds no trial: it has no {name}")
    meta = record.read_meta(folder / MARKER, SCHEMA, "trial")
    record.check_sums(folder, meta.pop("checksums", None) or {}, (_EXAMPLES, _LOSSES))
    examples = record.read_frame(folder / _EXAMPLES, _TEXTS, _NUMBERS)
    arrays, empty = record.read_tensors(folder / _LOSSES, np.floating), np.empty(0)
    found = Trial(examples, arrays.get("losses", empty), arrays.get("right", empty), meta)
    _check_whole(folder, found)
    return found


def _check_whole(folder: Path, found: Trial) -> None:
    """Raise a RunError that names the file in which something is missing or impossible."""
    try:
        names = found.arms
        shape = (len(found.meta["seeds"]), len(names), len(found.examples))
        whole = TOGETHER in names and all(len(arm["groups"]) and arm["parameters"] > 0 for arm in found.meta["arms"])
        whole = whole and int(found.meta["steps"]) > 0 and int(found.meta["among"]) >= len(found.random)
    except (LookupError, TypeError, ValueError):
        whole = False
    if not whole:
        raise RunError(f"{folder / MARKER} is damaged: its arms are not whole; compute it again")
    if found.examples.isna().any(axis=None) or found.examples.groupby("task")["group"].nunique().min() < 2:
        raise RunError(f"{folder / _EXAMPLES} is damaged: a value or a group is missing; compute it again")
    if found.losses.shape != shape or found.right.shape != shape or not np.isfinite(found.losses + found.right).all():
        raise RunError(f"{folder / _LOSSES} is damaged: a loss or an answer is missing; compute it again")


def place_of(advice: Path) -> Path:
    """Where the trial of an advice goes: beside it, under its name with "-trial".

    Args:
        advice: The directory of the advice.

    Returns:
        The directory of its trial.
    """
    return advice.with_name(f"{advice.name}-trial")


def beside(path: Path, run: Run) -> tuple[Trial | None, str]:
    """The trial of the advice beside a run, where that is of a run of this content.

    Args:
        path: The run's directory.
        run: It.

    Returns:
        The trial, or None; and a clause that says why it is not shown, "" where there is nothing to tell.
    """
    path = without_dots(path.absolute())
    place = place_of(path.with_name(f"{path.name}-advice"))
    if not is_file(place / MARKER):
        return None, ""
    try:
        found = load(place)
    except RunError as error:
        return None, f"the trial beside it is not shown: {error}"
    own = list(measured(run.meta))
    if own[0] is None or own not in [list(each) for each in found.meta.get("runs") or []]:
        return None, f"the trial in {place} is not shown: it is of another checkpoint, or of other examples or blocks"
    return found, ""


def words(path: Path, run: Run) -> list[str]:
    """What a reader of a run's matrix must know of the trial of its advice; nothing where there is none.

    Args:
        path: The run's directory.
        run: It.

    Returns:
        Clauses.
    """
    found, why = beside(path, run)
    if found is None:
        return [why] if why else []
    return [f"a trial of its advice: {found.words.rstrip('.')}"]
