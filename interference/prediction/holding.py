"""Holding: for how many steps of training the matrix of a run was found to hold, where a validation tells.

Not here: the validation itself (`validation`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from interference.config import Truth
from interference.errors import RunError
from interference.prediction.validation import MARKER, RUNS, Validation, load
from interference.run import Run
from interference.run.schema import meta_of
from mixlora.common.files import is_file, without_dots

_OTHER = "this run is of another checkpoint, or of other examples or blocks"
_SCOPE = ("layers", "modules", "components", "granularity", "routers")
"""Keys of `probe` that say which blocks a run has."""


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
            return None, None, f"the validation in {place} is not shown: {_OTHER}"
        return found, step, ""
    return None, None, ""


def _places(path: Path) -> Iterator[Path]:
    """Where the validation of a run may be."""
    if path.parent.name == RUNS:
        yield path.parent.parent
    yield path.with_name(f"{path.name}-validation")


def _step_of(run: Run, place: Path, found: Validation) -> int | None:
    """The step of the checkpoint of a validation that a run measured, on the same examples and blocks, by content."""
    own = measured(run.meta)
    for step in dict.fromkeys(found.predictions["step"].tolist()):
        known = measured(meta_of(place / RUNS / f"step-{step}"))
        if own[0] is not None and own == known and run.tasks == found.outcomes.tasks:
            return int(step)
    return None


def measured(meta: Mapping[str, Any]) -> tuple[Any, ...]:
    """The weights, the examples and the blocks of a run: what makes it another measurement.

    Args:
        meta: Of the run.
    """
    model, data = (
        (meta.get(key) or {}).get(name) for key, name in (("fingerprints", "model"), ("data", "fingerprint"))
    )
    probe = (meta.get("config") or {}).get("probe") or {}
    return model, data, *(probe.get(key) for key in _SCOPE)


def held(found: Validation, step: int, kind: Truth | str) -> pd.DataFrame:
    """How well interference at a checkpoint ranked what training did, beside the ceiling.

    Args:
        found: The validation.
        step: Of the checkpoint.
        kind: Which trainings.

    Returns:
        One row a horizon: horizon, value, low, high, and ceiling.
    """
    own = found.prediction("interference", step)
    own = own[own["truth"] == kind]
    ceilings = found.ceilings()
    ceilings = ceilings[ceilings["truth"] == kind]
    return own[["horizon", "value", "low", "high"]].merge(ceilings[["horizon", "ceiling"]], on="horizon")


def answer(rows: pd.DataFrame) -> str:
    """For which horizons the matrix of a checkpoint was found to hold, as a clause.

    Args:
        rows: Of `held`.
    """
    if holds := [str(row["horizon"]) for row in rows.to_dict("records") if row["low"] > 0]:
        return f"I over all its blocks was found to rank what training did after {', '.join(holds)} steps"
    if rows["value"].isna().all():
        return "I has no values by which what training did could be ranked"
    if rows["low"].notna().any():
        return "I over all its blocks was not found to rank what training did"
    return "tasks or seeds are too few to say whether I ranks what training did"


def sentence(found: Validation, step: int, kind: Truth | str) -> str:
    """The answer with its numbers at every horizon, as a clause.

    Args:
        found: The validation.
        step: Of the checkpoint.
        kind: Which trainings.
    """
    rows = held(found, step, kind)
    told = [
        f"{row['horizon']} step{'s' * (row['horizon'] > 1)} {row['value']:.2f} {interval(row['low'], row['high'])}, "
        f"ceiling {row['ceiling']:.2f}"
        for row in rows.to_dict("records")
    ]
    return f"{answer(rows)} (truth by {kind}; Spearman within rows after {'; '.join(told)})"


def interval(low: float, high: float) -> str:
    """An interval in brackets, or that there is none."""
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
