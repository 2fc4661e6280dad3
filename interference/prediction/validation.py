"""Validation: does the matrix say what training does? Predictions beside the truth, as an artifact on disk. No model.

On disk it is a directory, in which a job works from the beginning:

    OUT/job.json               what the results depend on
    OUT/outcomes/              what trainings on sets of tasks did, the truth
    OUT/runs/step-N/           the run of every checkpoint, and step-N-lookahead beside it
    OUT/predictions.parquet    prediction, step, affected, stepped, value; one row a cell
    OUT/validation.json        written last: the validation is whole

Not here: how they are computed (`validate`), and the scores (`statistics.ranking`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from interference.config import Truth
from interference.errors import RunError, ScopeError
from interference.prediction import outcomes
from interference.prediction.outcomes import Outcomes
from interference.prediction.predictors import AVERAGED, BY_PART, named
from interference.run import record
from interference.statistics.layout import Array
from interference.statistics.ranking import SCORE, SCORES, Ranking, Score
from mixlora.common.files import expanded
from mixlora.common.writing import whole_file

SCHEMA = 1
MARKER, OUTCOMES, RUNS, PREDICTIONS = "validation.json", "outcomes", "runs", "predictions.parquet"
_TEXTS, _NUMBERS = ("prediction", "affected", "stepped"), ("step", "value")


@dataclass(frozen=True)
class Validation:
    """What trainings did to every task's loss, and what was predicted.

    Attributes:
        outcomes: The truth.
        predictions: One row a cell: prediction, step (of the checkpoint), affected, stepped, value.
        meta: How the predictions were made.
    """

    outcomes: Outcomes
    predictions: pd.DataFrame
    meta: Mapping[str, Any]

    def __repr__(self) -> str:
        made, known = self.predictions, self.outcomes
        return (
            f"Validation({len(known.tasks)} tasks; {len(known.meta['sets'])} sets x {len(known.seeds)} seeds; "
            f"{made['prediction'].nunique()} predictions at {made['step'].nunique()} checkpoints)"
        )

    def truth(self, kind: Truth | str = Truth.PAIRS, horizon: int | None = None, level: float = 0.95) -> pd.DataFrame:
        """T, by how much training with a task lowers the loss of another, with intervals over seeds and examples.

        Args:
            kind: "pairs" (alone, and with the other) or "leave-one-out" (all, and all but the other).
            horizon: Steps of training; None for every one.
            level: Of the intervals.

        Returns:
            One row a horizon and pair of tasks, with horizon, affected, stepped, value (nats per token; above 0 where
            it helped), low, high, p, q, verdict. The diagonal is a task's own fall.

        Raises:
            ScopeError: If no such comparison was trained.
            ConfigError: If the level is no share.
        """
        frames, tasks = [], self.outcomes.tasks
        for each in self.outcomes.horizons if horizon is None else [horizon]:
            cells = self.outcomes.falls(kind, each, level).cells("delta", gated=False)
            pairs = pd.MultiIndex.from_product([tasks, tasks], names=["affected", "stepped"]).to_frame(False)
            names = ("value", "low", "high", "p", "q", "verdict")
            frames.append(pairs.assign(**{name: cells[name].ravel() for name in names}))
            frames[-1].insert(0, "horizon", each)
        return pd.concat(frames, ignore_index=True)

    def ceilings(self, score: str | None = SCORE, level: float = 0.95) -> pd.DataFrame:
        """How well the truth of one seed predicts that of another, and what a prediction could reach.

        Args:
            score: As in `table`; None for all.
            level: Of the intervals.

        Returns:
            One row a truth, horizon and score: truth, horizon, score, value (the agreement of seeds), low, high, and
            ceiling, its root: about what a prediction scores that knows all but the noise of a seed.

        Raises:
            ScopeError: If there is no such score.
            ConfigError: If the level is no share.
        """
        if score is not None:
            _check_score(score)
        rows = [
            {"truth": str(kind), "horizon": horizon, "score": name, **_numbers(ranking.agreement[name], level)}
            | {"ceiling": ranking.ceiling[name].value}
            for kind, horizon, ranking in self._rankings()
            for name in (SCORES if score is None else (score,))
        ]
        return pd.DataFrame(rows)

    def table(self, score: str = SCORE, level: float = 0.95, parts: bool = True) -> pd.DataFrame:
        """How well every prediction ranks what training did.

        Args:
            score: "spearman_within", "spearman_overall", "kendall_within" or "kendall_overall".
            level: Of the intervals, by a bootstrap over seeds and tasks.
            parts: Also interference in single layers, modules and sides.

        Returns:
            One row a truth, horizon, prediction and checkpoint: truth, horizon, prediction, step, value, low, high, and
            share, share_low, share_high: of the ceiling, where the agreement of seeds is surely above 0.

        Raises:
            ScopeError: If there is no such score.
            ConfigError: If the level is no share.
        """
        frames = [
            self._judged(*each, matrix, score, level)
            for each, matrix in self.matrices()
            if parts or not each[0].startswith(BY_PART)
        ]
        return pd.concat(frames, ignore_index=True)

    def prediction(self, name: str, step: int, score: str = "spearman_within", level: float = 0.95) -> pd.DataFrame:
        """How well one prediction at one checkpoint ranks what training did.

        Args:
            name: Of the prediction.
            step: Of the checkpoint.
            score: As in `table`.
            level: As in `table`.

        Returns:
            One row a truth and horizon, with the columns of `table`.

        Raises:
            ScopeError: If there is no such prediction, checkpoint or score.
            ConfigError: If the level is no share.
        """
        found = dict(self.matrices())
        if (name, step) not in found:
            raise ScopeError(f"there is no prediction {name!r} at step {step}; `predictions` has all that there are")
        return self._judged(name, step, found[name, step], score, level)

    def judged(self, predicted: Any, score: str = SCORE, level: float = 0.95) -> pd.DataFrame:
        """How well a matrix of your own ranks what training did.

        Args:
            predicted: [tasks, tasks] in the order of the tasks, or a DataFrame with their names; larger where the
                column's task is said to do the row's task more good.
            score: As in `table`.
            level: As in `table`.

        Returns:
            One row a truth and horizon, with the columns of `table`.

        Raises:
            ScopeError: If a task is missing, or there is no such score.
            ConfigError: If the level is no share.
        """
        return self._judged("your own", -1, named("your own", predicted, self.outcomes.tasks), score, level)

    def matrices(self) -> Iterator[tuple[tuple[str, int], NDArray[np.float64]]]:
        """Every prediction: its name and checkpoint, and its matrix [tasks i, tasks j].

        Yields:
            Those of one checkpoint, and the means over the checkpoints up to it.
        """
        tasks = self.outcomes.tasks
        for name, own in self.predictions.groupby("prediction", sort=False):
            seen = []
            for step in sorted(set(own["step"].tolist())):
                cells = own[own["step"] == step]
                wide = cells.pivot(index="affected", columns="stepped", values="value")
                seen.append(wide.reindex(index=tasks, columns=tasks).to_numpy(dtype=float))
                yield (str(name), step), seen[-1]
                if len(seen) > 1 and not str(name).startswith(BY_PART):
                    yield (f"{name}{AVERAGED}", step), _mean(seen)

    def _judged(self, name: str, step: int, matrix: Array, score: str, level: float) -> pd.DataFrame:
        _check_score(score)
        rows = []
        for kind, horizon, ranking in self._rankings():
            key = (kind, horizon, matrix.tobytes())
            if key not in self._scored:
                self._scored[key] = ranking.of(matrix)
            own = self._scored[key][score]
            share = _numbers(own.of(ranking.ceiling[score]), level)
            rows.append(
                {"truth": str(kind), "horizon": horizon, "prediction": name, "step": step, **_numbers(own, level)}
                | {"share": share["value"], "share_low": share["low"], "share_high": share["high"]}
            )
        return pd.DataFrame(rows)

    def _rankings(self) -> Iterator[tuple[Truth, int, Ranking]]:
        for (kind, horizon), ranking in self._known.items():
            yield kind, horizon, ranking

    @cached_property
    def _scored(self) -> dict[tuple[Truth, int, bytes], dict[str, Score]]:
        return {}

    @cached_property
    def _known(self) -> dict[tuple[Truth, int], Ranking]:
        found, seed = self.outcomes, int(self.meta.get("seed", 0))
        return {
            (kind, horizon): Ranking(found.truth(kind, horizon), seed=seed)
            for kind in found.kinds
            for horizon in found.horizons
        }


def _check_score(score: str) -> None:
    """Raise a ScopeError if there is no such score."""
    if score not in SCORES:
        raise ScopeError(f"there is no score {score!r}; there is {', '.join(SCORES)}")


def save(folder: Path, predictions: pd.DataFrame, meta: Mapping[str, Any]) -> None:
    """Write predictions beside the outcomes that are there, over earlier ones.

    Args:
        folder: Of the validation.
        predictions: As `Validation` has them.
        meta: How they were made.

    Raises:
        OSError: If they cannot be written.
    """
    with whole_file(folder / PREDICTIONS) as new:
        predictions.to_parquet(new, index=False)
    sums = {PREDICTIONS: record.checksum(folder / PREDICTIONS)}
    with whole_file(folder / MARKER) as new:
        record.write_meta(new, {"schema": SCHEMA, **meta, "checksums": sums})


def load(path: Path | str) -> Validation:
    """The validation that was saved to a directory; neither a model nor torch is needed.

    Args:
        path: The directory, as `interference validate` wrote it.

    Returns:
        What was found.

    Raises:
        RunError: If the directory holds no validation, is damaged, or has another version.
    """
    folder = expanded(path)
    for name in (MARKER, PREDICTIONS, f"{OUTCOMES}/{outcomes.MARKER}"):
        if not (folder / name).is_file():
            raise RunError(f"{folder} holds no validation: it has no {name}")
    meta = record.read_meta(folder / MARKER, SCHEMA, "validation")
    record.check_sums(folder, meta.pop("checksums", None) or {}, (PREDICTIONS,))
    return Validation(outcomes.load(folder / OUTCOMES), record.read_frame(folder / PREDICTIONS, _TEXTS, _NUMBERS), meta)


def _numbers(score: Score, level: float) -> dict[str, float]:
    low, high = score.interval(level)
    return {"value": score.value, "low": low, "high": high}


def _mean(matrices: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The mean of what is a number in each cell; NaN where nothing is, as A's gradients before training."""
    stacked = np.stack(matrices)
    known = np.isfinite(stacked)
    total = known.sum(axis=0)
    return np.divide(
        np.where(known, stacked, 0.0).sum(axis=0), total, out=np.full(total.shape, np.nan), where=total > 0
    )
