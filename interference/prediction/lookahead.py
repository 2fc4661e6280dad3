"""lookahead: from a checkpoint along every task for some real steps, every task's losses read, and back again.

Branches wait in `<out>.partial` as they are finished; a killed call continues. Not here: the steps (`branches`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from interference.branching.branches import Branches
from interference.branching.finished import Finished, content
from interference.branching.held_out import HeldOut
from interference.branching.pools import Pools, draw
from interference.branching.recipe import Recipe, asked_of, processes_of, recipe_of
from interference.branching.workers import Piece, losses_of
from interference.config import AnalysisConfig
from interference.config import load as read_config
from interference.errors import ConfigError, RunError
from interference.measurement import checkpoint, sample
from interference.measurement.resume import clear, day_of, refuse_busy, settle, unfinished
from interference.prediction.horizons import MARKER, Lookahead, check_free, load
from mixlora.checkpoints.fingerprints import fingerprints, of_processing, summary
from mixlora.common.directories import check_writable
from mixlora.common.files import expanded, without_dots
from mixlora.common.progress import Progress, silent
from mixlora.common.sections import resolved
from mixlora.data.templates import today

CONVENTIONS = {
    "axes": "rows are the affected task i, columns the stepped task j",
    "delta": "mean over seeds and examples of i of the loss at the checkpoint minus the loss after j's branch",
    "interference": "delta of i along j over delta of i along i",
    "optimizer": "AdamW without a state at the checkpoint, at a constant learning rate",
    "mode": "dropout in steps as in training, none in the losses that are read",
}


def lookahead(
    config: AnalysisConfig | Path | str,
    out: Path | str | None = None,
    settings: Sequence[str] = (),
    progress: Progress = silent,
) -> Lookahead:
    """Real steps along every task from a checkpoint: by how much each lowers every task's held-out loss.

    Args:
        config: A configuration of `interference compute`, or the path of one; its `lookahead` says how far.
        out: Directory of the result; None for the configuration's `out` with "-lookahead" behind its name.
        settings: "key.subkey=value", over the configuration's.
        progress: Called after every step.

    Returns:
        The result, as it was saved.

    Raises:
        ConfigError: If there is no recipe to follow, or a value cannot be used.
        ScopeError: If there is one task alone, or a task has too few examples.
        DataError: If a task's file or a record cannot be used.
        CheckpointError: If the base or the adapter cannot be loaded.
        MeasurementError: If a branch diverges.
        RunError: If `out` exists already or cannot be written, or another process computes it.
    """
    read = config if isinstance(config, AnalysisConfig) else read_config(expanded(config), settings)
    return compute(read, place_of(read, out), progress)


def place_of(config: AnalysisConfig, out: Path | str | None) -> Path:
    """Where the result goes: `out`, or else beside the run of the configuration, under its name with "-lookahead".

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
        raise ConfigError("there is no directory for the lookahead; give --out, or out: of the run it goes beside")
    run = without_dots(expanded(config.out).absolute())
    return run.with_name(f"{run.name}-lookahead")


_READ: Any = {
    **dict.fromkeys(("model", "tasks", "lookahead"), True),
    "probe": {"seed", "batch_size", "max_length", "sample_groups", "paired"},
}
"""Keys of a configuration that a lookahead reads."""
_ELSEWHERE: Any = {"model": {"base", "adapter", "projector"}}
"""Keys among them that name paths: of these the content counts."""


@dataclass(frozen=True)
class Read:
    """What a lookahead has read and checked before a model is loaded.

    Attributes:
        config: its day is that of the templates.
        recipe: by which branches are trained.
        pools: the examples.
    """

    config: AnalysisConfig
    recipe: Recipe
    pools: Pools

    def loaded(self) -> "Job":
        """The same with the model at the checkpoint."""
        config, pools = self.config, self.pools
        model: Any = checkpoint.load_model(config.model)
        parts, adapter = fingerprints(model), str(model.active_adapter)
        held_out = HeldOut(pools.held_out, model, adapter, config.probe.batch_size, config.probe.memory_budget)
        branches = Branches(model, adapter, pools.collator, pools.streams, held_out, self.recipe)
        return Job(config, self.recipe, pools, branches, parts)


@dataclass(frozen=True)
class Elsewhere:
    """A lookahead for another process, which loads the model itself.

    Attributes:
        read: what it needs beside the model.
        parts: the fingerprints that the model must have.
    """

    read: Read
    parts: Mapping[str, Any]

    def opened(self, stepped: Callable[[], None]) -> Callable[..., Tensor]:
        """What returns the losses of a piece.

        Args:
            stepped: Called after every step.

        Returns:
            A function of what a piece asks.

        Raises:
            RunError: If the checkpoint has changed in the meantime.
        """
        job = self.read.loaded()
        if job.parts != self.parts:
            raise RunError("the checkpoint was changed while branches were trained from it; start again")
        return job.opened(stepped)


