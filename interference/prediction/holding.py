"""Holding: for how many steps of training the matrix of a run was found to hold, where a validation tells.

Not here: the validation itself (`validation`).
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from interference.config import Truth
from interference.errors import RunError
from interference.prediction.validation import MARKER, RUNS, Validation, load
from interference.run import Run
from interference.run.schema import meta_of
from mixlora.common.files import is_file, without_dots

SCORE = "spearman_within"
"""The score that sentences are about."""


def beside(path: Path, run: Run) -> tuple[Validation | None, int | None, str]:
    """The validation that judges a run: the one that it is a checkpoint of, or the one beside its directory.

    Args:
        path: The run's directory.
        run: It.

    Returns:
        The validation, and the step of the run among its checkpoints; None and None where there is none. Last a clause
        that says why it is not shown, "" where there is nothing to tell.
    """
    for place in _places(without_dots(path.absolute())):
        if not is_file(place / MARKER):
            continue
        try:
            found = load(place)
        except RunError as error:
            return None, None, f"the validation beside it is not shown: {error}"
        step = _step_of(run, place, found)
        if step is None:
            return None, None, f"the validation in {place} is not shown: this run's checkpoint is not one of its own"
        return found, step, ""
    return None, None, ""


def _places(path: Path) -> Iterator[Path]:
    """Where the validation of a run may be."""
    if path.parent.name == RUNS:
        yield path.parent.parent
    yield path.with_name(f"{path.name}-validation")


def _step_of(run: Run, place: Path, found: Validation) -> int | None:
    """The step of the checkpoint of a validation that a run measured, by its content."""
    own = (run.meta.get("fingerprints") or {}).get("model")
    for step in dict.fromkeys(found.predictions["step"].tolist()):
        known = (meta_of(place / RUNS / f"step-{step}").get("fingerprints") or {}).get("model")
        if own is not None and own == known:
            return int(step)
    return None


def held(found: Validation, step: int, kind: Truth | str) -> pd.DataFrame:
    """How well interference at a checkpoint ranked what training did, beside the ceiling.

    Args:
        found: The validation.
        step: Of the checkpoint.
        kind: Which trainings.

    Returns:
        One row a horizon: horizon, value, low, high, and ceiling.
    """
    own = found.prediction("interference", step, SCORE)
    own = own[own["truth"] == kind]
    ceilings = found.ceilings().query("truth == @kind and score == @SCORE").set_index("horizon")["value"]
    return own[["horizon", "value", "low", "high"]].assign(ceiling=own["horizon"].map(ceilings)).reset_index(drop=True)


def answer(rows: pd.DataFrame) -> str:
    """For which horizons the matrix of a checkpoint was found to hold, as a clause.

    Args:
        rows: Of `held`.
    """
    if holds := [str(row["horizon"]) for row in rows.to_dict("records") if row["low"] > 0]:
        return f"this matrix was found to rank what training did after {', '.join(holds)} steps"
    if rows["low"].notna().any():
        return "this matrix was not found to rank what training did"
    return "too few tasks or seeds to say whether this matrix ranks what training did"


def sentence(found: Validation, step: int, kind: Truth | str) -> str:
    """The answer with its numbers at every horizon, as a clause.

    Args:
        found: The validation.
        step: Of the checkpoint.
        kind: Which trainings.
    """
    rows = held(found, step, kind)
    told = [
        f"{row['horizon']} steps {row['value']:.2f} {_interval(row['low'], row['high'])}, ceiling {row['ceiling']:.2f}"
        for row in rows.to_dict("records")
    ]
    return f"{answer(rows)} (truth by {kind}; Spearman within rows after {'; '.join(told)})"


def _interval(low: float, high: float) -> str:
    return "[no interval]" if pd.isna(low) else f"[{low:.2f}, {high:.2f}]"


def words(path: Path, run: Run) -> list[str]:
    """What a reader of a run's matrix must know of its validation, clause by clause; nothing where there is none.

    Args:
        path: The run's directory.
        run: It.
    """
    found, step, why = beside(path, run)
    if found is None or step is None:
        return [why] if why else []
    return [sentence(found, step, kind) for kind in found.outcomes.kinds]
