"""validate: does the matrix say what training does? The truth by training, the predictions of every checkpoint.

A job works in its directory from the beginning, piece by piece: runs and lookaheads of every checkpoint, then the
trainings. A killed call continues; a finished one whose configuration asks for more checkpoints or predictions makes
what is missing.

Not here: the trainings (`trainings`), the predictions (`predictors`, `lookahead`), and the scores (`validation`).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from interference.branching.finished import content
from interference.branching.pools import Pools, draw_apart
from interference.branching.recipe import Trained, asked_of, processes_of, recipe_of, trained_by, validation_of
from interference.config import AnalysisConfig
from interference.config import load as read_config
from interference.errors import ConfigError, RunError
from interference.measurement import checkpoint, sample
from interference.measurement.compute import compute_config
from interference.measurement.resume import clear
from interference.prediction import horizons, lookahead, outcomes
from interference.prediction.predictors import Predictor, check, matrices
from interference.prediction.trainings import Trainings
from interference.prediction.validation import OUTCOMES, RUNS, Validation, load, save
from interference.run import load as load_run
from mixlora.checkpoints import loading
from mixlora.checkpoints.fingerprints import of_checkpoint, of_processing
from mixlora.common.directories import check_writable, is_occupied
from mixlora.common.errors import unwritable
from mixlora.common.files import SNAPSHOTS, expanded, is_file, read_json, without_dots
from mixlora.common.identity import differences
from mixlora.common.locks import LOCK, locked
from mixlora.common.progress import Progress, silent
from mixlora.common.sections import resolved
from mixlora.common.writing import remove_left, write_json
from mixlora.data.templates import today

JOB = "job.json"
_ADAPTERS = "adapters"
_READ: Any = {
    **dict.fromkeys(("model", "tasks", "probe", "lookahead"), True),
    "validation": {"truth", "horizons", "seeds", "seed", "share", "held_out"},
}
"""Keys of a configuration that pieces depend on; the others say which pieces there are."""
_ELSEWHERE: Any = {"model": {"base", "adapter", "projector"}, "probe": {"spool_dir", "memory_budget"}}


def validate(
    config: AnalysisConfig | Path | str,
    out: Path | str | None = None,
    settings: Sequence[str] = (),
    predictors: Mapping[str, Predictor] | None = None,
    progress: Progress = silent,
) -> Validation:
    """Test by training what runs along a training predict: who helps whom, and who hurts.

    Args:
        config: A configuration of `interference compute` whose adapter `mixlora train` made, with snapshots, or the
            path of one; its `validation` says by which trainings.
        out: Directory of the result; None for the configuration's `out` with "-validation" behind its name.
        settings: "key.subkey=value", over the configuration's.
        predictors: {name: a function of a Run that returns tasks x tasks}, tested beside the known ones.
        progress: Called after every step.

    Returns:
        The validation, as it was saved.

    Raises:
        ConfigError: If no training is known, it has no snapshots, or a value cannot be used.
        ScopeError: If there is one task alone, a task has too few examples, or a predictor returns no such matrix.
        DataError: If a task's file or a record cannot be used.
        CheckpointError: If the base or a checkpoint cannot be loaded.
        MeasurementError: If a training diverges.
        RunError: If `out` holds something else or cannot be written, or another process works there.
    """
    read = config if isinstance(config, AnalysisConfig) else read_config(expanded(config), settings)
    return compute(read, place_of(read, out), predictors or {}, progress)


def place_of(config: AnalysisConfig, out: Path | str | None) -> Path:
    """Where the result goes: `out`, or else beside the run of the configuration, under its name with "-validation".

    Args:
        config: Whose `out` is the run's directory.
        out: The directory that was asked for.

    Returns:
        An absolute path.

    Raises:
        ConfigError: If neither is given.
    """
    if out is not None:
        return without_dots(expanded(out).absolute())
    if config.out is None:
        raise ConfigError("there is no directory for the validation; give --out, or out: of the run it goes beside")
    run = without_dots(expanded(config.out).absolute())
    return run.with_name(f"{run.name}-validation")


@dataclass(frozen=True)
class Job:
    """Everything that a validation needs, read and checked before anything is computed.

    Attributes:
        config: its day is that of the templates.
        out: the directory in which the job works.
        trained: the training whose checkpoints are judged.
        pools: the examples of the truth.
        checkpoints: {step: its directory}.
        share: examples of each task in a step.
        progress: called after every step.
    """

    config: AnalysisConfig
    out: Path
    trained: Trained
    pools: Pools
    checkpoints: Mapping[int, Path]
    share: int
    progress: Progress = field(default=silent, compare=False)

    def identity(self) -> dict[str, Any]:
        """What the pieces depend on."""
        asked = {"lookahead": asked_of(self.config), "validation": validation_of(self.config)}
        config = self.config.model_copy(update=asked).model_dump(mode="json", include=_READ, exclude=_ELSEWHERE)
        trained, model = resolved(self.trained.config), self.config.model
        sections = {key: trained[key] for key in ("method", "adapter", "lora", "mixlora", "training")}
        streams = {task: content(stream.examples) for task, stream in self.pools.streams.items()}
        projector = {} if model.projector is None else {"projector": of_checkpoint(model.projector)}
        return {
            "validation of": {"base": of_checkpoint(loading.base_of(model)), **projector},
            "config": config,
            "training": {**sections, "taken": self.trained.steps},
            "lookahead": recipe_of(self.config).training.model_dump(mode="json"),
            "data": {"read": content(self.pools.read), "trained on": streams},
            "processing": of_processing(self.pools.collator),
            "versions": checkpoint.versions(),
            _ADAPTERS: {str(step): of_checkpoint(str(place)) for step, place in self.checkpoints.items()},
        }

    def at(self, step: int) -> AnalysisConfig:
        """The configuration of a checkpoint's run."""
        model = self.config.model.model_copy(update={"adapter": str(self.checkpoints[step])})
        return self.config.model_copy(update={"model": model, "out": str(self.out / RUNS / f"step-{step}")})

    def trainings(self) -> Trainings:
        """The trainings that are the truth."""
        trained = self.trained
        return Trainings(self.config, trained.config, trained.recipe, self.pools, self.share, trained.steps)


