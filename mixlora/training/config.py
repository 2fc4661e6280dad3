"""TrainConfig: the configuration of `mixlora train`. No model is loaded here."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mixlora.common import settings
from mixlora.common.files import TRAINING
from mixlora.common.sections import HELDOUT, BaseSection, TaskGroupSection
from mixlora.common.settings import Number, Place, Section

EPOCHS = 3
"""Passes over the data if neither epochs nor steps are given."""

Rate = Annotated[Number, Field(gt=0, allow_inf_nan=False)]
Schedule = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]
"""The schedules of transformers that need nothing but the number of steps."""


class Method(StrEnum):
    """What is trained."""

    LORA = "lora"
    MIXLORA = "mixlora"
    SPECIALIST = "specialist"  # a separate LoRA for each task
    FULL = "full"  # all weights except the image encoder's


class Order(StrEnum):
    """Which examples share a batch."""

    LENGTH = "length"  # of similar length, which saves padding
    SHUFFLED = "shuffled"
    TASK = "task"  # of one task
    BALANCED = "balanced"  # equally many of every task


class Combine(StrEnum):
    """How the gradients of a step's tasks become one; all but the sum are aggregators of TorchJD."""

    SUM = "sum"  # of all tokens' losses: no gradient of a task is ever seen
    MEAN = "mean"
    RANDOM = "random"  # weights drawn in each step
    PCGRAD = "pcgrad"
    MGDA = "mgda"
    IMTL_G = "imtl_g"
    CAGRAD = "cagrad"
    UPGRAD = "upgrad"
    DUALPROJ = "dualproj"


class TrainTask(TaskGroupSection):
    """A task to train on.

    Attributes:
        samples: examples drawn from it by the seed; all if None.
        weight: how many examples an epoch takes from this entry, relative to the other entries; its tasks share them
            equally. If any entry has a weight, an entry without one has weight 1; if none has, an epoch takes every
            example once.
        definition: a description of the task, for MixLoRA's routing by task.
    """

    samples: int | None = Field(None, ge=1)
    weight: Rate | None = None
    definition: str | None = None

    @model_validator(mode="after")
    def _not_held_out(self) -> "TrainTask":
        if self.part == HELDOUT:
            raise ValueError("part: heldout is what training leaves out; leave part out, and evaluate that part")
        return self


class AdapterSection(Section):
    """What adapters of every kind have in common.

    Attributes:
        target_modules: names of Linear modules, or a pattern that matches their whole path; None for all of the
            language model.
        dropout: of the adapters' input.
        train_projector: also train a LLaVA's projector; it is saved with the adapter.
    """

    target_modules: list[str] | str | None = None
    dropout: float = Field(0.05, ge=0, lt=1)
    train_projector: bool = False


class LoraSection(Section):
    """LoRA's own options, as in PEFT's LoraConfig; specialists use them too.

    Attributes:
        r: rank.
        alpha: the output is scaled by alpha / r.
        rslora: scale by alpha / sqrt(r).
        dora: train magnitudes separately (DoRA).
    """

    r: int = Field(4, ge=1)
    alpha: int = Field(8, ge=1)
    rslora: bool = False
    dora: bool = False


class MixLoraSection(Section):
    """MixLoRA's own options, as in `MixLoraConfig`.

    Attributes:
        r: factors of A, and of B, that an instance uses.
        num_factors: factors of A, and of B, that every adapted Linear has.
        alpha: the adapter's output is scaled by alpha / r; twice num_factors if None, as in the paper.
        routing: what a router looks at: the "instance", the "task" definition, or nothing ("random").
        conditional: whether B's factors also depend on the selected A's.
        router_gradient: "straight-through" lets routers learn; "none" leaves them as initialised.
        pooling: which tokens a router looks at: those of the "prompt", all "attended" ones, or "all".
        decode_routing: whether a generated token uses the factors of the "prompt" or of the "token" itself.
        cfs_form: the "exact" equation of conditional selection, or the "official" code's.
        factor_init: how factors of A are drawn: "gaussian", or "kaiming" as the official code does.
    """

    r: int = Field(4, ge=1)
    num_factors: int = Field(16, ge=1)
    alpha: Rate | None = None
    routing: str = "instance"
    conditional: bool = True
    router_gradient: str = "straight-through"
    pooling: str = "prompt"
    decode_routing: str = "prompt"
    cfs_form: str = "exact"
    factor_init: str = "gaussian"


