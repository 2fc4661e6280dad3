"""Branches: a model trained on a set of tasks for some steps of a recipe, and every held-out example's loss on the way.

A branch takes the steps that a Trainer takes on these examples: the loss is a mean over the supervised tokens of all
micro-batches, gradients are clipped, AdamW steps. Its optimizer begins without a state. Afterwards the model is as it
was.

Not here: which examples are trained on (`pools`), and the reading of losses (`held_out`).
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer

from interference.branching.held_out import HeldOut
from interference.branching.recipe import Recipe
from interference.errors import MeasurementError
from interference.gradients.losses import example_losses
from interference.gradients.state import activate, as_found, own_randomness
from interference.gradients.trained import trained_parameters
from mixlora import routed
from mixlora.common.labels import IGNORED
from mixlora.data.collation import Collator, Encoded
from mixlora.data.sampling import place
from mixlora.training.config import Order
from mixlora.training.corpus import Corpus
from mixlora.training.order import Epochs
from mixlora.tuner.model import base_model_of


def unheard() -> None:
    """What is called after a step where nobody listens."""


@dataclass(frozen=True)
class Stream:
    """A task's training examples, in the batches that a training on this task alone takes.

    Attributes:
        task: its name.
        examples: as tokens.
    """

    task: str
    examples: Sequence[Encoded]

    def batches(self, size: int, order: Order | str, seed: int) -> Iterator[list[Encoded]]:
        """Batches without end, epoch after epoch; seeds and tasks draw independently of each other."""
        corpus = Corpus([one.example for one in self.examples], [len(one.input_ids) for one in self.examples], {})
        epochs = Epochs(corpus, order, size, drawn_by("order", self.task, seed))
        for epoch in count():
            epochs.set_epoch(epoch)
            positions = list(epochs)
            for start in range(0, len(positions), size):
                yield [self.examples[k] for k in positions[start : start + size]]


@dataclass
class Branches:
    """Trains a model along sets of tasks from where it stands, and comes back each time.

    Attributes:
        model: the model with the adapter.
        adapter: the adapter that is trained.
        collator: makes the batches that are trained on.
        streams: {task: its examples}.
        held_out: whose losses are read.
        recipe: how the steps are taken.
        stepped: called after every step.
        remedy: what the user can do about a branch that diverges.
        read: what is read of the model on the way; None for every held-out example's loss.
        done: steps of the branch so far.
    """

    model: nn.Module
    adapter: str
    collator: Collator
    streams: Mapping[str, Stream]
    held_out: HeldOut
    recipe: Recipe
    stepped: Callable[[], None] = unheard
    remedy: str = "lower lookahead.recipe.learning_rate"
    read: Callable[[nn.Module], Tensor] | None = None
    done: int = field(default=0, init=False)
    _counts: bool = field(init=False)

    def __post_init__(self) -> None:
        self._counts = _takes_counts(self.model)

    def before(self) -> Tensor:
        """Every held-out example's loss [examples] where the model stands."""
        with standing(self.model, self.adapter):
            return self.held_out.losses(self.model)

    def along(
        self, tasks: Sequence[str], seed: int, steps: Sequence[int], rates: Sequence[float], share: int
    ) -> Tensor:
        """Train on tasks together, and read the losses on the way.

        Args:
            tasks: trained on, `share` examples of each in every step.
            seed: of the order of examples, and of dropout.
            steps: numbers of steps after which losses are read, ascending.
            rates: the learning rate of every step.
            share: examples of each task in a step.

        Returns:
            Every held-out example's loss [steps, examples], or what `read` gives [steps, ...].

        Raises:
            MeasurementError: if a loss or gradient is not finite any more.
        """
        name, found = " and ".join(map(repr, tasks)), []
        order, read = self.recipe.training.order, self.read or self.held_out.losses
        streams = zip(*(self.streams[task].batches(share, order, seed) for task in tasks), strict=True)
        with standing(self.model, self.adapter), self._saving_memory():
            optimizer = self._optimizer()
            for step, rate in enumerate(rates[: steps[-1]], start=1):
                self.done = step - 1
                try:
                    with own_randomness(drawn_by(f"step {step}", name, seed)):
                        self._step(optimizer, [one for own in next(streams) for one in own], rate)
                    found += [read(self.model)] if step in steps else []
                except MeasurementError as error:
                    raise MeasurementError(
                        f"the branch along {name} with seed {seed} diverged at step {step}: {error}; {self.remedy}"
                    ) from None
                self.stepped()
        return torch.stack(found)

    def _step(self, optimizer: torch.optim.Optimizer, rows: Sequence[Encoded], rate: float) -> None:
        """One step of the optimizer on some examples."""
        self.model.train()
        self.backward(rows)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.recipe.training.max_grad_norm or torch.inf)
        check_finite(norm, "the gradient's norm")
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()

    def backward(self, rows: Sequence[Encoded]) -> None:
        """Leave the gradient of some examples' loss on the parameters that train.

        Raises:
            MeasurementError: if the loss is not finite.
        """
        micro = self.recipe.micro
        mixed = len({one.has_image for one in rows}) > 1
        parts = [rows[start : start + micro] for start in range(0, len(rows), micro)]
        batches = [self.collator.collate(part, mixed=mixed) for part in parts]
        tokens = sum((batch["labels"][:, 1:] != IGNORED).sum() for batch in batches)
        for part, batch in zip(parts, batches, strict=True):
            loss = self.loss(batch, [one.example.task for one in part], tokens, len(parts))
            check_finite(loss, "the training loss")
            loss.backward()

    def loss(self, batch: Mapping[str, Tensor], tasks: list[str], tokens: Any, parts: int) -> Tensor:
        """A micro-batch's share of the loss of a step, as Trainer has it."""
        device = self.held_out.device
        inputs: dict[str, Any] = {key: value.to(device) for key, value in batch.items()}
        bf16 = torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.training.bf16)
        if self.held_out.objective.loss is not None:
            counted = {"num_items_in_batch": tokens.to(device)} if self._counts else {}
            with routed(self.model, tasks=tasks), bf16:
                loss: Tensor = self.model(**inputs, **counted, use_cache=False).loss.float()
            return loss if self._counts else loss / parts
        with bf16:  # the same loss, with logits at supervised positions alone
            losses, counts = example_losses(self.model, {**inputs, "tasks": tasks}, alone=None)
        summed = (losses * counts.to(losses)).sum()
        return summed / tokens.to(summed) if self._counts else summed / counts.sum().to(summed) / parts

    @contextmanager
    def _saving_memory(self) -> Iterator[None]:
        """Inside, activations are recomputed, if the recipe does so."""
        base: Any = base_model_of(self.model)
        if not self.recipe.training.gradient_checkpointing:
            yield
            return
        base.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            yield
        finally:
            base.gradient_checkpointing_disable()

    def _optimizer(self) -> torch.optim.Optimizer:
        """AdamW over what trains; biases and norms do not decay, as in Trainer."""
        decaying = set(Trainer.get_decay_parameter_names(cast(Any, None), self.model))
        trained = [(name, own) for name, own in self.model.named_parameters() if own.requires_grad]
        decay = self.recipe.training.weight_decay
        groups = [
            {"params": [own for name, own in trained if name in decaying], "weight_decay": decay},
            {"params": [own for name, own in trained if name not in decaying], "weight_decay": 0.0},
        ]
        fused = self.held_out.device.type in ("cpu", "cuda")
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, fused=fused)