@dataclass(frozen=True)
class Job(Read):
    """Everything that a lookahead needs, read and checked.

    Attributes:
        branches: the model at the checkpoint.
        parts: the model's fingerprints.
    """

    branches: Branches
    parts: Mapping[str, Any]

    @property
    def elsewhere(self) -> Elsewhere:
        """The same for another process."""
        return Elsewhere(Read(self.config, self.recipe, self.pools), self.parts)

    def opened(self, stepped: Callable[[], None]) -> Callable[..., Tensor]:
        """What returns the losses of a piece."""
        self.branches.stepped = stepped
        return self._losses

    def pieces(self) -> list[Piece]:
        """The losses at the checkpoint, and along every branch."""
        read, steps = content(self.pools.read), asked_of(self.config).steps[-1]
        known = {task: content(stream.examples) for task, stream in self.pools.streams.items()}
        pairs = [(task, seed) for seed in self.seeds for task in self.config.tasks]
        branches = [Piece(k, pair, (*pair, known[pair[0]], read), steps) for k, pair in enumerate(pairs)]
        return [Piece(len(branches), (), (read,), 0), *branches]

    def _losses(self, task: str | None = None, seed: int = 0) -> Tensor:
        """The losses along a branch [steps, examples]; at the checkpoint [examples], if no task is given."""
        if task is None:
            return self.branches.before()
        steps, recipe = asked_of(self.config).steps, self.recipe.training
        rates = [recipe.learning_rate] * steps[-1]
        return self.branches.along([task], seed, steps, rates, recipe.batch_size)

    @property
    def seeds(self) -> list[int]:
        """The seed of every branch along a task."""
        asked = asked_of(self.config)
        return list(range(asked.seed, asked.seed + asked.seeds))

    def identity(self) -> dict[str, Any]:
        """What the result depends on."""
        whole = self.config.model_copy(update={"lookahead": asked_of(self.config)})
        config = whole.model_dump(mode="json", include=_READ, exclude=_ELSEWHERE)
        return {
            "lookahead of": self.parts,
            "config": config,
            "recipe": self.recipe.json(),
            "loss": self.branches.held_out.objective.words,
            "processing": of_processing(self.pools.collator),
            **checkpoint.origin_of(self.branches.model),
        }


def prepared(config: AnalysisConfig, day: date | None = None, apart: Sequence[sample.EncodedUnit] = ()) -> Job:
    """Everything that a lookahead needs; wrong input is reported before the model is loaded.

    Args:
        config: What is asked for.
        day: That a template takes for today where the configuration names none; None for today.
        apart: Examples that branches do not train on.

    Returns:
        The examples, the recipe and the model at the checkpoint.

    Raises:
        InterferenceError: As `lookahead`.
    """
    recipe = recipe_of(config)
    checkpoint.adapter_config(config.model)
    pools = draw(config, recipe, recipe.training.batch_size, day, apart)
    return Read(sample.dated(config, pools.held_out.collator), recipe, pools).loaded()


def compute(
    config: AnalysisConfig, out: Path, progress: Progress = silent, apart: Sequence[sample.EncodedUnit] = ()
) -> Lookahead:
    """What `lookahead` does with a configuration.

    Args:
        config: What is asked for.
        out: The directory of the result.
        progress: Called after every step.
        apart: Examples that branches do not train on.

    Returns:
        The result, as it was saved.

    Raises:
        InterferenceError: As `lookahead`.
    """
    clear(out, MARKER)
    refuse_busy(out)
    check_free(out)
    check_writable(out)
    processes = processes_of(config)
    job = prepared(config, day_of(out) or today(), apart)
    identity, started = job.identity(), time.perf_counter()
    with unfinished(out, identity) as spool:
        finished = Finished(spool, summary(identity))
        before, *branches = losses_of(job.pieces(), finished, job, job.elsewhere, processes, progress)
        losses = np.stack(branches)
        shape = (len(job.seeds), len(job.config.tasks), *losses.shape[1:])
        seconds = round(time.perf_counter() - started, 2)
        found = Lookahead(job.pools.table().assign(loss=before), losses.reshape(shape), _meta(job, seconds))
        settle(found.save, out)
    return load(out)


def _meta(job: Job, seconds: float) -> dict[str, Any]:
    """What the result records of how it came about."""
    asked = asked_of(job.config)
    config = job.config.model_copy(update={"lookahead": asked})
    return {
        "adapter": job.branches.adapter,
        "seed": job.config.probe.seed,
        "steps": asked.steps,
        "seeds": job.seeds,
        "recipe": {**job.recipe.json(), "of": job.recipe.place},
        "trained_on": job.pools.told,
        "loss": job.branches.held_out.objective.words,
        "conventions": CONVENTIONS,
        "config": resolved(config),
        "data": sample.describe(job.pools.held_out),
        "seconds": seconds,
        **checkpoint.provenance(job.parts),
    }
