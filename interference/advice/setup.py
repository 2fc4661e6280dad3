"""Setup: everything that a trial needs, read and checked before a model is loaded.

Not here: which arms there are (`arms`), and their trainings (`trial`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from itertools import chain, islice
from types import MappingProxyType
from typing import Any

from interference.advice.arms import UPGRAD, WEIGHTS, Arm, Piece, Split, arms, check_steps, config_of, split_of, spread
from interference.branching.branches import Stream
from interference.branching.finished import content
from interference.branching.pools import Pools, draw_trial
from interference.branching.recipe import Recipe, Trained, asked_of, trained_by, trial_of, validation_of
from interference.config import AnalysisConfig
from interference.errors import ConfigError
from interference.measurement import checkpoint, sample
from mixlora.checkpoints import loading
from mixlora.checkpoints.fingerprints import of_checkpoint, of_processing
from mixlora.common.sections import resolved
from mixlora.data.collation import Encoded
from mixlora.training.combining import Combination
from mixlora.training.config import Combine, Method, Order

_READ: Any = {**dict.fromkeys(("model", "tasks", "probe", "trial"), True)}
_ELSEWHERE: Any = {"model": {"base", "adapter", "projector"}, "probe": {"spool_dir", "memory_budget"}}


class WideStream(Stream):
    """A task's training examples, in batches that may be larger than all of them, as those of a specialist."""

    def batches(self, size: int, order: Order | str, seed: int) -> Iterator[list[Encoded]]:
        """Batches of `size` examples without end, epoch after epoch."""
        flow = chain.from_iterable(super().batches(min(size, len(self.examples)), order, seed))
        while True:
            yield list(islice(flow, size))


@dataclass(frozen=True)
class Job:
    """Everything that a trial needs, read and checked before a model is loaded.

    Attributes:
        config: its day is that of the templates.
        groups: the advised ones; none where no split is advised.
        weights: the advised weights of tasks; none where none are advised.
        trained: the training whose recipe is followed.
        pools: what is trained on, and what is read.
        arms: what is compared.
        steps: of every arm.
        share: examples of each task in a step on all tasks.
    """

    config: AnalysisConfig
    groups: Split
    weights: Mapping[str, float]
    trained: Trained
    pools: Pools
    arms: Sequence[Arm]
    steps: int
    share: int

    @cached_property
    def pieces(self) -> list[Piece]:
        """The adapters of all arms, each once; those of one shape follow each other."""
        found = dict.fromkeys(piece for arm in self.arms for piece in arm.pieces)
        return sorted(found, key=lambda piece: (piece.method, piece.size, piece.cure))

    @cached_property
    def seeds(self) -> list[int]:
        """The seed of every training of an adapter."""
        asked = trial_of(self.config)
        return list(range(asked.seed, asked.seed + asked.seeds))

    def steps_of(self, piece: Piece) -> int:
        """The optimizer steps of an adapter."""
        return self.steps * len(piece.tasks) // len(self.config.tasks)

    def share_of(self, piece: Piece) -> int:
        """The examples of each of an adapter's tasks in a step."""
        return self.share * len(self.config.tasks) // len(piece.tasks)

    def recipe_of(self, piece: Piece) -> Recipe:
        """The recipe of an adapter: a warm-up in steps is as long relative to its steps as in the probed training."""
        recipe = self.trained.recipe
        warmup = recipe.training.warmup
        if warmup >= 1:
            warmup = min(warmup / self.trained.steps, 1) * self.steps_of(piece)
            warmup = 0.0 if warmup < 1 else float(round(warmup))
        return replace(recipe, training=recipe.training.model_copy(update={"warmup": warmup}))

    def combination_of(self, piece: Piece) -> Combination | None:
        """How the gradients of a step's tasks become one; None for their plain sum."""
        cures: dict[str, dict[str, Any]] = {
            WEIGHTS: {"weights": dict(self.weights)},
            UPGRAD: {"combine": Combine.UPGRAD},
        }
        if piece.cure not in cures:
            return None
        return Combination(self.trained.config.training.model_copy(update=cures[piece.cure]), list(piece.tasks))

    def identity(self) -> dict[str, Any]:
        """What the losses depend on."""
        config = self.config.model_copy(update={"trial": trial_of(self.config)})
        trained, model = resolved(self.trained.config), self.config.model
        projector = {} if model.projector is None else {"projector": of_checkpoint(model.projector)}
        streams = {task: content(stream.examples) for task, stream in self.pools.streams.items()}
        return {
            "trial of": {"base": of_checkpoint(loading.base_of(model)), **projector},
            "config": config.model_dump(mode="json", include=_READ, exclude=_ELSEWHERE),
            "training": {key: trained[key] for key in ("method", "adapter", "lora", "mixlora", "training")},
            "arms": {arm.name: [list(piece.tasks) for piece in arm.pieces] for arm in self.arms},
            "weights": dict(self.weights),
            "steps": self.steps,
            "share": self.share,
            "data": {"read": content(self.pools.read), "trained on": streams},
            "processing": of_processing(self.pools.collator),
            "versions": checkpoint.versions(),
        }