@contextmanager
def standing(model: nn.Module, adapter: str) -> Iterator[None]:
    """Inside, the adapter trains and nothing else; afterwards every weight, mode and gradient is as it was."""
    with as_found(model):
        activate(model, adapter)
        trained = trained_parameters(model, adapter)
        model.requires_grad_(False)
        values = [(tensor, tensor.detach().clone()) for tensor in (*trained, *model.buffers())]
        gradients = [(parameter, parameter.grad) for parameter in trained]
        for parameter in trained:
            parameter.requires_grad_(True)
            parameter.grad = None
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in values:
                    tensor.copy_(value)
            for parameter, gradient in gradients:
                parameter.grad = gradient


def _takes_counts(model: nn.Module) -> bool:
    """Whether the model's forward scales its loss by the tokens of the whole step, as Trainer asks it to."""
    base = base_model_of(model)
    told = getattr(base, "accepts_loss_kwargs", None)
    if told is not None:
        return bool(told)
    kinds = [parameter.kind for parameter in inspect.signature(base.forward).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def drawn_by(what: str, task: str, seed: int) -> int:
    """A seed for one purpose, independent of those of other tasks and seeds."""
    return int.from_bytes(place(what, task, seed)[:4])


def check_finite(value: Tensor, what: str) -> None:
    """Raise a MeasurementError if a value is not finite."""
    if not bool(value.isfinite().all()):
        raise MeasurementError(f"{what} is {float(value):g}")
