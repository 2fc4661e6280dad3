"""Trainings: new adapters trained on sets of tasks with several seeds; what they did is the truth of a validation.

Every training begins with new weights, and follows the recipe of the training whose checkpoints are judged, its
learning rates among it, but with `share` examples of each of its tasks in every step.

Not here: which sets of tasks (`truth`), the steps (`branches`), and what is made of the losses (`outcomes`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import get_scheduler

from interference.branching.branches import Branches, unheard
from interference.branching.finished import Finished, content
from interference.branching.held_out import HeldOut
from interference.branching.pools import Pools
from interference.branching.recipe import Recipe, processes_of, validation_of
from interference.branching.workers import Piece, losses_of
from interference.config import AnalysisConfig
from interference.gradients.state import own_randomness
from interference.measurement.resume import settle, unfinished
from interference.prediction.outcomes import Outcomes
from interference.prediction.truth import Tasks, sets_of
from mixlora.checkpoints import loading
from mixlora.checkpoints.fingerprints import summary
from mixlora.common.progress import Progress, silent
from mixlora.training.config import RecipeSection, TrainConfig
from mixlora.training.methods import prepare

_REMEDY = "judge a training with a lower training.learning_rate, or other validation.seed"


@dataclass
class Trainings:
    """All trainings of a validation.

    Attributes:
        config: what is asked for.
        trained: the configuration of the training whose checkpoints are judged.
        recipe: its recipe.
        pools: what is trained on, and what is read.
        share: examples of each task in a step.
        steps: of the training whose checkpoints are judged, in all.
    """

    config: AnalysisConfig
    trained: TrainConfig
    recipe: Recipe
    pools: Pools
    share: int
    steps: int

    def __post_init__(self) -> None:
        asked = validation_of(self.config)
        self.sets = sets_of(list(self.config.tasks), asked.truth)
        self.seeds = list(range(asked.seed, asked.seed + asked.seeds))
        self.horizons = asked.horizons
        self.rates = rates_of(self.recipe.training, asked.horizons[-1], self.steps)

    def outcomes(
        self, out: Path, identity: Mapping[str, Any], meta: Mapping[str, Any], progress: Progress = silent
    ) -> Outcomes:
        """Train what is not trained yet, and save what came of it to a directory.

        Args:
            out: The directory; finished trainings wait beside it.
            identity: Of the job, nested values that JSON has.
            meta: What the outcomes record besides.
            progress: Called after every step.

        Returns:
            The outcomes, as they were saved.

        Raises:
            MeasurementError: If a training diverges.
            RunError: If something cannot be written.
        """
        processes, sets = processes_of(self.config), len(self.sets)
        with unfinished(out, identity) as spool:
            read = losses_of(self.pieces(), Finished(spool, summary(identity)), self, self, processes, progress)
            before = np.stack(read[:: sets + 1])
            losses = np.stack([np.stack(read[k + 1 : k + 1 + sets]) for k in range(0, len(read), sets + 1)])
            found = Outcomes(self.pools.table(), losses, before, {**self._meta(), **meta})
            settle(found.save, out)
        return found

    def pieces(self) -> list[Piece]:
        """For every seed the losses before any step, then those after training on each set."""
        read, found = content(self.pools.read), list[Piece]()
        known = {task: content(stream.examples) for task, stream in self.pools.streams.items()}
        for seed in self.seeds:
            found.append(Piece(len(found), (seed,), (read,), 0))
            for tasks in self.sets:
                trained = [part for task in tasks for part in (task, known[task])]
                found.append(Piece(len(found), (seed, tasks), (read, *trained), self.horizons[-1]))
        return found

    def opened(self, stepped: Callable[[], None]) -> Callable[..., Tensor]:
        """What returns the losses of a piece; a model is only made if something is left to train."""

        @lru_cache(maxsize=1)
        def fresh(seed: int) -> Branches:
            return self.fresh(seed, stepped)

        def losses(seed: int, tasks: Tasks | None = None) -> Tensor:
            branches = fresh(seed)
            if tasks is None:
                return branches.before()
            return branches.along(tasks, seed, self.horizons, self.rates, self.share)

        return losses

    def fresh(self, seed: int, stepped: Callable[[], None] = unheard) -> Branches:
        """The base with a new adapter, from which all sets are trained."""
        pools, probe = self.pools, self.config.probe
        model = fresh_model(self.config, self.trained, pools.collator.tokenizer, seed)
        adapter = str(model.active_adapter)
        held_out = HeldOut(pools.held_out, model, adapter, probe.batch_size, probe.memory_budget)
        given = (model, adapter, pools.collator, pools.streams, held_out, self.recipe)
        return Branches(*given, stepped=stepped, remedy=_REMEDY)

    def _meta(self) -> dict[str, Any]:
        """What the outcomes record of the trainings."""
        return {
            "tasks": list(self.config.tasks),
            "sets": [list(own) for own in self.sets],
            "horizons": self.horizons,
            "seeds": self.seeds,
            "truth": [str(kind) for kind in validation_of(self.config).truth],
            "share": self.share,
            "seed": self.config.probe.seed,
            "trained_on": self.pools.told,
        }


def fresh_model(config: AnalysisConfig, trained: TrainConfig, tokenizer: Any, seed: int) -> Any:
    """The base with a new adapter as a training would begin with it; the random generators stay as they were.

    Args:
        config: names the base and the device.
        trained: describes the adapter.
        tokenizer: for MixLoRA's task definitions.
        seed: of the adapter's weights.

    Raises:
        CheckpointError: if the base cannot be loaded.
        ConfigError: if the base has no such modules.
    """
    base = loading.load_base(config.model)
    with own_randomness(seed):
        return prepare(base, tokenizer, trained).eval()


def rates_of(recipe: RecipeSection, steps: int, total: int) -> list[float]:
    """The learning rate of each of the first steps of a training.

    Args:
        recipe: of the training.
        steps: how many.
        total: of the training in all; `steps` if it is shorter.
    """
    total = max(total, steps)
    warmup = math.ceil(total * recipe.warmup) if recipe.warmup < 1 else int(recipe.warmup)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.learning_rate)
    schedule = get_scheduler(recipe.lr_scheduler_type, optimizer, warmup, total)
    rates = []
    for _ in range(steps):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return rates
