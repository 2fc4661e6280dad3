"""Cost: what a lookahead will take: passes through the model, and their time from a few of them."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from interference.branching.pools import draw
from interference.branching.recipe import asked_of, processes_of, recipe_of
from interference.branching.workers import shared_threads
from interference.config import AnalysisConfig
from interference.prediction.lookahead import Job, prepared
from interference.prediction.validate import prepared as prepared_validation


@dataclass(frozen=True)
class Cost:
    """What a lookahead takes.

    Attributes:
        branches: one per task and seed.
        steps: optimizer steps of each.
        passes: forward and backward passes of a step.
        rows: examples in such a pass, at most.
        readings: how often all held-out examples are read.
        examples: how many these are.
        forwards: forward passes of a reading.
        processes: that train at once.
        step_seconds: of a step, if it was measured.
        reading_seconds: of a reading, if it was measured.
    """

    branches: int
    steps: int
    passes: int
    rows: int
    readings: int
    examples: int
    forwards: int
    processes: int = 1
    step_seconds: float | None = None
    reading_seconds: float | None = None

    @property
    def seconds(self) -> float | None:
        """Of all steps and readings; None if they were not measured."""
        if self.step_seconds is None or self.reading_seconds is None:
            return None
        whole = self.branches * self.steps * self.step_seconds + self.readings * self.reading_seconds
        return whole / self.processes


def cost(config: AnalysisConfig, timed: bool = False) -> Cost:
    """The cost of a configuration's lookahead; the model is loaded only to measure time.

    Raises:
        InterferenceError: as `lookahead`.
    """
    recipe, asked = recipe_of(config), asked_of(config)
    if timed:
        job = prepared(config)
        pools, forwards = job.pools, job.branches.held_out.forwards
    else:
        pools = draw(config, recipe, recipe.training.batch_size)
        forwards = math.ceil(len(pools.held_out.units) / config.probe.batch_size)
    found = Cost(
        branches=asked.seeds * len(config.tasks),
        steps=asked.steps[-1],
        passes=math.ceil(recipe.training.batch_size / recipe.micro),
        rows=recipe.micro,
        readings=asked.seeds * len(config.tasks) * len(asked.steps) + 1,
        examples=len(pools.held_out.units),
        forwards=forwards,
        processes=min(processes_of(config), asked.seeds * len(config.tasks)),
    )
    return _measured(found, job) if timed else found


@dataclass(frozen=True)
class ValidationCost:
    """What the trainings of a validation take.

    Attributes:
        trainings: one a set of tasks and seed.
        steps: optimizer steps of each.
        shares: how many times the examples of one task are trained on, over all steps.
        share: examples of a task in a step.
        tasks: in all.
        most: tasks of the largest set.
        readings: how often all held-out examples are read.
        examples: how many these are.
        processes: that train at once.
        share_seconds: of a step on one task, if it was measured.
        reading_seconds: of a reading, if it was measured.
    """

    trainings: int
    steps: int
    shares: int
    share: int
    tasks: int
    most: int
    readings: int
    examples: int
    processes: int = 1
    share_seconds: float | None = None
    reading_seconds: float | None = None

    @property
    def seconds(self) -> float | None:
        """Of all steps and readings; None if they were not measured."""
        if self.share_seconds is None or self.reading_seconds is None:
            return None
        return (self.shares * self.share_seconds + self.readings * self.reading_seconds) / self.processes


def of_validation(config: AnalysisConfig, timed: bool = False) -> ValidationCost:
    """The cost of the trainings of a configuration's validation; a model is made only to measure time.

    Raises:
        InterferenceError: as `validate`.
    """
    work = prepared_validation(config, Path("unused")).trainings()
    seeds, steps, horizons = len(work.seeds), work.horizons[-1], len(work.horizons)
    found = ValidationCost(
        trainings=seeds * len(work.sets),
        steps=steps,
        shares=seeds * steps * sum(map(len, work.sets)),
        share=work.share,
        tasks=len(config.tasks),
        most=max(map(len, work.sets)),
        readings=seeds * (len(work.sets) * horizons + 1),
        examples=len(work.pools.held_out.units),
        processes=min(processes_of(config), seeds * len(work.sets)),
    )
    if not timed:
        return found
    branches, tasks = work.fresh(work.seeds[0]), list(config.tasks)
    with shared_threads(found.processes):
        branches.before()  # the first forward of a process takes longer than any other
        reading = _timed(branches.before)
        spent = [_timed(partial(branches.along, [task], 0, [1], work.rates, work.share)) - reading for task in tasks]
    return replace(found, share_seconds=max(float(np.mean(spent)), 0.0), reading_seconds=reading)


def _measured(found: Cost, job: Job) -> Cost:
    """The cost with times: of a reading, and of a step, between the tasks of the shortest and the longest examples."""
    branches, recipe = job.branches, job.recipe.training
    lengths = {
        task: float(np.mean([len(one.input_ids) for one in stream.examples]))
        for task, stream in branches.streams.items()
    }
    ordered = sorted(lengths, key=lambda task: lengths[task])
    ends = [ordered[0], ordered[-1]]
    rates = [recipe.learning_rate]
    with shared_threads(found.processes):
        branches.before()  # the first forward of a process takes longer than any other
        reading = _timed(branches.before)
        whole = [_timed(partial(branches.along, [task], 0, [1], rates, recipe.batch_size)) for task in ends]
    spent = [max(each - reading, 0.0) for each in whole]
    step = float(np.interp(list(lengths.values()), [lengths[task] for task in ends], spent).mean())
    return replace(found, step_seconds=step, reading_seconds=reading)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
