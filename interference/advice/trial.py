"""The trial: new adapters for every arm, trained by the recipe of the probed training, and what they read.

Every adapter begins with new weights, the same for all of one seed and shape. Its learning rate runs through the
recipe's schedule within its own steps. An adapter that several arms have is trained once.

Not here: the arms (`arms`), what they need (`setup`), the steps (`interference.branching.branches`), and what is made
of the losses (`tried`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from interference.advice import tried
from interference.advice.advice import Advice
from interference.advice.arms import Piece, config_of, possible
from interference.advice.setup import Job, prepared
from interference.advice.tried import MARKER, Trial
from interference.branching import workers
from interference.branching.branches import unheard
from interference.branching.combining import CombinedBranches
from interference.branching.finished import Finished, content
from interference.branching.held_out import HeldOut
from interference.branching.recipe import processes_of
from interference.branching.workers import losses_of
from interference.config import AnalysisConfig
from interference.errors import ConfigError, RunError
from interference.gradients.trained import trained_parameters
from interference.measurement import checkpoint
from interference.measurement.resume import clear, day_of, refuse_busy, settle, unfinished
from interference.prediction.trainings import fresh_model, rates_of
from mixlora.checkpoints.fingerprints import summary
from mixlora.common.directories import check_free, check_writable
from mixlora.common.files import is_file
from mixlora.common.identity import differences
from mixlora.common.progress import Progress, silent
from mixlora.common.sections import resolved
from mixlora.data.templates import today

_REMEDY = "train with a lower training.learning_rate, or choose another trial.seed"
Shape = tuple[str, int]
"""The method and the size of an adapter."""


def compute(
    config: AnalysisConfig,
    advice: Advice,
    out: Path,
    runs: Sequence[AnalysisConfig] = (),
    progress: Progress = silent,
) -> Trial:
    """Train every arm, and save what came of it; a finished trial of the same job is read.

    Args:
        config: A configuration as `validate` takes it.
        advice: What is tried.
        out: The directory of the result; finished adapters wait beside it.
        runs: The configurations of the runs that it was made from.
        progress: Called after every step.

    Returns:
        The trial, as it was saved.

    Raises:
        ConfigError: If no training is known, or a value cannot be used.
        ScopeError: If a task has too few examples.
        DataError: If a task's file or a record cannot be used.
        CheckpointError: If the base cannot be loaded.
        MeasurementError: If a training diverges.
        RunError: If `out` holds something else or cannot be written, or another process works there.
    """
    tasks = list(config.tasks)
    if set(tasks) != set(advice.tasks):
        raise ConfigError(
            f"the trial's tasks are {', '.join(tasks)}, but the advice is of {', '.join(advice.tasks)}; name the same"
        )
    clear(out, MARKER)
    known = tried.load(out) if is_file(out / MARKER) else None
    if known is None:
        refuse_busy(out)
        check_free(out, MARKER, "a trial", "holds something else")
        check_writable(out)
    day = _day(known) or day_of(out) or today()
    processes = processes_of(config)
    job = prepared(config, advice.groups, advice.weights, runs, day)
    identity = job.identity()
    if known is not None:
        if other := differences(known.meta.get("job") or {}, json.loads(json.dumps(identity))):
            raise RunError(f"{out} holds another trial ({other}); choose another --out, or delete it")
        return known
    with unfinished(out, identity) as spool:
        work = Work(job)
        losses, right = work.read(Finished(spool, summary(identity)), processes, progress)
        found = Trial(job.pools.table(), losses, right, _meta(job, work, advice, identity))
        settle(found.save, out)
    return tried.load(out)


@dataclass
class Work:
    """The trainings of a trial; it can be given to another process.

    Attributes:
        job: what they need.
    """

    job: Job
    _parameters: dict[Shape, int] = field(default_factory=dict)

    def read(
        self, finished: Finished, processes: int, progress: Progress
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Losses and exact answers after every arm, each [seeds, arms, examples]."""
        job = self.job
        owner = job.pools.table()["task"].to_numpy()
        read = losses_of(self.pieces(), finished, self, self, processes, progress)
        found = np.empty((2, len(job.seeds), len(job.arms), len(owner)))
        for s in range(len(job.seeds)):
            by_piece = dict(zip(job.pieces, read[s * len(job.pieces) :], strict=False))
            for a, arm in enumerate(job.arms):
                for piece in arm.pieces:
                    own = np.isin(owner, piece.tasks)
                    found[:, s, a, own] = by_piece[piece][:, own]
        return found[0], found[1]

    def pieces(self) -> list[workers.Piece]:
        """For every seed the losses and exact answers after the training of every adapter."""
        job, read = self.job, content(self.job.pools.read)
        known = {task: content(stream.examples) for task, stream in job.pools.streams.items()}
        found = list[workers.Piece]()
        for seed in job.seeds:
            for piece in job.pieces:
                trained = [part for task in piece.tasks for part in (task, known[task])]
                own = (seed, piece.method, piece.size, piece.cure, read, *trained)
                found.append(workers.Piece(len(found), (seed, piece), own, job.steps_of(piece)))
        return found

    def opened(self, stepped: Callable[[], None]) -> Callable[..., Tensor]:
        """What returns the losses and exact answers of an adapter [2, examples]; one base is kept."""
        kept: dict[tuple[int, Shape], CombinedBranches] = {}

        def trained(seed: int, piece: Piece) -> Tensor:
            key = seed, (piece.method, piece.size)
            if key not in kept:
                kept.clear()  # its memory is free before the next base is loaded
                kept[key] = self._fresh(*key, stepped)
            return _along(self.job, kept[key], piece, seed)

        return trained

    def parameters(self, piece: Piece) -> int:
        """How many parameters an adapter trains."""
        shape = (piece.method, piece.size)
        if shape not in self._parameters:
            self._fresh(self.job.seeds[0], shape, unheard)
        return self._parameters[shape]

    def _fresh(self, seed: int, shape: Shape, stepped: Callable[[], None]) -> CombinedBranches:
        made = fresh(self.job, seed, shape, stepped)
        self._parameters[shape] = sum(own.numel() for own in trained_parameters(made.model, made.adapter))
        return made


