"""Trainers: branches along single tasks from where a Trainer's training stands, by its own optimizer, and back.

A branch takes the steps that the training would take next if it went on with one task: the trainer's collator, its
`training_step`, its clipping, its optimizer with the state that it has, at the learning rate that it has. Afterwards
weights, optimizer, gradients, random generators, modes and books are as they were, to the bit.

Not here: branches from a checkpoint on disk (`branches`), and the examples that are read (`readings`).
"""

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from transformers import Trainer
from transformers.training_args import OptimizerNames

from interference.branching.branches import check_finite, drawn_by
from interference.branching.readings import Readings
from interference.errors import CheckpointError, MeasurementError
from interference.gradients.state import as_found, own_randomness, set_aside
from interference.measurement.rows import Row
from interference.measurement.trainer import refuse_shards
from interference.measurement.trainer_loss import refuse_processes

_ELSEWHERE = {
    OptimizerNames.LOMO,
    OptimizerNames.ADALOMO,
    OptimizerNames.GALORE_ADAMW_LAYERWISE,
    OptimizerNames.GALORE_ADAMW_8BIT_LAYERWISE,
    OptimizerNames.GALORE_ADAFACTOR_LAYERWISE,
    OptimizerNames.APOLLO_ADAMW_LAYERWISE,
}
"""Optimizers that step within the backward pass, and keep their state where the trainer's optimizer has none."""


@dataclass(frozen=True)
class TrainerBranches:
    """Trains along single tasks from where a training stands, and comes back each time.

    Attributes:
        trainer: whose training it is.
        rows: {task: what is trained on}.
        readings: what is read.
    """

    trainer: Trainer
    rows: Mapping[str, Sequence[Row]]
    readings: Readings

    def before(self) -> Tensor:
        """Every held-out example's loss [examples] where the training stands."""
        with standing(self.trainer):
            return self.readings.losses()

    def along(self, task: str, seed: int, steps: Sequence[int]) -> Tensor:
        """Train on a task, and read the losses on the way.

        Args:
            task: trained on.
            seed: of the order of rows, and of dropout.
            steps: numbers of steps after which losses are read, ascending.

        Returns:
            Every held-out example's loss [steps, examples].

        Raises:
            MeasurementError: if a loss or gradient is not finite any more.
        """
        found = []
        with standing(self.trainer):
            batches = batches_of(self.rows[task], batch_size(self.trainer), drawn_by("order", task, seed))
            for step in range(1, steps[-1] + 1):
                try:
                    with own_randomness(drawn_by(f"step {step}", repr(task), seed)):
                        self._step(next(batches))
                    found += [self.readings.losses()] if step in steps else []
                except MeasurementError as error:
                    raise MeasurementError(
                        f"the branch along {task!r} with seed {seed} diverged at step {step}: {error}; lower the "
                        "learning rate, or take fewer steps"
                    ) from None
        return torch.stack(found)

    def _step(self, rows: Sequence[Row]) -> None:
        """One step of the trainer's optimizer, as its training takes it."""
        trainer: Any = self.trainer
        model, micro, collate = trainer.model_wrapped, trainer._train_batch_size, rows[0].source_of.collate
        parts = [rows[start : start + micro] for start in range(0, len(rows), micro)]
        collated = iter([collate([row.item() for row in part]) for part in parts])
        batches, count = trainer.get_batch_samples(collated, len(parts), trainer.args.device)
        trainer.current_gradient_accumulation_steps = len(batches)
        for number, batch in enumerate(batches, start=1):
            trainer.accelerator.gradient_state._set_sync_gradients(number == len(batches))
            check_finite(trainer.training_step(model, batch, count), "the training loss")
        norm = trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm or torch.inf)
        check_finite(torch.as_tensor(norm), "the gradient's norm")
        trainer.optimizer.step()
        model.zero_grad()


def batch_size(trainer: Trainer) -> int:
    """Rows in an optimizer step of a trainer."""
    found: int = trainer._train_batch_size * trainer.args.gradient_accumulation_steps
    return found