def prepared(config: AnalysisConfig, out: Path, progress: Progress = silent, day: date | None = None) -> Job:
    """Read and check everything that a validation needs, before a model is loaded.

    Args:
        config: What is asked for.
        out: The directory in which the job works.
        progress: Called after every step.
        day: That a template takes for today where the configuration names none; None for today.

    Returns:
        The job.

    Raises:
        InterferenceError: As `validate`.
    """
    processes_of(config)
    trained, asked = trained_by(config), validation_of(config)
    _check_seeds(config, trained)
    if config.probe.optimizer is not None:
        raise ConfigError(
            f"probe.optimizer names the state of one checkpoint ({config.probe.optimizer}); drop it: beside each "
            "snapshot its own is read, where training.optimizer_state kept it"
        )
    checkpoints = _checkpoints(trained.home, asked.checkpoints)
    checkpoint.adapter_config(config.model)
    share = asked.share or max(trained.config.training.batch_size // len(config.tasks), 1)
    pools = draw_apart(config, trained.recipe, share, day)
    config = sample.dated(config, pools.held_out.collator)
    return Job(config, out, trained, pools, checkpoints, share, progress)


def _check_seeds(config: AnalysisConfig, trained: Trained) -> None:
    """Raise a ConfigError if the truth would share a seed with a prediction."""
    asked, ahead, own = validation_of(config), asked_of(config), trained.config.training.seed
    seeds = range(asked.seed, asked.seed + asked.seeds)
    if own in seeds:
        raise ConfigError(
            f"validation.seed: {own} is the seed of {trained.home}, whose checkpoints are judged; choose seeds of your "
            "own, so that the truth knows nothing of the prediction"
        )
    if shared := sorted(set(seeds) & set(range(ahead.seed, ahead.seed + ahead.seeds))):
        raise ConfigError(
            f"validation.seed: {shared[0]} is also a seed of lookahead.seed; choose others, so that the truth knows "
            "nothing of the prediction"
        )


def _checkpoints(home: Path, asked: Sequence[int] | None) -> dict[int, Path]:
    """The snapshots of a training by step.

    Raises:
        ConfigError: if there is none, or one that is asked for is not there.
    """
    folder = home / SNAPSHOTS
    named = [(re.fullmatch(r"step-(\d+)", path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
    found = dict(sorted((int(name[1]), path) for name, path in named if name))
    if not found:
        raise ConfigError(f"{home} has no snapshots to predict from; train with training.snapshots, as [0, 10, 20]")
    if asked is None:
        return found
    if missing := [step for step in asked if step not in found]:
        raise ConfigError(
            f"validation.checkpoints asks for step {missing[0]}, but {folder} has {', '.join(map(str, found))}"
        )
    return {step: found[step] for step in asked}


def compute(config: AnalysisConfig, out: Path, predictors: Mapping[str, Predictor], progress: Progress) -> Validation:
    """What `validate` does with a configuration.

    Args:
        config: What is asked for.
        out: The directory of the result.
        predictors: {name: a predictor of the user's}.
        progress: Called after every step.

    Returns:
        The validation, as it was saved.

    Raises:
        InterferenceError: As `validate`.
    """
    check(predictors)
    known = _known(out)
    check_writable(out)
    job = prepared(config, out, progress, _day(known) or today())
    with locked(out / LOCK, f"validating in {out}"):
        remove_left(out)  # a process was killed while it looked whether `out` can be written
        identity = _claimed(out, _known(out), job.identity())
        for step in job.checkpoints:
            _predicted(job, step)
        predicted = _predictions(job, list(config.tasks), predictors)  # before hours of training
        _train(job, identity)
        told = {key: value for key, value in identity.items() if key not in ("data", "config")}
        meta = {**told, "config": resolved(job.config), "seed": config.probe.seed}
        try:
            save(out, _with_former(out, predicted), meta)
        except OSError as error:
            raise unwritable(f"{out} cannot be written", error) from None
    return load(out)


def _with_former(out: Path, predicted: pd.DataFrame) -> pd.DataFrame:
    """Predictions with those of earlier calls of the same job that this one does not make."""
    try:
        former = load(out).predictions
    except RunError:  # there are none, or they are damaged
        return predicted
    made = pd.MultiIndex.from_frame(predicted[["prediction", "step"]])
    kept = former[~pd.MultiIndex.from_frame(former[["prediction", "step"]]).isin(made)]
    return pd.concat([predicted, kept], ignore_index=True) if len(kept) else predicted


def _known(out: Path) -> dict[str, Any] | None:
    """The identity of the job that a directory holds; None if it holds nothing.

    Raises:
        RunError: if it holds something else.
    """
    try:
        if not is_occupied(out):
            return None
        found = read_json(out / JOB)
        if isinstance(found, dict) and isinstance(found.get(_ADAPTERS), dict):
            return found
    except (OSError, ValueError):
        if out.is_dir() and {path.name for path in out.iterdir()} <= {LOCK}:
            return None  # a killed call has left its lock
    raise RunError(f"{out} exists and holds no validation; choose another --out")


def _day(known: Mapping[str, Any] | None) -> date | None:
    """The day that a begun job takes for today."""
    try:
        return date.fromisoformat((known or {})["config"]["model"]["date"])
    except (ValueError, LookupError, TypeError):
        return None


def _claimed(out: Path, known: Mapping[str, Any] | None, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity under which a directory's pieces are kept: the job's, with the checkpoints of earlier calls.

    Raises:
        RunError: if the directory holds the pieces of another job, or cannot be written.
    """
    whole = {**identity, _ADAPTERS: {**(known or {}).get(_ADAPTERS, {}), **identity[_ADAPTERS]}}
    if known is not None:
        there = {**known, _ADAPTERS: {**whole[_ADAPTERS], **known[_ADAPTERS]}}
        if other := differences(there, json.loads(json.dumps(whole))):
            raise RunError(f"{out} holds a validation of another job ({other}); choose another --out, or delete it")
    try:
        write_json(out / JOB, whole)
    except OSError as error:
        raise unwritable(f"{out} cannot be written", error) from None
    return whole


def _predicted(job: Job, step: int) -> None:
    """Make the run of a checkpoint, and the lookahead from it, unless they are there."""
    config = job.at(step)
    place = Path(str(config.out))
    clear(place, "run.json")
    if not is_file(place / "run.json"):
        compute_config(config, _named(f"checkpoint {step}", job.progress))
    ahead = lookahead.place_of(config, None)
    clear(ahead, horizons.MARKER)
    if validation_of(job.config).lookahead and not is_file(ahead / horizons.MARKER):
        apart = job.pools.held_out.units
        lookahead.compute(config, ahead, _named(f"lookahead {step}", job.progress), apart)


def _train(job: Job, identity: Mapping[str, Any]) -> None:
    """Find out what trainings do, unless that is known."""
    place = job.out / OUTCOMES
    clear(place, outcomes.MARKER)
    if is_file(place / outcomes.MARKER):
        outcomes.load(place)  # it is whole
        return
    own = {key: value for key, value in identity.items() if key != _ADAPTERS}
    recipe = job.trained.recipe
    meta = {"recipe": {**recipe.json(), "of": recipe.place}, "versions": checkpoint.versions()}
    job.trainings().outcomes(place, own, meta, job.progress)


def _predictions(job: Job, tasks: Sequence[str], predictors: Mapping[str, Predictor]) -> pd.DataFrame:
    """Every prediction at every checkpoint, one row a cell."""
    pairs = pd.MultiIndex.from_product([tasks, tasks], names=["affected", "stepped"]).to_frame(False)
    frames = [
        pairs.assign(prediction=name, step=step, value=matrix.loc[list(tasks), list(tasks)].to_numpy().ravel())
        for step in job.checkpoints
        for name, matrix in _at(job, step, predictors)
    ]
    return pd.concat(frames, ignore_index=True)[["prediction", "step", "affected", "stepped", "value"]]


def _at(job: Job, step: int, predictors: Mapping[str, Predictor]) -> Iterator[tuple[str, pd.DataFrame]]:
    """The predictions of a checkpoint by the tasks' names: of its run, and of the branches from it."""
    config = job.at(step)
    run = load_run(str(config.out))
    for name, matrix in matrices(run, predictors):
        yield name, pd.DataFrame(matrix, run.tasks, run.tasks)
    if validation_of(job.config).lookahead:
        found = horizons.load(lookahead.place_of(config, None))
        for steps in asked_of(job.config).steps:
            for metric in ("interference", "delta"):
                yield f"lookahead {metric}, {steps} step{'s' * (steps > 1)}", found.matrix(metric, steps)


def _named(stage: str, progress: Progress) -> Progress:
    return lambda what, done, total: progress(f"{stage}: {what}", done, total)