class RecipeSection(Section):
    """How the model is trained; names are those of transformers' TrainingArguments where the meaning is the same.

    Attributes:
        epochs: passes over the data; 3 if neither `epochs` nor `steps` is given.
        steps: optimizer steps in all, in place of epochs.
        batch_size: examples in an optimizer step, over all processes.
        micro_batch_size: examples in one forward pass of one process; its share of batch_size if None.
        learning_rate: AdamW's peak.
        lr_scheduler_type: "cosine", "linear", "constant_with_warmup" or another `Schedule`.
        warmup: warm-up steps, or a share of all steps if below 1.
        weight_decay: AdamW's.
        max_grad_norm: gradients are clipped to it; 0 for none.
        max_length: tokens kept of an example; None keeps all, and refuses more than the model was made for.
        order: "length", "shuffled", "task" or "balanced" (equally many of every task): which examples share a batch.
        combine: how the gradients of a step's tasks become one: "sum" follows the mean loss of all tokens; the others
            combine one gradient for each task, and need the extra `aggregators`.
        weights: {task: weight of its loss, relative to the other tasks'}; a task that is not named has weight 1.
        bf16: compute in bfloat16 (autocast), keep trained weights in float32.
        gradient_checkpointing: recompute activations instead of keeping them.
        seed: seed of initial weights, order and dropout.
        workers: processes that prepare batches.
        check_images: decode every picture before training starts.
        logging_steps: between logged losses.
        report_to: "tensorboard", "wandb" or another integration of transformers; none if empty.
        save_steps: between checkpoints to resume from; None for each epoch.
        keep: checkpoints kept.
        snapshots: steps after which to save the weights alone, for measurements; 0 is before training.
        optimizer_state: also save AdamW's state beside an adapter and its snapshots, for `probe.step: adam`; it takes
            twice the adapter's memory.
    """

    epochs: float | None = Field(None, gt=0, allow_inf_nan=False)
    steps: int | None = Field(None, ge=1)
    batch_size: int = Field(128, ge=1)
    micro_batch_size: int | None = Field(None, ge=1)
    learning_rate: Rate = 4e-5
    lr_scheduler_type: Schedule = "cosine"
    warmup: Number = Field(0.03, ge=0)
    weight_decay: Number = Field(0.0, ge=0)
    max_grad_norm: Number = Field(1.0, ge=0)
    max_length: int | None = Field(None, ge=1)
    order: Order = Order.LENGTH
    combine: Combine = Combine.SUM
    weights: dict[str, Rate] = Field(default_factory=dict)
    bf16: bool = False
    gradient_checkpointing: bool = False
    seed: int = Field(0, ge=0, lt=2**32)
    workers: int = Field(0, ge=0)
    check_images: bool = True
    logging_steps: int = Field(10, ge=1)
    report_to: list[str] = Field(default_factory=list)
    save_steps: int | None = Field(None, ge=1)
    keep: int = Field(2, ge=1)
    snapshots: list[int] = Field(default_factory=list)
    optimizer_state: bool = False

    @field_validator("snapshots")
    @classmethod
    def _from_zero(cls, value: list[int]) -> list[int]:
        if any(step < 0 for step in value):
            raise ValueError("steps are counted from 0")
        return value

    @model_validator(mode="after")
    def _within_steps(self) -> "RecipeSection":
        if self.steps is not None and (beyond := [step for step in self.snapshots if step > self.steps]):
            raise ValueError(f"snapshots asks for step {beyond[0]}, but the last one is {self.steps}; leave it out")
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both given; leave out one of them")
        return self

    @model_validator(mode="after")
    def _whole_batches(self) -> "RecipeSection":
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}; choose "
                "one that is"
            )
        return self

    @model_validator(mode="after")
    def _several_tasks(self) -> "RecipeSection":
        if self.combines and self.order == Order.TASK:
            raise ValueError(
                "with order task a step has one task, so combine and weights change nothing; choose order balanced, or "
                "leave them out"
            )
        return self

    @property
    def combines(self) -> bool:
        """Whether a step is another than Trainer's, which is that of all tokens' mean loss."""
        return self.combine != Combine.SUM or bool(self.weights)

    def micro(self, processes: int) -> int:
        """Examples in one forward pass of one process, given the number of processes."""
        return self.micro_batch_size or max(self.batch_size // processes, 1)


class TrainConfig(Section):
    """Everything `mixlora train` needs. The sections `lora` and `mixlora` can both be given.

    Attributes:
        method: what is trained; it decides which of the sections is used.
        out: the directory of what is trained.
    """

    method: Literal["lora", "mixlora", "specialist", "full"]
    model: BaseSection
    tasks: dict[str, TrainTask] = Field(min_length=1)
    adapter: AdapterSection = Field(default_factory=lambda: AdapterSection.model_validate({}))
    lora: LoraSection = Field(default_factory=lambda: LoraSection.model_validate({}))
    mixlora: MixLoraSection = Field(default_factory=lambda: MixLoraSection.model_validate({}))
    training: RecipeSection = Field(default_factory=lambda: RecipeSection.model_validate({}))
    out: Place | None = None

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        if self.method == Method.FULL and self.model.quantization is not None:
            raise ValueError("method full cannot train quantized weights; leave model.quantization out")
        if self.method == Method.SPECIALIST and self.training.combines:
            raise ValueError(
                "method specialist trains each task alone; leave training.combine and training.weights out"
            )
        return self

    @model_validator(mode="after")
    def _beside_an_adapter(self) -> "TrainConfig":
        if self.method == Method.FULL and self.training.optimizer_state:
            raise ValueError(
                "training.optimizer_state keeps a state beside an adapter, but method full trains none; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _defined(self) -> "TrainConfig":
        if self.method != Method.MIXLORA or self.mixlora.routing != "task":
            return self
        for name, task in self.tasks.items():
            if task.by is not None or task.mme is not None:
                raise ValueError(
                    f"mixlora.routing is task, but tasks.{name} stands for several, which cannot each be defined; give "
                    "each an entry of its own, with file, where and definition"
                )
            if not task.definition:
                raise ValueError(
                    f"mixlora.routing is task, but task {name!r} has no definition; give tasks.{name}.definition"
                )
        return self


def load(path: Path | None, settings_: Sequence[str] = (), options: Mapping[str, Any] | None = None) -> TrainConfig:
    """The configuration of a YAML file (or of a finished training), overridden by settings and options.

    Raises:
        ConfigError: if the file is missing, is not YAML, or has a key or value that cannot be used.
    """
    data = settings.read(path, TrainConfig, TRAINING) if path else {}
    whole = settings.overridden(data, settings_, options or {})
    return settings.build(TrainConfig, whole, str(path) if path else "the options")
