"""Results of an evaluation: the scores of one model on all tasks, and their file `results.json`."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mixlora.common.errors import DataError, TrainingError
from mixlora.common.files import read_json
from mixlora.common.sealed import SEAL, seal, sealed
from mixlora.common.writing import whole_file, write_remedy
from mixlora.evaluation.config import RECORD
from mixlora.evaluation.scoring.intervals import Estimate
from mixlora.evaluation.scoring.metrics import Score

FORMAT, _UNSEALED = 2, 1
"""The number of the file's layout, of which later ones have higher numbers; and the last that has no seal."""


@dataclass
class Results:
    """Scores of one model.

    Attributes:
        label: the model's name in tables.
        model: the evaluated model's section of the configuration.
        tasks: {task: {"metric", "n", "groups", "unparsed", "main", "scores": {name: {"value", "low", "high"}}}}; groups
            are None in results of earlier versions, whose intervals treat all answers as independent.
        totals: sums over tasks, such as MME's: {name: {"value", "low", "high"}}.
        meta: the configuration, versions and labels.
        dependent: sets of tasks with examples of the same groups, as questions about the same pictures.
    """

    label: str
    model: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    totals: dict[str, dict[str, float]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    dependent: list[list[str]] = field(default_factory=list)

    def add(self, task: str, score: Score) -> None:
        """Add the score of a task."""
        self.tasks[task] = {
            "metric": str(score.metric),
            "n": score.n,
            "groups": score.groups,
            "unparsed": score.unparsed,
            "main": score.main,
            "scores": {name: asdict(estimate) for name, estimate in score.values.items()},
        }

    def add_totals(self, totals: Mapping[str, Estimate]) -> None:
        """Add sums over tasks."""
        self.totals |= {name: asdict(estimate) for name, estimate in totals.items()}

    def save(self, path: Path | str) -> None:
        """Write `results.json`, whole or not at all, to a directory, which is created if it does not exist.

        Raises:
            TrainingError: it cannot be written.
        """
        folder = Path(path)
        record = sealed(finite({"format": FORMAT, **asdict(self)}))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(folder / RECORD) as new:
                new.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            remedy = write_remedy(error.errno, "the same command continues")
            raise TrainingError(
                f"the results cannot be written to {folder}: {error.strerror or error}; {remedy}"
            ) from None


def load(path: Path | str) -> Results:
    """The results of a directory that `Results.save` wrote.

    Raises:
        DataError: there is no `results.json`, or it is damaged or of a later format.
    """
    file = Path(path) / RECORD
    try:
        record = read_json(file)
    except FileNotFoundError:
        raise DataError(f"{path} has no {RECORD}; give a directory that an evaluation wrote.") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise _damaged(file, str(error)) from error
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise _damaged(file, "it names no format")
    if record["format"] > FORMAT:
        raise DataError(
            f"{file} has format {record['format']!r:.20}, later than {FORMAT}; read it with a newer version."
        )
    told = record.pop(SEAL, None)
    if told != seal(record) and (told is not None or record["format"] > _UNSEALED):
        raise _damaged(file, "its checksum differs from the recorded one")
    return _results(record, file)


def _results(record: Mapping[str, Any], file: Path) -> Results:
    parts = {key: record.get(key) for key in ("model", "tasks", "totals", "meta")}
    if wrong := [key for key, part in parts.items() if not isinstance(part, dict)]:
        raise _damaged(file, f"{wrong[0]} is missing")
    try:
        tasks = {name: _task(entry) for name, entry in record["tasks"].items()}
        totals = {name: _estimate(entry) for name, entry in record["totals"].items()}
        dependent = [list(map(str, names)) for names in record.get("dependent", [])]
        return Results(str(record["label"]), record["model"], tasks, totals, record["meta"], dependent)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(file, f"a score in it lacks a part ({error!r:.200})") from error


def _task(entry: Mapping[str, Any]) -> dict[str, Any]:
    scores = {name: _estimate(score) for name, score in entry["scores"].items()}
    scores[entry["main"]]  # a main value must be there
    groups = None if entry.get("groups") is None else int(entry["groups"])
    kept = {"metric": str(entry["metric"]), "n": int(entry["n"]), "groups": groups}
    return kept | {"unparsed": int(entry["unparsed"]), "main": entry["main"], "scores": scores}


def _estimate(entry: Mapping[str, Any]) -> dict[str, float]:
    return {end: math.nan if entry[end] is None else float(entry[end]) for end in ("value", "low", "high")}


def _damaged(file: Path, why: str) -> DataError:
    return DataError(f"{file} is damaged: {why}; run the evaluation again.")


def finite(value: Any) -> Any:
    """The value with None in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
