"""Cost: what a trial will take, before any groups are advised; its time from a few passes through the model."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from interference.advice.setup import prepared
from interference.advice.trial import fresh
from interference.branching.recipe import trial_of
from interference.config import AnalysisConfig
from mixlora.training.config import Method

_GROUPS = 2
"""Groups that a cost assumes: more of them take as many steps, and more readings."""


@dataclass(frozen=True)
class TrialCost:
    """What a trial of two groups takes.

    Attributes:
        arms: ways to train all tasks.
        seeds: trainings of each.
        steps: optimizer steps of each, over all its adapters.
        examples: in a step.
        readings: how often all held-out examples are read.
        held_out: how many these are.
        step_seconds: of a step on all tasks, if it was measured.
        reading_seconds: of a reading, if it was measured.
    """

    arms: int
    seeds: int
    steps: int
    examples: int
    readings: int
    held_out: int
    step_seconds: float | None = None
    reading_seconds: float | None = None

    @property
    def seconds(self) -> float | None:
        """Of all steps and readings; None if they were not measured."""
        if self.step_seconds is None or self.reading_seconds is None:
            return None
        return self.seeds * self.arms * self.steps * self.step_seconds + self.readings * self.reading_seconds


def of_trial(config: AnalysisConfig, timed: bool = False) -> TrialCost:
    """The cost of a configuration's trial; a model is made only to measure time.

    Args:
        config: As `trial.compute` takes it.
        timed: Whether to measure time.

    Returns:
        The cost with two groups.

    Raises:
        InterferenceError: As `trial.compute`.
    """
    job, asked = prepared(config, ()), trial_of(config)
    splits = 1 + asked.random
    found = TrialCost(
        arms=len(job.arms) + splits,
        seeds=asked.seeds,
        steps=job.steps,
        examples=job.share * len(config.tasks),
        readings=asked.seeds * (len(job.pieces) + splits * _GROUPS),
        held_out=len(job.pools.held_out.units),
    )
    if not timed:
        return found
    branches = fresh(job, job.seeds[0], (Method.LORA, 1))
    branches.before()  # the first forward of a process takes longer than any other
    reading = 2 * _timed(branches.before)  # of losses, and of answers
    rate = [job.trained.config.training.learning_rate]
    step = _timed(lambda: branches.along(list(config.tasks), job.seeds[0], [1], rate, job.share)) - reading
    return replace(found, step_seconds=max(step, 0.0), reading_seconds=reading)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