def _along(job: Job, branches: CombinedBranches, piece: Piece, seed: int) -> Tensor:
    """Train an adapter, and read its losses and exact answers, [2, examples]."""
    steps = job.steps_of(piece)
    branches.recipe, branches.combination = job.recipe_of(piece), job.combination_of(piece)
    rates = rates_of(branches.recipe.training, steps, steps)
    return branches.along(piece.tasks, seed, [steps], rates, job.share_of(piece))[0]


def fresh(job: Job, seed: int, shape: Shape, stepped: Callable[[], None] = unheard) -> CombinedBranches:
    """The base with a new adapter of a shape, from which all sets of tasks are trained.

    Args:
        job: What is trained.
        seed: Of the adapter's weights.
        shape: The method and the size of the adapter.
        stepped: Called after every step.

    Returns:
        Branches that read losses and exact answers, [2, examples].

    Raises:
        CheckpointError: If the base cannot be loaded.
        ConfigError: If the base has no such modules.
    """
    pools, probe, trained = job.pools, job.config.probe, job.trained
    config = config_of(Piece(*shape, ()), trained.config)
    model = fresh_model(job.config, config, pools.collator.tokenizer, seed)
    adapter = str(model.active_adapter)
    held_out = HeldOut(pools.held_out, model, adapter, probe.batch_size, probe.memory_budget)

    def read(trained: nn.Module) -> Tensor:
        return torch.stack([held_out.losses(trained), held_out.answers(trained)])

    given = (model, adapter, pools.collator, pools.streams, held_out, trained.recipe)
    return CombinedBranches(*given, stepped=stepped, remedy=_REMEDY, read=read)


def _meta(job: Job, work: Work, advice: Advice, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial records of how it came about."""
    recipe = job.trained.recipe
    return {
        "arms": [
            {
                "name": arm.name,
                "groups": [list(piece.tasks) for piece in arm.pieces],
                "parameters": sum(work.parameters(piece) for piece in arm.pieces),
            }
            for arm in job.arms
        ],
        "weights": dict(job.weights),
        "among": possible(job.groups) - 1 if job.groups else 0,
        "steps": job.steps,
        "share": job.share,
        "seeds": job.seeds,
        "seed": job.config.probe.seed,
        "matrix": dict(advice.matrix),
        "runs": advice.runs,
        "recipe": {**recipe.json(), "of": recipe.place},
        "trained_on": job.pools.told,
        "config": resolved(job.config),
        "job": identity,
        "versions": checkpoint.versions(),
    }


def _day(known: Trial | None) -> date | None:
    """The day that a finished trial took for today."""
    try:
        return None if known is None else date.fromisoformat(known.meta["job"]["config"]["model"]["date"])
    except (ValueError, LookupError, TypeError):
        return None
