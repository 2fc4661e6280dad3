"""Sections of a configuration for commands that take real steps: lookaheads, validations and trials."""

from enum import StrEnum
from itertools import pairwise

from pydantic import Field, field_validator, model_validator

from mixlora.common.settings import Number, Place, Section
from mixlora.training.config import Order, Rate

SEEDS = 2**32
"""Every random generator accepts seeds below this."""


class BranchSection(Section):
    """Values of the recipe that replace those of the training; None keeps the training's, or `mixlora train`'s default.

    Attributes:
        batch_size: examples in an optimizer step.
        micro_batch_size: examples in one forward pass.
        learning_rate: AdamW's, constant along a branch.
        weight_decay: AdamW's.
        max_grad_norm: gradients are clipped to it; 0 for none.
        max_length: tokens kept of an example.
        order: "length", "shuffled" or "task": which examples share a batch.
        bf16: compute in bfloat16 (autocast).
        gradient_checkpointing: recompute activations instead of keeping them.
    """

    batch_size: int | None = Field(None, ge=1)
    micro_batch_size: int | None = Field(None, ge=1)
    learning_rate: Rate | None = None
    weight_decay: Number | None = Field(None, ge=0)
    max_grad_norm: Number | None = Field(None, ge=0)
    max_length: int | None = Field(None, ge=1)
    order: Order | None = None
    bf16: bool | None = None
    gradient_checkpointing: bool | None = None


class LookaheadConfig(Section):
    """How far `interference lookahead` trains along each task, and by which recipe.

    Attributes:
        training: a configuration of `mixlora train`, or the directory of a training: its recipe is followed, and
            examples of the tasks that it names are trained on. None for the training that made the adapter, where its
            directory records it.
        recipe: values that replace those of the training. Without any training they are the recipe.
        steps: numbers of optimizer steps after which every task's held-out loss is read, ascending.
        seeds: branches along each task, each with batches and dropout of its own.
        seed: of the first of them; the others have the numbers after it.
        held_out: examples of each task whose losses are read. They share nothing with the examples trained on.
    """

    training: Place | None = None
    recipe: BranchSection = Field(default_factory=lambda: BranchSection.model_validate({}))
    steps: list[int] = Field(default_factory=lambda: [1, 2, 5, 10, 20, 40], min_length=1)
    seeds: int = Field(3, ge=2)
    seed: int = Field(0, ge=0, lt=SEEDS)
    held_out: int = Field(100, ge=2)

    @field_validator("steps")
    @classmethod
    def _ascending(cls, value: list[int]) -> list[int]:
        return ascending(value, "a branch of 0 steps is the checkpoint itself")

    @model_validator(mode="after")
    def _seeds_in_range(self) -> "LookaheadConfig":
        if self.seed + self.seeds > SEEDS:
            raise ValueError(f"seed {self.seed} and the {self.seeds - 1} after it must stay below {SEEDS}")
        return self


class Truth(StrEnum):
    """Which trainings say what one task does to another."""

    PAIRS = "pairs"  # every task alone, and with every other one
    LEAVE_ONE_OUT = "leave-one-out"  # all tasks, and all but one


class ValidateConfig(Section):
    """By which trainings `interference validate` finds out what tasks do to each other, and which predictions it tests.

    Attributes:
        truth: "pairs", "leave-one-out" or both: which trainings are compared.
        horizons: numbers of optimizer steps after which every task's held-out loss is read, ascending.
        seeds: trainings of every set of tasks, each with initial weights, batches and dropout of its own.
        seed: of the first of them; the others have the numbers after it. That of the probed training is not allowed.
        share: examples of each task in a step, however many tasks are trained on; None for the batch of the probed
            training over the number of tasks.
        held_out: examples of each task whose losses are read. They share nothing with those that are probed, or that
            new trainings and branches train on.
        checkpoints: steps of the probed training at which predictions are made; None for all its snapshots.
        lookahead: also test branches from every checkpoint, as `lookahead` describes them.
    """

    truth: list[Truth] = Field(default_factory=lambda: [Truth.PAIRS], min_length=1)
    horizons: list[int] = Field(default_factory=lambda: [10, 20, 40], min_length=1)
    seeds: int = Field(3, ge=2)
    seed: int = Field(1000, ge=0, lt=SEEDS)
    share: int | None = Field(None, ge=1)
    held_out: int = Field(100, ge=2)
    checkpoints: list[int] | None = Field(None, min_length=1)
    lookahead: bool = True

    @field_validator("horizons")
    @classmethod
    def _ascending(cls, value: list[int]) -> list[int]:
        return ascending(value, "after 0 steps nothing is trained")

    @field_validator("truth")
    @classmethod
    def _once(cls, value: list[Truth]) -> list[Truth]:
        return list(dict.fromkeys(value))

    @model_validator(mode="after")
    def _seeds_in_range(self) -> "ValidateConfig":
        if self.seed + self.seeds > SEEDS:
            raise ValueError(f"seed {self.seed} and the {self.seeds - 1} after it must stay below {SEEDS}")
        return self


class TrialConfig(Section):
    """By which trainings `interference advise --train` tries what is advised.

    Attributes:
        steps: optimizer steps that every arm takes in all, over all its adapters: a multiple of the number of tasks.
            None for those of the probed training, rounded up to such a multiple.
        seeds: trainings of every arm, each with initial weights, batches and dropout of its own.
        seed: of the first of them; the others have the numbers after it. Those of the probed training, of a validation
            and of a lookahead are not allowed.
        share: examples of each task in a step on all tasks. A step of any arm has as many examples in all, so that
            it must divide among the tasks of each group. None for the batch of the probed training over the number of
            tasks, rounded up until it does.
        held_out: examples of each task whose losses are read. They share nothing with those that are probed or trained
            on.
        random: random splits into groups of the same sizes as the advised ones, to compare those with.
    """

    steps: int | None = Field(None, ge=1)
    seeds: int = Field(3, ge=2)
    seed: int = Field(2000, ge=0, lt=SEEDS)
    share: int | None = Field(None, ge=1)
    held_out: int = Field(100, ge=2)
    random: int = Field(5, ge=2)

    @model_validator(mode="after")
    def _seeds_in_range(self) -> "TrialConfig":
        if self.seed + self.seeds > SEEDS:
            raise ValueError(f"seed {self.seed} and the {self.seeds - 1} after it must stay below {SEEDS}")
        return self


def ascending(value: list[int], nothing: str) -> list[int]:
    """Numbers of steps, which must be ascending and at least 1; `nothing` says why 0 is not one.

    Raises:
        ValueError: if they are not.
    """
    if value and value[0] < 1:
        raise ValueError(f"{nothing}; begin with 1 or more")
    if any(after <= before for before, after in pairwise(value)):
        raise ValueError("is not ascending; list each number of steps once, the smallest first")
    return value