def prepared(
    config: AnalysisConfig,
    groups: Sequence[Sequence[str]],
    weights: Mapping[str, float] = MappingProxyType({}),
    runs: Sequence[AnalysisConfig] = (),
    day: date | None = None,
) -> Job:
    """Read and check everything that a trial needs, before a model is loaded.

    Args:
        config: A configuration as `validate` takes it.
        groups: The advised ones; none where no split is advised.
        weights: The advised weights of tasks; none where none are advised.
        runs: The configurations of the runs that advice was made from.
        day: That a template takes for today where the configuration names none; None for today.

    Returns:
        The job.

    Raises:
        InterferenceError: As `compute`.
    """
    tasks, asked = list(config.tasks), trial_of(config)
    trained = trained_by(config)
    if trained.config.method != Method.LORA:
        raise ConfigError(
            f"{trained.home} is a training of method {trained.config.method}, but a trial compares LoRAs and a MixLoRA "
            "by the recipe of a LoRA; give model.adapter the directory of one"
        )
    _check_seeds(config, trained)
    groups = split_of(groups, tasks)
    steps, share = sizes_of(config, trained, groups)
    check_steps(steps, share, groups, tasks)
    cures = [WEIGHTS] * bool(weights) + [UPGRAD] * _combines(trained, tasks)
    found = arms(tasks, groups, asked.random, asked.seed, cures)
    for arm in found:
        config_of(arm.pieces[0], trained.config)
    pools = draw_trial(config, trained.recipe, share, steps, runs, day)
    wide: dict[str, Stream] = {task: WideStream(task, stream.examples) for task, stream in pools.streams.items()}
    config = sample.dated(config, pools.held_out.collator)
    return Job(config, groups, weights, trained, replace(pools, streams=wide), found, steps, share)


def sizes_of(config: AnalysisConfig, trained: Trained, groups: Sequence[Sequence[str]]) -> tuple[int, int]:
    """The steps of an arm, and the examples of each task in a step on all tasks, as asked for or by the training.

    Args:
        config: What is asked for.
        trained: The training whose recipe is followed.
        groups: The advised ones.
    """
    asked, count = trial_of(config), len(config.tasks)
    steps = asked.steps or trained.steps + -trained.steps % count
    unit = spread([len(group) for group in groups], count)
    share = max(trained.config.training.batch_size // count, 1)
    return steps, asked.share or share + -share % unit


def _combines(trained: Trained, tasks: Sequence[str]) -> bool:
    """Whether gradients can be combined by UPGrad here, which an optional package does."""
    try:
        Combination(trained.config.training.model_copy(update={"combine": Combine.UPGRAD}), tasks)
    except ConfigError:
        return False
    return True


def _check_seeds(config: AnalysisConfig, trained: Trained) -> None:
    """Raise a ConfigError if the trial would share a seed with what advice is made from."""
    asked, judged, ahead = trial_of(config), validation_of(config), asked_of(config)
    seeds = set(range(asked.seed, asked.seed + asked.seeds))
    others = {
        f"the seed of {trained.home}": [trained.config.training.seed],
        "also a seed of validation.seed": range(judged.seed, judged.seed + judged.seeds),
        "also a seed of lookahead.seed": range(ahead.seed, ahead.seed + ahead.seeds),
    }
    for what, own in others.items():
        if shared := sorted(seeds & set(own)):
            raise ConfigError(
                f"trial.seed: {shared[0]} is {what}; choose others, so that the trial knows nothing of what advice is "
                "made from"
            )