def batches_of(rows: Sequence[Row], size: int, seed: int) -> Iterator[list[Row]]:
    """Batches of `size` rows, without end. When all rows were taken, a new order is drawn."""
    generator, order = np.random.default_rng(seed), list[int]()
    while True:
        while len(order) < size:
            order += generator.permutation(len(rows)).tolist()
        yield [rows[k] for k in order[:size]]
        order = order[size:]


def optimizer_of(trainer: Trainer) -> torch.optim.Optimizer:
    """The optimizer of a training, without what accelerate puts around it."""
    known: Any = trainer.optimizer
    found: torch.optim.Optimizer = known.optimizer if isinstance(known, AcceleratedOptimizer) else known
    return found


def refuse_unbranched(trainer: Trainer) -> None:
    """Check that a training can be left and come back to.

    Raises:
        CheckpointError: if its parameters are in shards, or its optimizer's state is where it cannot be copied.
        MeasurementError: if several processes train.
    """
    refuse_shards(trainer)
    kind = (
        "DeepSpeed" if trainer.is_deepspeed_enabled
        else f"the optimizer {OptimizerNames(trainer.args.optim).value}" if trainer.args.optim in _ELSEWHERE
        else "a paged optimizer" if getattr(optimizer_of(trainer), "is_paged", False)
        else None
    )  # fmt: skip
    if kind is not None:
        raise CheckpointError(
            f"the training uses {kind}, whose state cannot be set aside for a branch; train with a plain optimizer, or "
            "branch from saved checkpoints with interference.lookahead"
        )
    refuse_processes(trainer, "branches are trained in one process")


@contextmanager
def standing(trainer: Trainer) -> Iterator[None]:
    """Inside, a training may take steps; afterwards it stands where it stood.

    Weights are copied back into place. The optimizer and the scaler work on copies of what they keep.
    """
    model: nn.Module = trainer.model_wrapped
    with ExitStack() as stack:
        stack.enter_context(set_aside(trainer))
        stack.enter_context(own_randomness(0))
        stack.enter_context(as_found(model))
        stack.enter_context(_synced(trainer.accelerator.gradient_state))
        stack.enter_context(_weights(model, optimizer_of(trainer)))
        stack.enter_context(_copied(trainer))
        if trainer.accelerator.scaler is not None:
            stack.enter_context(_attributes(trainer.accelerator.scaler, copied=True))
        yield


@contextmanager
def _synced(state: Any) -> Iterator[None]:
    """Restore whether gradients are summed over processes now."""
    known = state.sync_gradients
    try:
        yield
    finally:
        state._set_sync_gradients(known)


@contextmanager
def _weights(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, no parameter has a gradient; afterwards gradients, buffers and what trains are as before."""
    trained = {id(own): own for own in model.parameters() if own.requires_grad}
    trained |= {id(own): own for group in optimizer.param_groups for own in group["params"]}
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    values = [(own, own.detach().clone()) for own in (*trained.values(), *model.buffers())]
    gradients = [(own, own.grad) for own in model.parameters()]
    for own, _ in gradients:
        own.grad = None
    try:
        yield
    finally:
        for module, known in buffers:
            module._buffers.clear()
            module._buffers.update(known)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        for own, gradient in gradients:
            own.grad = gradient


@contextmanager
def _copied(trainer: Trainer) -> Iterator[None]:
    """Inside, the optimizer works on a copy of its state and of its groups' settings."""
    inner = optimizer_of(trainer)
    groups = [dict(group) for group in inner.param_groups]
    with ExitStack() as stack:
        for each in {id(one): one for one in (trainer.optimizer, inner)}.values():
            stack.enter_context(_attributes(each))
        inner.state = defaultdict(dict, {own: copy.deepcopy(kept) for own, kept in inner.state.items()})
        for group in inner.param_groups:
            group.update({key: copy.deepcopy(value) for key, value in group.items() if key != "params"})
        try:
            yield
        finally:
            for group, known in zip(inner.param_groups, groups, strict=True):
                group.clear()
                group.update(known)


@contextmanager
def _attributes(owner: Any, copied: bool = False) -> Iterator[None]:
    """Restore every attribute of an object; inside, those of one that is `copied` are copies."""
    known = dict(vars(owner))
    if copied:
        vars(owner).update(copy.deepcopy(known))
    try:
        yield
    finally:
        vars(owner).clear()
        vars(owner).update(known)
